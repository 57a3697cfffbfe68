# SPDX-License-Identifier: Apache-2.0
"""A TLS front on a free port of loopback, with short times, and clients for it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.kit.marble_client import MarbleCredentials
from tests.kit.pki import shared_ca
from xds_server.tls_connection import InnerFactory, TlsFrontConfig
from xds_server.tls_context import ServerCredential
from xds_server.tls_front import TlsFront


@dataclass(slots=True)
class TlsPort:
    """`refused` collects the reasons of connections that never got to a protocol."""

    front: TlsFront
    port: int
    refused: list[str] = field(default_factory=list)

    async def connect(
        self, credentials: MarbleCredentials | None = None, *, alpn: str = "http/1.1"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=client_context(credentials, alpn))

    async def connect_plain(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


def client_context(credentials: MarbleCredentials | None = None, alpn: str = "http/1.1") -> ssl.SSLContext:
    """A client that verifies nothing."""
    if credentials is not None:
        return credentials.tls(alpn)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols([alpn])
    return context


def server_credential() -> ServerCredential:
    ca = shared_ca()
    return ServerCredential((ca.root,), ca.root_key.load())


@asynccontextmanager
async def tls_port(inner: InnerFactory, config: TlsFrontConfig | None = None) -> AsyncIterator[TlsPort]:
    """Serve `inner` behind TLS until the block ends; nothing may be left open then."""
    listener = socket.create_server(("127.0.0.1", 0))
    credential = server_credential()
    refused: list[str] = []
    front = TlsFront(
        config or TlsFrontConfig(alpn=(b"http/1.1",)),
        lambda: credential,
        inner,
        lambda _peer, reason: refused.append(reason),
    )
    await front.start(listener)
    try:
        yield TlsPort(front, listener.getsockname()[1], refused)
    finally:
        await front.stop(0)
    assert (front.connections, front.handshakes) == (0, 0)
