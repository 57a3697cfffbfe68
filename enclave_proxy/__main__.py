# SPDX-License-Identifier: Apache-2.0
"""`marblemesh proxy run [flags] [--] CMD...`: the worker's command line, and the only reader of its environment."""

from __future__ import annotations

import logging
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from structlog.typing import FilteringBoundLogger

from enclave_proxy import capture_settings
from enclave_proxy import config as settings
from enclave_proxy.collector import spare_what_is_loaded
from enclave_proxy.config import Setting, WorkerConfig
from enclave_proxy.descriptors import take_all
from enclave_proxy.errors import ConfigError, ProxyError
from enclave_proxy.fused import Fused
from enclave_proxy.fused_logs import private_logger
from enclave_proxy.signals import Signals
from enclave_proxy.worker import Worker
from sds.command_line import run as run_program
from sds.errors import SdsError
from sds.logs import configure, get_logger

app = typer.Typer(
    name="proxy",
    help="The worker in front of an app, inside its TEE.",
    epilog="What a running one does: marblemesh proxy status",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # they print local variables, which may be keys
)


def _option(setting: Setting, text: str, metavar: str) -> typer.models.OptionInfo:
    return typer.Option(f"--{setting.flag}", help=f"{text} [{setting.env}]", metavar=metavar, show_default=False)  # type: ignore[no-any-return]


def _switch(setting: Setting, text: str) -> typer.models.OptionInfo:
    return typer.Option(f"--{setting.flag}", help=f"{text} [{setting.env}]", show_default=False)  # type: ignore[no-any-return]


@app.callback()
def _group() -> None:
    """Keep `run` a word of its own, so that other verbs can come beside it."""


@app.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
def run(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[--] CMD...", help="The app and its arguments.")
    ] = None,
    marble_type: Annotated[
        str | None, _option(settings.MARBLE_TYPE, "This Marble's name in the manifest.", "NAME")
    ] = None,
    coordinator_addr: Annotated[
        str | None, _option(settings.COORDINATOR, "Marble API, localhost:2001.", "HOST:PORT")
    ] = None,
    dns_names: Annotated[str | None, _option(settings.DNS_NAMES, "Own names and IPs, localhost.", "NAMES")] = None,
    uuid_file: Annotated[str | None, _option(settings.UUID_FILE, "Who this instance is, ./uuid.", "FILE")] = None,
    xds_addr: Annotated[str | None, _option(settings.XDS, "xDS, port 18000 of the Coordinator.", "HOST:PORT")] = None,
    client_addr: Annotated[
        str | None, _option(settings.CLIENT_API, "Client API (pins), port 4433.", "HOST:PORT")
    ] = None,
    era_config: Annotated[
        str | None, _option(settings.ERA_CONFIG, "Attest the Coordinator against this.", "FILE")
    ] = None,
    manifest_fingerprint: Annotated[
        str | None, _option(settings.FINGERPRINT, "The manifest it must run.", "HEX")
    ] = None,
    advertise: Annotated[str | None, _option(settings.ADVERTISE, "Where peers find this Marble.", "NAME|IP")] = None,
    run_dir: Annotated[str | None, _option(settings.RUN_DIR, "Where sockets lie.", "DIR")] = None,
    sds_socket: Annotated[str | None, _option(settings.SDS_SOCKET, "DIR/sds.sock, or off.", "PATH")] = None,
    workload_socket: Annotated[
        str | None, _option(settings.WORKLOAD_SOCKET, "SPIFFE Workload API and SDS, DIR/workload.sock, or off.", "PATH")
    ] = None,
    socket_mode: Annotated[str | None, _option(settings.SOCKET_MODE, "Of both sockets, 0600.", "MODE")] = None,
    socket_owner: Annotated[str | None, _option(settings.SOCKET_OWNER, "Of both sockets.", "UID")] = None,
    socket_group: Annotated[str | None, _option(settings.SOCKET_GROUP, "Of both sockets.", "GID")] = None,
    socket_allow_uids: Annotated[
        str | None, _option(settings.SOCKET_UIDS, "Who may connect besides the worker's own user.", "UIDS")
    ] = None,
    socket_allow_gids: Annotated[str | None, _option(settings.SOCKET_GIDS, "The same, by group.", "GIDS")] = None,
    admin_addr: Annotated[str | None, _option(settings.ADMIN, "127.0.0.1:15090, or off.", "HOST:PORT")] = None,
    relay: Annotated[str | None, _option(settings.RELAY, "off: a co-located Envoy carries the data.", "on|off")] = None,
    concurrency: Annotated[
        str | None, _option(settings.CONCURRENCY, "Processes that relay, 1; under SGX never more.", "N")
    ] = None,
    limits: Annotated[
        str | None,
        _option(settings.LIMITS, "The relay's bounds, such as handshake-timeout=5,connections=16000.", "NAME=N,..."),
    ] = None,
    restart: Annotated[
        str | None, _option(settings.RESTART, "When the app ends: never (default), on-failure or always.", "POLICY")
    ] = None,
    app_timeout: Annotated[
        str | None, _option(settings.APP_TIMEOUT, "Readiness waits for the app to listen, 30; 0: not.", "SECONDS")
    ] = None,
    drain: Annotated[
        str | None, _option(settings.DRAIN, "On SIGTERM: for peers' connections to end, 10.", "SECONDS")
    ] = None,
    app_grace: Annotated[
        str | None, _option(settings.APP_GRACE, "After that: the app, from SIGTERM to SIGKILL, 10.", "SECONDS")
    ] = None,
    offline_state: Annotated[
        str | None,
        _option(settings.OFFLINE_STATE, "Sealed, for a start without Coordinator, UUID_FILE.offline.", "FILE"),
    ] = None,
    offline_after: Annotated[
        str | None, _option(settings.OFFLINE_AFTER, "Ask the Coordinator for so long before that, 10.", "SECONDS")
    ] = None,
    access_log: Annotated[
        str | None, _option(settings.ACCESS_LOG, "A line of JSON for each connection, off; - is stdout.", "FILE|-")
    ] = None,
    capture: Annotated[
        str | None,
        _option(capture_settings.CAPTURE, "Redirect the app's plain TCP, off; not in SGX.", "off|nft|iptables|auto"),
    ] = None,
    app_user: Annotated[
        str | None, _option(capture_settings.APP_USER, "Whom the app runs as, the worker's own.", "UID[:GID]")
    ] = None,
    capture_proxies: Annotated[
        str | None, _option(capture_settings.PROXIES, "Other meshes' proxies: users, 2102 (Linkerd).", "UIDS|none")
    ] = None,
    fused: Annotated[bool, _switch(settings.FUSED, "Run CMD, a Python program, in the worker's own process.")] = False,
    simulation: Annotated[bool, _switch(settings.SIMULATION, "No TEE: quotes prove nothing.")] = False,
    simulated_platform: Annotated[str | None, _option(settings.SIMULATED_PLATFORM, "Its state.", "DIR")] = None,
    simulated_enclave: Annotated[str | None, _option(settings.SIMULATED_ENCLAVE, "What to pretend.", "JSON")] = None,
    platform: Annotated[str | None, _option(settings.PLATFORM, "auto, gramine[:DIR] or tdx[:DIR].", "KIND")] = None,
    pccs_url: Annotated[str | None, _option(settings.PCCS_URL, "Collateral, to attest the Coordinator.", "URL")] = None,
    collateral_dir: Annotated[str | None, _option(settings.COLLATERAL_DIR, "The same, from files.", "DIR")] = None,
    log_format: Annotated[str | None, _option(settings.LOG_FORMAT, "json or text.", "FORMAT")] = None,
    log_level: Annotated[str | None, _option(settings.LOG_LEVEL, "debug, info, warning or error.", "LEVEL")] = None,
    debug: Annotated[bool, _switch(settings.DEBUG, "The same as --log-level debug.")] = False,
) -> None:
    """Prove this Marble to the Coordinator, start CMD, and carry its traffic in mTLS.

    SIGTERM, SIGINT and SIGQUIT end it in order: not ready any more and nothing new accepted, peers' connections end by
    themselves (--drain), then the app is told and ends (--app-grace). A second signal ends the stage that it is in.

    The app's own program comes from the manifest (Parameters.Argv) if it has one there, else it is CMD. Exits with the
    app's status (128+n if signal n killed it); 2 for wrong settings, 127 if there is no such program, 1 for the rest.
    """
    values = dict(locals())
    values.pop("command")
    flags = {name.replace("_", "-"): _text(value) for name, value in values.items() if value}
    raise typer.Exit(_run(flags, tuple(command or ())))


