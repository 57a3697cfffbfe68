# SPDX-License-Identifier: Apache-2.0
"""Connections in the Linkerd stand-in: where they wanted to go, TCP and mesh TLS with half-close, two joined."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from cryptography.x509 import DNSName, SubjectAlternativeName, load_der_x509_certificate

from tests.kit.linkerd_hello import ALPN

SO_ORIGINAL_DST = 80
_CHUNK = 65536
Address = tuple[str, int]


def original_destination(sock: socket.socket) -> Address:
    """Where a redirected connection was to go (its local address if it was not redirected). Raises OSError without
    connection tracking, as on Linkerd's own listeners."""
    if sock.family == socket.AF_INET6:
        raw = sock.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28)
        return socket.inet_ntop(socket.AF_INET6, raw[8:24]), int(struct.unpack_from("!H", raw, 2)[0])
    raw = sock.getsockopt(socket.IPPROTO_IP, SO_ORIGINAL_DST, 16)
    return socket.inet_ntop(socket.AF_INET, raw[4:8]), int(struct.unpack_from("!H", raw, 2)[0])


class Flow(Protocol):
    """One side of a relayed connection."""

    async def read(self) -> bytes:
        """The next bytes, b"" at their end."""

    async def write(self, data: bytes) -> None: ...

    async def finish(self) -> None:
        """No more bytes follow from here; the other direction goes on."""

    def close(self) -> None:
        """End both directions at once."""


class Tcp:
    """A socket. Bytes may be looked at before they are read."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._ahead = b""
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def dial(cls, address: Address, seconds: float) -> Tcp:
        """Raises OSError, which TimeoutError is."""
        sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(seconds):
                await asyncio.get_running_loop().sock_connect(sock, address)
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    async def peek(self, size: int) -> bytes:
        """Bytes that are there, once there are some; they stay. b"" at the end."""
        readable = asyncio.Event()
        self._loop.add_reader(self._sock, readable.set)
        try:
            await readable.wait()
        finally:
            self._loop.remove_reader(self._sock)
        return self._sock.recv(size, socket.MSG_PEEK)

    async def read(self) -> bytes:
        if self._ahead:
            data, self._ahead = self._ahead, b""
            return data
        return await self._loop.sock_recv(self._sock, _CHUNK)

    def unread(self, data: bytes) -> None:
        self._ahead = data + self._ahead

    async def write(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._sock, data)

    async def finish(self) -> None:
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._sock.close()


class MeshTls:
    """Mesh TLS over a TCP connection, as either side; `handshake` comes first."""

    def __init__(self, inner: Tcp, context: ssl.SSLContext, server_name: str | None = None) -> None:
        """With a server name as the client."""
        self._inner = inner
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_name is None, server_name)
        self._sending = asyncio.Lock()
        self._ahead = b""

    async def handshake(self) -> None:
        """Raises ssl.SSLError, OSError."""
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._feed():
                    raise ConnectionResetError("the peer hung up in the handshake") from None
            except ssl.SSLError:
                with suppress(OSError):
                    await self._flush()  # the alert
                raise
        await self._flush()

    @property
    def announces_header(self) -> bool:
        return self._tls.selected_alpn_protocol() == ALPN

    @property
    def peer(self) -> str:
        """The peer's mesh identity, "" if it showed no certificate."""
        der = self._tls.getpeercert(binary_form=True)
        if not der:
            return ""
        names = load_der_x509_certificate(der).extensions.get_extension_for_class(SubjectAlternativeName).value
        return next(iter(names.get_values_for_type(DNSName)), "")

    async def read(self) -> bytes:
        if self._ahead:
            data, self._ahead = self._ahead, b""
            return data
        while True:
            try:
                return self._tls.read(_CHUNK)
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._feed():
                    raise ConnectionResetError("mesh TLS ended without close_notify") from None
            except ssl.SSLZeroReturnError:
                return b""

    def unread(self, data: bytes) -> None:
        self._ahead = data + self._ahead

    async def write(self, data: bytes) -> None:
        self._tls.write(data)
        await self._flush()

    async def finish(self) -> None:
        with suppress(ssl.SSLError, OSError):
            with suppress(ssl.SSLWantReadError):
                self._tls.unwrap()  # writes ours; the peer's comes with the end of its bytes
            await self._flush()
            await self._inner.finish()

    def close(self) -> None:
        self._inner.close()

    async def _feed(self) -> bool:
        data = await self._inner.read()
        self._in.write(data)
        return bool(data)

    async def _flush(self) -> None:
        async with self._sending:
            if data := self._out.read():
                await self._inner.write(data)


async def join(left: Flow, right: Flow, passed: Callable[[int, int], None]) -> None:
    """Carry bytes both ways until both directions have ended; then both are closed, as after any error. `passed` is
    told how many went from left to right, and from right to left."""

    async def carry(source: Flow, sink: Flow, forth: bool) -> None:
        while data := await source.read():
            await sink.write(data)
            passed(len(data) if forth else 0, 0 if forth else len(data))
        await sink.finish()

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(carry(left, right, forth=True))
            group.create_task(carry(right, left, forth=False))
    except* (OSError, ssl.SSLError):
        pass  # one side is gone: so is the other, below
    finally:
        left.close()
        right.close()
