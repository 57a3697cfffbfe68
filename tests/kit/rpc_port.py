# SPDX-License-Identifier: Apache-2.0
"""An RpcPort on loopback for the Marbles of a Town, and a client of it that can misbehave: TLS by the standard library,
HTTP/2 by the `h2` library, and any bytes in between."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Self

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded, TrailersReceived

from sds.material import Identity, TrustBundle
from sds.tls import client_context
from tests.kit.rpc_peer import Answer, Fields, framed
from tests.kit.xds_mesh import Town, manifest
from xds_server.rpc import Handler
from xds_server.rpc_port import LinkTimes
from xds_server.rpc_server import PortLimits, RpcPort
from xds_server.xds_credentials import ServerTls

PATIENCE = 10.0


def head_of(path: str) -> Fields:
    return [
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":path", path.encode()),
        (b":authority", b"coordinator"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]


@dataclass
class Opened:
    """The port, who may come, and what it refused."""

    town: Town
    tls: ServerTls
    port: RpcPort
    number: int
    refused: list[str]

    def context(self, identity: Identity | None, *, alpn: str = "h2") -> ssl.SSLContext:
        trusted = TrustBundle(self.town.ca.chain_pem)
        context = client_context(identity, trusted, ssl.TLSVersion.TLSv1_2)
        context.set_alpn_protocols([alpn])
        return context

    async def dial(self, context: ssl.SSLContext | None = None) -> Client:
        """A client that has finished its handshake; without a context one of its own identity."""
        context = context or self.context(self.town.activate("web").identity)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.number, ssl=context, server_hostname="", limit=1 << 24
        )
        return Client(reader, writer)


@asynccontextmanager
async def opened(
    handlers: Mapping[str, Handler], *, limits: PortLimits | None = None, times: LinkTimes | None = None
) -> AsyncIterator[Opened]:
    town = Town(manifest({}, {"web": []}))
    tls = ServerTls(town.ca, town.mesh.trusted_certificates(), town.time)
    refused: list[str] = []
    port = RpcPort(handlers, tls, refused=lambda _, reason: refused.append(reason), limits=limits, times=times)
    number = await port.start("127.0.0.1", 0)
    try:
        yield Opened(town, tls, port, number, refused)
    finally:
        await port.stop(0)


class Client:
    """One connection; `answer` waits for the end of a stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        self.h2.initiate_connection()
        self.answers: dict[int, Answer] = {}
        self.goaway: int | None = None
        self.reading = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()
        with suppress(OSError):
            await self.writer.wait_closed()

    async def call(self, path: str, *messages: bytes, end: bool = False) -> int:
        number = self.h2.get_next_available_stream_id()
        self.answers[number] = Answer()
        self.h2.send_headers(number, head_of(path))
        for body in messages:
            self.h2.send_data(number, framed(body))
        if end:
            self.h2.end_stream(number)
        await self.flush()
        return number

    async def say(self, number: int, body: bytes) -> None:
        self.h2.send_data(number, framed(body))
        await self.flush()

    async def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())
        await self.writer.drain()

    async def hear(self) -> bool:
        """Take in what comes next; False at the end of the connection."""
        async with asyncio.timeout(PATIENCE):
            data = await self.reader.read(1 << 16)
        for event in self.h2.receive_data(data):
            match event:
                case ConnectionTerminated(error_code=code):
                    self.goaway = int(code or 0)
                case ResponseReceived(headers=headers, stream_id=number):
                    self.answers[number or 0].head = dict(headers or ())
                case TrailersReceived(headers=headers, stream_id=number):
                    self.answers[number or 0].trailers = dict(headers or ())
                case DataReceived(data=body, flow_controlled_length=length, stream_id=number):
                    self.answers[number or 0].body += body or b""
                    if length:
                        self.h2.acknowledge_received_data(length, number or 0)
                case StreamEnded(stream_id=number):
                    self.answers[number or 0].ended = True
        await self.flush()
        return bool(data)

    async def answer(self, number: int) -> Answer:
        """The whole answer; raises EOFError if the connection ends before."""
        while not self.answers[number].ended:
            if not await self.hear():
                raise EOFError
        return self.answers[number]

    async def body(self, number: int, size: int) -> bytes:
        """At least so many bytes of messages."""
        while len(self.answers[number].body) < size:
            if not await self.hear():
                raise EOFError
        return self.answers[number].body

    async def until_closed(self) -> None:
        """The server closes the connection."""
        with suppress(ConnectionError):
            while await self.hear():
                pass