def _text(value: str | bool) -> str:
    return value if isinstance(value, str) else "on"


def _run(flags: dict[str, str], command: tuple[str, ...]) -> int:
    env = dict(os.environ)
    try:
        config = WorkerConfig.load(env, flags, command, cwd=Path.cwd(), runtime_dir=_runtime_dir(env))
    except ConfigError as error:
        typer.echo(f"marblemesh proxy: {error}", err=True)
        return error.exit_code
    configure(config.log_level, config.log_format, config.simulation)
    logging.getLogger("hpack").setLevel(logging.WARNING)  # it logs every header of every request at debug level
    logging.getLogger("grpclib.server").setLevel(logging.CRITICAL)  # a traceback for whatever a client does wrong
    log = get_logger("worker", marble_type=config.marble_type)
    # A core dump is every key in one file on the host's disk. The app inherits this and may raise it again.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    descriptors = take_all()
    if not config.fused:
        return _work(Worker(config, env, log, descriptors=descriptors), log)
    log = private_logger(marble_type=config.marble_type)
    fused = Fused(log)
    return fused.run(lambda: _work(Worker(config, env, log, Signals(fused.signals.caught), fused), log))


def _work(worker: Worker, log: FilteringBoundLogger) -> int:
    spare_what_is_loaded()
    try:
        return uvloop.run(worker.run())
    except (ProxyError, SdsError) as error:
        log.error("cannot go on", reason=str(error))
        return error.exit_code if isinstance(error, ProxyError) else ProxyError.exit_code


def _runtime_dir(env: dict[str, str]) -> Path:
    """Where run directories lie by default: what the system gives for that, else a directory of the user's own."""
    if runtime := env.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "marblemesh"
    if os.geteuid() == 0:
        return Path("/run/marblemesh")
    return Path(tempfile.gettempdir()) / f"marblemesh-{os.geteuid()}"


def main() -> None:
    """Run, whether called as `marblemesh proxy ...` or as `python -m enclave_proxy ...`."""
    arguments = sys.argv[2:] if sys.argv[1:2] == ["proxy"] else sys.argv[1:]
    sys.exit(run_program(app, arguments, "marblemesh proxy"))


if __name__ == "__main__":
    main()
