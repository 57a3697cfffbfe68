# SPDX-License-Identifier: Apache-2.0
"""`marblemesh injector`: the command line, and the only reader of arguments.

The flags are those of MarbleRun's injector, with two dashes and the same meaning, and `marblemesh inject`'s.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from marblemesh.cli.errors import CliError
from marblemesh.cli.inject_options import InjectSettings, with_inject_settings
from marblemesh.injector.certificate import CertificateError, ServedCertificate
from marblemesh.injector.metrics import InjectorMetrics
from marblemesh.injector.server import InjectorServer
from sds.command_line import run as run_program
from sds.logs import configure, get_logger

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
_log = get_logger("injector")


@app.command()
@with_inject_settings()
def injector(
    injection: InjectSettings,
    tls_cert_file: Annotated[Path, typer.Option("--tls-cert-file", metavar="FILE", help="PEM, with its chain.")],
    tls_key_file: Annotated[Path, typer.Option("--tls-key-file", metavar="FILE", help="PEM, its key.")],
    listen: Annotated[str, typer.Option(metavar="IP:PORT", help="Where to listen; an empty IP is all of them.")] = (
        ":8443"
    ),
    log_format: Annotated[str, typer.Option(metavar="json|text", help="Of the log on stderr.")] = "json",
    debug: Annotated[bool, typer.Option("--debug", help="Log at debug level.")] = False,
) -> None:
    """Serve the admission webhook that makes Marbles of labelled pods when they are created.

    HTTPS: POST /mutate (AdmissionReview v1 and v1beta1), GET /healthz, GET /metrics. The certificate is read again when
    its files change. A pod that cannot be a Marble is denied, with the reason. SIGTERM stops.
    """
    if log_format not in ("json", "text"):
        raise typer.BadParameter(f"--log-format: {log_format!r} is not json or text")
    host, port = _address(listen)
    configure(
        "debug" if debug else "info", "json" if log_format == "json" else "console", injection.settings.simulation
    )
    logging.getLogger("injector.http").setLevel(logging.CRITICAL)  # a traceback for whatever a client does wrong
    metrics = InjectorMetrics()
    try:
        certificate = ServedCertificate(tls_cert_file, tls_key_file, metrics.certificate_loaded)
        listener = _bound(host, port)
    except (CertificateError, OSError) as error:
        typer.echo(f"marblemesh injector: {error}", err=True)
        raise typer.Exit(1) from None
    asyncio.run(_serve(InjectorServer(injection.settings, certificate, metrics), listener))


async def _serve(server: InjectorServer, listener: socket.socket) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await server.start(listener)
    _log.info("listening", port=listener.getsockname()[1])
    await stopped.wait()
    await server.stop()
    _log.info("stopped")


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
        raise typer.BadParameter(f"--listen: {text[:80]!r} is not IP:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _bound(host: str, port: int) -> socket.socket:
    """All addresses of both families for an empty host. Raises OSError that names the address."""
    try:
        if host:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server((host, port), family=family, backlog=1024)
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        return socket.create_server(("", port), family=family, dualstack_ipv6=dual, backlog=1024)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}") from None


def main() -> None:
    """Run, whether called as `marblemesh injector ...` or as `python -m marblemesh.injector ...`."""
    arguments = sys.argv[2:] if sys.argv[1:2] == ["injector"] else sys.argv[1:]
    try:
        sys.exit(run_program(app, arguments, "marblemesh injector"))
    except CliError as error:
        typer.echo(f"marblemesh injector: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
