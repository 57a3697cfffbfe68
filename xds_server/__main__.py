# SPDX-License-Identifier: Apache-2.0
"""`marblemesh coordinator` (and `python -m xds_server`): the command line, and the only reader of the environment.

Every flag stands for a variable and is laid over it; `config` parses both. Exit status: 0 after SIGTERM or SIGINT, 1 if
the Coordinator cannot start, 2 for a wrong setting, each with one line on standard error.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from importlib.metadata import version

import prometheus_client
import uvloop

from sds.flags import USAGE_STATUS, Flag, read
from sds.logs import configure
from xds_server import config as settings
from xds_server.attestation_choice import StartError
from xds_server.config import FLAGS, ConfigError, CoordinatorConfig
from xds_server.file_ops import FileOps, SystemFiles
from xds_server.process import run

_ABOUT = """
Verify Marbles against the manifest, issue their identities, and configure the mesh over xDS.

Each flag can also be given as the environment variable in brackets; an empty variable counts as unset. Once a
manifest is set the state is sealed to this machine and outlives a restart. SIGHUP renews every mesh identity now,
SIGTERM stops.

To try it without a TEE: marblemesh coordinator --simulation --dev-mode
"""
_LISTEN = "Addresses"
_ATTEST = "Attestation"
_LOGS = "Logs and metrics"


def _option(variable: str, text: str, panel: str, metavar: str) -> Flag:
    return Flag(FLAGS[variable], variable, f"{text}  [{variable}]", metavar, panel)


def _switch(variable: str, text: str, panel: str) -> Flag:
    return Flag(FLAGS[variable], variable, f"{text}  [{variable}=1]", None, panel)


_FLAGS = (
    _option(settings.CLIENT_ADDR, "Client API, HTTPS. Default :4433.", _LISTEN, "HOST:PORT"),
    _option(settings.MESH_ADDR, "Marble API, gRPC over TLS. Default :2001.", _LISTEN, "HOST:PORT"),
    _option(settings.XDS_ADDR, "xDS (ADS, SDS), gRPC over mTLS. Default :18000.", _LISTEN, "HOST:PORT"),
    _option(settings.DNS_NAMES, "Names and IP addresses of this Coordinator. Default localhost.", _LISTEN, "A,B"),
    _option(settings.STARTUP_MANIFEST, "Manifest to set at start.", _LISTEN, "FILE"),
    _option(settings.SEAL_DIR, "Sealed state. Default ./marblerun-coordinator-data.", _LISTEN, "DIR"),
    _option(settings.PLATFORM, "TEE: auto, gramine[:DIR] or tdx[:DIR]. Default auto.", _ATTEST, "PLATFORM"),
    _option(settings.PCCS_URL, "PCCS to fetch collateral from.", _ATTEST, "URL"),
    _option(settings.COLLATERAL_DIR, "Collateral in files instead.", _ATTEST, "DIR"),
    _switch(settings.SIMULATION, "Simulate attestation: for trying things out, proves nothing.", _ATTEST),
    _option(settings.SIMULATED_PLATFORM, "Directory of the simulated platform.", _ATTEST, "DIR"),
    _option(settings.SIMULATED_ENCLAVE, "Who to pretend to be, as in a manifest's package.", _ATTEST, "JSON"),
    _switch(settings.INSECURE, "Attest nothing and verify nobody: never with real secrets.", _ATTEST),
    _option(settings.PROMETHEUS_ADDR, "/metrics and /events, plain HTTP. Default off.", _LOGS, "HOST:PORT"),
    _switch(settings.DEV_MODE, "Logs for people instead of JSON; start even without a quote.", _LOGS),
    _switch(settings.DEBUG_LOGGING, "Log at debug level.", _LOGS),
    _option(
        settings.HTTP_ERROR_LOG_LEVEL, "Level of failed TLS handshakes. Default error.", _LOGS, "debug|info|warn|error"
    ),
)


def serve(env: Mapping[str, str], files: FileOps) -> int:
    """Be the Coordinator of this process until told to stop; its state is written by `files`. The exit status."""
    try:
        config = CoordinatorConfig.from_env(env)
    except ConfigError as e:
        return _fail(e, USAGE_STATUS)
    configure("debug" if config.debug_logging else "info", "console" if config.dev_mode else "json", config.mark)
    logging.getLogger("hpack").setLevel(logging.WARNING)  # it logs every header at debug level
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    try:
        uvloop.run(run(config, env, version("marblemesh"), files))
    except StartError as e:
        return _fail(e, 1)
    return 0


def _fail(error: Exception, status: int) -> int:
    sys.stderr.write(f"marblemesh coordinator: {error}\n")
    return status


def main() -> None:
    """Entry point; works behind `marblemesh coordinator` and as a module of its own."""
    behind_marblemesh = sys.argv[1:2] == ["coordinator"]
    arguments = sys.argv[2:] if behind_marblemesh else sys.argv[1:]
    program = "marblemesh coordinator" if behind_marblemesh else "python -m xds_server"
    given = read(program, _ABOUT, _FLAGS, arguments)
    sys.exit(serve(dict(os.environ) | given.values, SystemFiles()))


if __name__ == "__main__":
    main()
