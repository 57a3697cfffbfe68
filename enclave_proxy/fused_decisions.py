# SPDX-License-Identifier: Apache-2.0
"""What a fused app may do with an address: take the mesh's way, go out as it is, or be refused with the reason.

Under SGX (`closed`) whatever the manifest does not name is refused: a TCP byte there is the host's, in and out.
Elsewhere it passes, and is told once in the worker's log. A name of Outgoing with a wrong port is refused everywhere.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable

from structlog.typing import FilteringBoundLogger

from enclave_proxy.fused_routes import MadeUpAddresses, Routes, Wrong, is_numeric
from enclave_proxy.relay_config import Address, RelayConfig

# What waits for the first configuration looks this often.
_LOOK = 0.05
# How many different addresses are told in the log.
_MAX_TOLD = 100

Host = str | bytes | bytearray


class Decisions:
    """`config` gives what is in force. Called from the app's threads."""

    def __init__(self, config: Callable[[], RelayConfig | None], *, closed: bool, log: FilteringBoundLogger) -> None:
        self._config = config
        self._log = log
        self._told: set[tuple[str, str]] = set()
        self._lock = threading.RLock()
        self._made_up = MadeUpAddresses()
        self._known: tuple[RelayConfig, Routes] | None = None
        self.closed = closed

    def bind(self, kind: int, host: Host, port: int) -> str | None:
        """The UNIX path to bind instead; None: bind what was asked for. Raises PermissionError."""
        if kind == socket.SOCK_STREAM:
            routes = self._routes()
            if (path := routes.listen(port)) is not None:
                self._log.debug("the app's port is a UNIX socket", port=port, path=path)
                return path
            if routes.dials_tcp(port):
                return None
        self._foreign("listens", kind, host, port, "Incoming")
        return None

    def connect(self, kind: int, host: Host, port: int) -> Address | None:
        """Where to connect instead; None: to what was asked for. Raises PermissionError or ConnectionRefusedError."""
        if kind == socket.SOCK_STREAM:
            target = self._routes().dial(self._made_up.name_of(_text(host)), port)
            if isinstance(target, Wrong):
                raise ConnectionRefusedError(errno.ECONNREFUSED, target.reason)
            if target is not None:
                return target
        self._foreign("connects", kind, host, port, "Outgoing")
        return None

    def resolve(self, host: object, port: object) -> str | None:
        """The IPv4 address to answer with; None: look it up. Raises socket.gaierror."""
        if not isinstance(host, str | bytes | bytearray):
            return None
        name, number, routes = _text(host), port_number(port), self._routes()
        if routes.has_name(name, number):
            return self._made_up.address_of(name)
        if isinstance(wrong := routes.dial(name, number), Wrong) and number:
            raise socket.gaierror(socket.EAI_NONAME, wrong.reason)
        if self.closed and not is_numeric(name):
            raise socket.gaierror(
                socket.EAI_NONAME,
                f"{name} port {number} is not in the manifest's Outgoing, and under SGX nothing else is looked up",
            )
        return None

    def _routes(self) -> Routes:
        told = False
        while (config := self._config()) is None:
            if not told:
                self._log.warning("the app opens a socket, but no configuration is in force yet: it has to wait")
                told = True
            time.sleep(_LOOK)
        known = self._known
        if known is None or known[0] is not config:
            known = self._known = (config, Routes.of(config))
        return known[1]

    def _foreign(self, verb: str, kind: int, host: Host, port: int, member: str) -> None:
        what = f"{'TCP' if kind == socket.SOCK_STREAM else 'UDP'} {_text(host) or '*'} port {port}"
        if self.closed:
            raise PermissionError(
                errno.EACCES,
                f"{what}: not in the manifest's {member}, and under SGX the host would read it: name it there",
            )
        with self._lock:
            if (verb, what) in self._told or len(self._told) >= _MAX_TOLD:
                return
            self._told.add((verb, what))
        self._log.warning(
            "the app is in plaintext outside the mesh; under SGX this is refused", what=verb, address=what
        )


def _text(host: Host) -> str:
    return host if isinstance(host, str) else bytes(host).decode("ascii", errors="replace")


def port_number(port: object) -> int:
    """As getaddrinfo takes it: a number, its digits, the name of a service, or nothing."""
    if isinstance(port, bytes):
        port = port.decode("ascii", errors="replace")
    if isinstance(port, str):
        if port.isascii() and port.isdigit():
            return int(port)
        try:
            return socket.getservbyname(port) if port else 0
        except OSError:
            return 0
    return port if isinstance(port, int) else 0
