# SPDX-License-Identifier: Apache-2.0
"""The sockets that an app is given: `NAME=unix:PATH` in its environment."""

from __future__ import annotations

import os
import sys

from aiohttp import ClientSession, ClientTimeout, UnixConnector, web


def socket_path(name: str) -> str:
    """The path in the environment variable `name`; ends the program with one line when it is not `unix:PATH`."""
    value = os.environ.get(name, "")
    scheme, _, path = value.partition(":")
    if scheme != "unix" or not path:
        sys.exit(f"{name} is {value!r}, expected unix:PATH of a UNIX socket")
    return path


def serve(app: web.Application) -> None:
    """Serve on the socket that `LISTEN` names until SIGTERM or SIGINT."""
    web.run_app(app, path=socket_path("LISTEN"), print=None, access_log=None, shutdown_timeout=1)


def client(name: str) -> ClientSession:
    """A client of the service behind the socket that the variable `name` names; its connections are kept and reused."""
    # The host name is never looked up: every connection goes to the socket.
    return ClientSession(
        f"http://{name.lower()}", connector=UnixConnector(path=socket_path(name)), timeout=ClientTimeout(total=10)
    )
