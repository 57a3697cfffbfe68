# SPDX-License-Identifier: Apache-2.0
"""A small world around a relay under test: an app on a UNIX socket, TLS clients of every kind, free ports."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from enclave_proxy.limits import Limits
from enclave_proxy.relay import Relay
from enclave_proxy.relay_config import (
    Inbound,
    Outbound,
    PeerRule,
    SanMatcher,
    TcpAddress,
    UnixAddress,
)
from sds.ca import CertificateAuthority
from sds.identity import type_prefix
from sds.logs import get_logger
from sds.material import Identity, TrustBundle
from sds.tls import client_context
from tests.kit.pki import marble

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
LOOPBACK = TcpAddress("127.0.0.1", 0)
FAST = Limits(handshake_timeout=0.3, connect_timeout=1.0, endpoint_wait=0.3, linger=1.0)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@dataclass
class App:
    """An app on a UNIX socket that remembers how many connections it has ever seen."""

    path: Path
    handler: Handler = echo
    accepted: int = 0
    _server: asyncio.Server | None = field(default=None, repr=False)
    _handlers: set[asyncio.Task[None]] = field(default_factory=set, repr=False)

    @property
    def address(self) -> UnixAddress:
        return UnixAddress(str(self.path))

    async def __aenter__(self) -> App:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for _turn in range(3):  # what was accepted just now gets its handler within two turns of the loop
            await asyncio.sleep(0)
        for task in self._handlers:
            task.cancel()
        while self._handlers:
            await asyncio.wait(self._handlers)

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.get_running_loop().create_task(self._handle(reader, writer))
        self._handlers.add(task)
        task.add_done_callback(self._handlers.discard)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError):
                await self.handler(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def relay(limits: Limits = FAST) -> AsyncIterator[Relay]:
    made = Relay(get_logger("relay"), limits)
    try:
        yield made
    finally:
        await made.close()
        assert made.counters.bugs == 0


def port(made: Relay, name: str) -> TcpAddress:
    """Where the listener `name` of a relay really listens."""
    address = made.addresses[name]
    assert isinstance(address, TcpAddress)
    return address


def only(ca: CertificateAuthority, marble_type: str) -> PeerRule:
    return PeerRule((SanMatcher("uri", prefix=type_prefix(ca.trust_domain, marble_type)),))


def inbound(
    ca: CertificateAuthority,
    app: App,
    *,
    identity: Identity | None = None,
    bundle: TrustBundle | None = None,
    peers: PeerRule | None = None,
    name: str = "in",
    bind: TcpAddress = LOOPBACK,
    require: bool = True,
) -> Inbound:
    """A listener in front of `app` that takes Marbles of type `web`."""
    who = identity or marble(ca, "backend")
    rule = only(ca, "web") if peers is None else peers
    return Inbound(name, bind, app.address, who, bundle or ca.bundle, require, rule)


def outbound(
    ca: CertificateAuthority,
    listen: Path | TcpAddress,
    *endpoints: TcpAddress,
    identity: Identity | None = None,
    peer: PeerRule | None = None,
    name: str = "out",
) -> Outbound:
    """A listener for the app that dials Marbles of type `backend`."""
    where = UnixAddress(str(listen)) if isinstance(listen, Path) else listen
    rule = only(ca, "backend") if peer is None else peer
    return Outbound(name, where, endpoints, identity or marble(ca, "web"), ca.bundle, rule, "backend.test")


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(address: TcpAddress, context: ssl.SSLContext | None) -> Streams:
    if context is None:
        return await asyncio.open_connection(address.host, address.port)
    return await asyncio.open_connection(address.host, address.port, ssl=context, server_hostname="")


async def dial(address: TcpAddress, identity: Identity | None, bundle: TrustBundle) -> Streams:
    """Connect to an inbound listener as a peer with this identity (None: without certificate)."""
    return await connect(address, client_context(identity, bundle))


async def ask(streams: Streams, message: bytes = b"ping") -> bytes:
    """Send a message and read as much back; less if the other side ended the connection."""
    reader, writer = streams
    try:
        writer.write(message)
        await writer.drain()
        return await reader.readexactly(len(message))
    except asyncio.IncompleteReadError as e:
        return e.partial
    except (ConnectionError, ssl.SSLError):
        return b""


async def hang_up(streams: Streams) -> None:
    writer = streams[1]
    writer.close()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        await writer.wait_closed()


async def try_to_ask(address: TcpAddress, context: ssl.SSLContext | None, message: bytes = b"ping") -> bytes:
    """What a client gets that may be refused at any point: empty if it gets nothing."""
    try:
        streams = await connect(address, context)
    except (ConnectionError, ssl.SSLError):
        return b""
    try:
        return await ask(streams, message)
    finally:
        await hang_up(streams)
