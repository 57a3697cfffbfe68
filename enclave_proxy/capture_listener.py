# SPDX-License-Identifier: Apache-2.0
"""Where redirected connections arrive: one port on 127.0.0.1 and ::1, which nobody outside this machine can reach.

It also tells whether redirection works at all: a probe is a connection like the app's, made as the app's user, to where
an app could dial. If it does not arrive here, an app's would not either.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from enclave_proxy.errors import StartError
from enclave_proxy.listener import BACKLOG, accept_all, tune
from enclave_proxy.original_destination import original_destination
from enclave_proxy.relay_config import TcpAddress

# A probe goes no further than the loopback interface, unless it is led astray.
PROBE = 2.0
_BIND_ATTEMPTS = 20
_NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})

Take = Callable[[socket.socket, TcpAddress], None]
Refuse = Callable[[socket.socket, str], None]


class CaptureListener:
    """Make it, give it tasks with `serve`, close it. `take` gets what was redirected, `refuse` what was not; `failed`
    hears when accepting fails. None of them waits: probes are not to stand in a queue with what an app sends."""

    def __init__(self, take: Take, refuse: Refuse, failed: Callable[[OSError], None]) -> None:
        """Binds. Raises StartError."""
        self._take = take
        self._refuse = refuse
        self._failed = failed
        self._probes: dict[tuple[str, int], asyncio.Future[TcpAddress]] = {}
        self._sockets = _bind()
        self.port: int = self._sockets[0].getsockname()[1]

    def serve(self) -> list[Coroutine[Any, Any, None]]:
        """The loops that accept, one for each family: to be run by the owner until they are cancelled."""
        return [accept_all(each, self._arrived, self._failed) for each in self._sockets]

    def close(self) -> None:
        """Accept nothing any more."""
        for each in self._sockets:
            each.close()

    async def _arrived(self, connection: socket.socket) -> None:
        try:
            meant = original_destination(connection)
        except OSError as error:
            self._refuse(connection, f"was not redirected: {error.strerror}")
            return
        try:
            client = connection.getpeername()[:2]
        except OSError as error:
            self._refuse(connection, f"has gone already: {error.strerror}")
            return
        if (probe := self._probes.pop(client, None)) is not None:
            connection.close()
            if not probe.done():
                probe.set_result(meant)
            return
        if meant == TcpAddress(*connection.getsockname()[:2]):
            # Somebody dials this port itself. Taken at its word it would be going to us again, and again.
            self._refuse(connection, f"was made to the capture port {self.port} itself, not redirected")
            return
        self._take(connection, meant)

    async def probe(self, targets: Iterable[TcpAddress], uid: int) -> str | None:
        """Dial the first of these addresses that has a route, as this user; None if that arrives here. It does, too, if
        none has a route: then nothing of this family leaves. Raises nothing."""
        for target in targets:
            family = socket.AF_INET6 if ":" in target.host else socket.AF_INET
            try:
                connection = _as_user(uid, family)
            except OSError as error:
                if error.errno in _NO_ROUTE:
                    continue
                return f"cannot make a socket as user {uid}: {error.strerror}"
            with connection:
                number = connection.connect_ex((target.host, target.port))
                if number in _NO_ROUTE or (own := connection.getsockname())[0] == target.host:
                    continue  # one of this machine's own addresses goes over lo, where nothing is redirected
                if number not in (0, errno.EINPROGRESS):
                    return f"a probe to {target} failed: {os.strerror(number)}"
                return await self._await_probe(connection, (own[0], own[1]), target)
        return None

    async def _await_probe(self, connection: socket.socket, own: tuple[str, int], target: TcpAddress) -> str | None:
        arrived = self._probes[own] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(PROBE):
                meant = await arrived
        except TimeoutError:
            number = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            why = f" ({os.strerror(number)})" if number else ""
            return f"a probe to {target} as the app's user did not arrive at the worker{why}"
        finally:
            self._probes.pop(own, None)
        return None if meant == target else f"a probe to {target} arrived as one to {meant}"


def _bind() -> list[socket.socket]:
    """One port on both loopback addresses; on one where there is no IPv6."""
    problem: OSError | None = None
    for _ in range(_BIND_ATTEMPTS):
        v4 = _bound(socket.AF_INET, "127.0.0.1", 0)
        try:
            return [v4, _bound(socket.AF_INET6, "::1", v4.getsockname()[1])]
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                return [v4]
            v4.close()
            problem = error
    raise StartError(f"no port is free on both 127.0.0.1 and ::1 for captured connections: {problem}")


def _bound(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        tune(made)
        made.bind((host, port))
        made.listen(BACKLOG)
    except BaseException:
        made.close()
        raise
    return made


def _as_user(uid: int, family: socket.AddressFamily) -> socket.socket:
    """A socket that belongs to another user, to the packet filter at least: who makes a socket is who it is of, and the
    kernel looks at the file system's user id for that. It is this thread's alone (setfsuid(2)), and only while the
    socket is made."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.setfsuid(uid)
    try:
        if libc.setfsuid(-1) != uid:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    finally:
        libc.setfsuid(os.geteuid())
