# SPDX-License-Identifier: Apache-2.0
"""`marblemesh proxy status`: a running worker in one screen, from its admin port."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from marblemesh.cli.output import Format, OutputFormat, print_json
from marblemesh.cli.proxy_pages import NoWorker, fetch
from marblemesh.cli.proxy_report import report
from marblemesh.cli.proxy_view import show

# Where `marblemesh proxy run` listens unless it is told otherwise (the worker's code is not loaded for that).
DEFAULT_ADDRESS = "127.0.0.1:15090"
NOT_READY, NO_ANSWER = 1, 2


def status(
    admin_addr: Annotated[
        str,
        typer.Option("--admin-addr", metavar="HOST:PORT", help="The worker's admin port, its own --admin-addr."),
    ] = DEFAULT_ADDRESS,
    output: OutputFormat = Format.TEXT,
) -> None:
    """Print what a running worker is and does: is it ready and why not, certificates, the Coordinator, listeners with
    their connections, bytes and refusals, peers' endpoints, pushes that were refused, restarts.

    Exit status: 0 it is ready, 1 it is not, 2 nobody answers there or the command line is wrong. Under SGX a worker
    serves numbers only: addresses, endpoints and reasons are missing then.
    """
    host, port = _address(admin_addr)
    try:
        found = report(fetch(host, port), datetime.now(UTC))
    except (NoWorker, KeyError, ValueError, TypeError, AttributeError) as error:
        what = str(error) if isinstance(error, NoWorker) else "its pages are not those of this version's worker"
        typer.secho(
            f"marblemesh: no worker at {admin_addr}: {what}; give its --admin-addr (its log says 'admin listening')",
            fg=typer.colors.RED,
            err=True,
        )
        raise typer.Exit(NO_ANSWER) from None
    if output is Format.JSON:
        print_json(found)
    else:
        show(found)
    if not found["ready"]:
        raise typer.Exit(NOT_READY)


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise typer.BadParameter(f"--admin-addr {text!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)
