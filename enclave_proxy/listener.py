# SPDX-License-Identifier: Apache-2.0
"""Listening sockets and the accept loop.

The loop accepts plain sockets and hands each to a handler together with the `Serving` value that is current at that
moment: routes and TLS context in one frozen value, so that no connection sees new routes with an old identity.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from enclave_proxy.errors import ProxyError
from enclave_proxy.relay_config import Address, Inbound, Outbound, TcpAddress, UnixAddress
from enclave_proxy.stream import Watch
from enclave_proxy.tls_context import TlsContext

# How many finished TCP handshakes the kernel keeps for us: covers half a second at 2000 new connections per second.
BACKLOG = 1024
# Pause after accept() failed for want of descriptors or memory: soon enough to go on, rare enough not to spin.
ACCEPT_RETRY = 0.1
# Connections accepted before others have their turn: about a millisecond.
ACCEPT_ROW = 16
# sizeof(sockaddr_un.sun_path) - 1 on Linux.
MAX_UNIX_PATH = 107


class RelayError(ProxyError):
    """A relay configuration that cannot be put to work. Nothing has changed; the text says what is in the way."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What a connection accepted now gets: its route, and the TLS context made from that route's identity."""

    route: Inbound | Outbound
    context: TlsContext


class Listener:
    """One bound socket. `serving` is replaced as a whole; the socket stays."""

    def __init__(self, bound: socket.socket, address: Address, serving: Serving) -> None:
        self._socket = bound
        self._file = _identity_of(address)
        self._accepting: asyncio.Task[None] | None = None
        self.address = _actual(bound, address)
        self.serving = serving

    def start(
        self,
        spawn: Callable[[Callable[[], Awaitable[None]]], asyncio.Task[None]],
        handle: Callable[[socket.socket, Listener], Awaitable[None]],
        failed: Callable[[Listener, OSError], None],
    ) -> None:
        """Begin to accept, in a task of the owner; `handle` may wait to slow the accepting down."""
        self._accepting = spawn(lambda: self._accept(handle, failed))

    async def close(self) -> None:
        """Stop accepting and remove the socket file. Accepted connections are not touched."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait((self._accepting,))
        self.abandon()

    def abandon(self) -> None:
        """Close the socket of a listener that accepts nothing."""
        self._socket.close()
        if isinstance(self.address, UnixAddress) and self._file == _identity_of(self.address):
            Path(self.address.path).unlink(missing_ok=True)

    async def _accept(
        self,
        handle: Callable[[socket.socket, Listener], Awaitable[None]],
        failed: Callable[[Listener, OSError], None],
    ) -> None:
        await accept_all(self._socket, lambda connection: handle(connection, self), lambda error: failed(self, error))


async def accept_all(
    bound: socket.socket, handle: Callable[[socket.socket], Awaitable[None]], failed: Callable[[OSError], None]
) -> None:
    """Accept until this is cancelled; `handle` owns what it is given. Not by the loop's `sock_accept`: what that has
    accepted in the moment in which it is cancelled nobody ever closes."""
    watch = Watch(bound.fileno())
    row = 0
    try:
        while True:
            try:
                connection, _ = bound.accept()
            except BlockingIOError:
                await watch.readable()
                row = 0
                continue
            except OSError as e:
                # ECONNABORTED and the like concern one connection, EMFILE and ENOMEM all of them for a while.
                failed(e)
                await asyncio.sleep(ACCEPT_RETRY)
                continue
            connection.setblocking(False)
            await handle(connection)
            row += 1
            if row % ACCEPT_ROW == 0:
                await asyncio.sleep(0)
    finally:
        watch.close()


def bind(address: Address) -> socket.socket:
    """A bound, listening, non-blocking socket. Raises RelayError that names the address and what is wrong with it."""
    try:
        return _bind_unix(address) if isinstance(address, UnixAddress) else _bind_tcp(address)
    except OSError as e:
        raise RelayError(f"cannot listen on {address}: {e.strerror or e}") from e
    except (OverflowError, ValueError) as e:
        raise RelayError(f"cannot listen on {address}: {e}") from e


def _bind_tcp(address: TcpAddress) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    socket.inet_pton(family, address.host)  # a name would be looked up right here, with the whole event loop waiting
    bound = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        tune(bound)
        bound.bind((address.host, address.port))
        bound.listen(BACKLOG)
    except BaseException:
        bound.close()
        raise
    return bound


def tune(connection: socket.socket) -> None:
    """Options for a TCP connection that carries other people's messages; one that is accepted has its listener's.

    asyncio sets TCP_NODELAY only on sockets that it made itself; without it a request in two writes waits 40 ms.
    Keepalive ends connections whose peer vanished without a word, after 60 + 4 * 15 seconds.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


def _bind_unix(address: UnixAddress) -> socket.socket:
    if len(os.fsencode(address.path)) > MAX_UNIX_PATH:
        raise RelayError(f"cannot listen on {address}: a socket path has at most {MAX_UNIX_PATH} bytes")
    _remove_stale(address)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        bound.bind(address.path)
        # Between bind and listen nobody can connect yet, so that the file is never open to more users than intended.
        Path(address.path).chmod(address.mode)
        bound.listen(BACKLOG)
    except BaseException:
        bound.close()
        raise
    return bound


def _remove_stale(address: UnixAddress) -> None:
    """Remove the socket file that a dead process left behind; one that somebody answers on is an error."""
    path = Path(address.path)
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise RelayError(f"cannot listen on {address}: there is a file of another kind, remove it or choose a path")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(address.path)
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass  # its backlog is full, so somebody owns it
    raise RelayError(f"cannot listen on {address}: another process answers there, stop it or choose another path")


def _actual(bound: socket.socket, address: Address) -> Address:
    if isinstance(address, TcpAddress) and address.port == 0:
        return TcpAddress(address.host, bound.getsockname()[1])
    return address


def _identity_of(address: Address) -> tuple[int, int] | None:
    """Which file lies at a UNIX address, so that only our own is ever removed."""
    if not isinstance(address, UnixAddress):
        return None
    try:
        found = Path(address.path).lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
