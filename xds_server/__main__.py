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
from typing import Annotated

import prometheus_client
import typer
import uvloop

from sds.command_line import run as run_program
from sds.logs import configure
from xds_server import config as settings
from xds_server.attestation_choice import StartError
from xds_server.config import FLAGS, ConfigError, CoordinatorConfig
from xds_server.file_ops import FileOps, SystemFiles
from xds_server.process import run

_LISTEN = "Addresses"
_ATTEST = "Attestation"
_LOGS = "Logs and metrics"


def _option(variable: str, text: str, panel: str, metavar: str = "TEXT") -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        FLAGS[variable], help=f"{text}  [{variable}]", rich_help_panel=panel, show_default=False, metavar=metavar
    )
    return option


def _switch(variable: str, text: str, panel: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        FLAGS[variable], help=f"{text}  [{variable}=1]", rich_help_panel=panel, show_default=False
    )
    return option


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def coordinator(
    client_addr: Annotated[
        str | None, _option(settings.CLIENT_ADDR, "Client API, HTTPS. Default :4433.", _LISTEN, "HOST:PORT")
    ] = None,
    mesh_addr: Annotated[
        str | None, _option(settings.MESH_ADDR, "Marble API, gRPC over TLS. Default :2001.", _LISTEN, "HOST:PORT")
    ] = None,
    xds_addr: Annotated[
        str | None, _option(settings.XDS_ADDR, "xDS (ADS, SDS), gRPC over mTLS. Default :18000.", _LISTEN, "HOST:PORT")
    ] = None,
    dns_names: Annotated[
        str | None,
        _option(settings.DNS_NAMES, "Names and IP addresses of this Coordinator. Default localhost.", _LISTEN, "A,B"),
    ] = None,
    startup_manifest: Annotated[
        str | None, _option(settings.STARTUP_MANIFEST, "Manifest to set at start.", _LISTEN, "FILE")
    ] = None,
    seal_dir: Annotated[
        str | None,
        _option(settings.SEAL_DIR, "Sealed state. Default ./marblerun-coordinator-data.", _LISTEN, "DIR"),
    ] = None,
    platform: Annotated[
        str | None,
        _option(settings.PLATFORM, "TEE: auto, gramine[:DIR] or tdx[:DIR]. Default auto.", _ATTEST, "PLATFORM"),
    ] = None,
    pccs_url: Annotated[
        str | None, _option(settings.PCCS_URL, "PCCS to fetch collateral from.", _ATTEST, "URL")
    ] = None,
    collateral_dir: Annotated[
        str | None, _option(settings.COLLATERAL_DIR, "Collateral in files instead.", _ATTEST, "DIR")
    ] = None,
    simulation: Annotated[
        bool, _switch(settings.SIMULATION, "Simulate attestation: for trying things out, proves nothing.", _ATTEST)
    ] = False,
    simulated_platform: Annotated[
        str | None,
        _option(settings.SIMULATED_PLATFORM, "Directory of the simulated platform.", _ATTEST, "DIR"),
    ] = None,
    simulated_enclave: Annotated[
        str | None,
        _option(settings.SIMULATED_ENCLAVE, "Who to pretend to be, as in a manifest's package.", _ATTEST, "JSON"),
    ] = None,
    insecure_no_attestation: Annotated[
        bool, _switch(settings.INSECURE, "Attest nothing and verify nobody: never with real secrets.", _ATTEST)
    ] = False,
    prometheus_addr: Annotated[
        str | None,
        _option(settings.PROMETHEUS_ADDR, "/metrics and /events, plain HTTP. Default off.", _LOGS, "HOST:PORT"),
    ] = None,
    dev_mode: Annotated[
        bool, _switch(settings.DEV_MODE, "Logs for people instead of JSON; start even without a quote.", _LOGS)
    ] = False,
    debug_logging: Annotated[bool, _switch(settings.DEBUG_LOGGING, "Log at debug level.", _LOGS)] = False,
    http_error_log_level: Annotated[
        str | None,
        _option(
            settings.HTTP_ERROR_LOG_LEVEL,
            "Level of failed TLS handshakes. Default error.",
            _LOGS,
            "debug|info|warn|error",
        ),
    ] = None,
) -> None:
    """Verify Marbles against the manifest, issue their identities, and configure the mesh over xDS.

    Each flag can also be given as the environment variable in brackets; an empty variable counts as unset. Once a
    manifest is set the state is sealed to this machine and outlives a restart. SIGHUP renews every mesh identity now,
    SIGTERM stops.

    To try it without a TEE: marblemesh coordinator --simulation --dev-mode
    """
    given = {
        settings.CLIENT_ADDR: client_addr,
        settings.MESH_ADDR: mesh_addr,
        settings.XDS_ADDR: xds_addr,
        settings.DNS_NAMES: dns_names,
        settings.STARTUP_MANIFEST: startup_manifest,
        settings.SEAL_DIR: seal_dir,
        settings.PLATFORM: platform,
        settings.PCCS_URL: pccs_url,
        settings.COLLATERAL_DIR: collateral_dir,
        settings.SIMULATION: "1" if simulation else None,
        settings.SIMULATED_PLATFORM: simulated_platform,
        settings.SIMULATED_ENCLAVE: simulated_enclave,
        settings.INSECURE: "1" if insecure_no_attestation else None,
        settings.PROMETHEUS_ADDR: prometheus_addr,
        settings.DEV_MODE: "1" if dev_mode else None,
        settings.DEBUG_LOGGING: "1" if debug_logging else None,
        settings.HTTP_ERROR_LOG_LEVEL: http_error_log_level,
    }
    serve(dict(os.environ) | {variable: value for variable, value in given.items() if value is not None}, SystemFiles())


def serve(env: Mapping[str, str], files: FileOps) -> None:
    """Be the Coordinator of this process until told to stop; its state is written by `files`. Raises typer.Exit."""
    try:
        config = CoordinatorConfig.from_env(env)
    except ConfigError as e:
        typer.echo(f"marblemesh coordinator: {e}", err=True)
        raise typer.Exit(2) from None
    configure("debug" if config.debug_logging else "info", "console" if config.dev_mode else "json", config.mark)
    logging.getLogger("hpack").setLevel(logging.WARNING)  # it logs every header at debug level
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    try:
        uvloop.run(run(config, env, version("marblemesh"), files))
    except StartError as e:
        typer.echo(f"marblemesh coordinator: {e}", err=True)
        raise typer.Exit(1) from None


def main() -> None:
    """Entry point; works behind `marblemesh coordinator` and as a module of its own."""
    behind_marblemesh = sys.argv[1:2] == ["coordinator"]
    arguments = sys.argv[2:] if behind_marblemesh else sys.argv[1:]
    sys.exit(run_program(app, arguments, "marblemesh coordinator" if behind_marblemesh else "python -m xds_server"))


if __name__ == "__main__":
    main()
