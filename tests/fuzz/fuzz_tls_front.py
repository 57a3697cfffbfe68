# SPDX-License-Identifier: Apache-2.0
"""Random bytes on the Coordinator's ports: into the TLS front, and behind a finished handshake into the gRPC server.

The rule: nothing is raised, and the connection is either waiting for more or closed.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any

from grpclib.const import Status

from tests.fuzz.driver import run
from tests.kit.tls_port import server_credential
from xds_server.grpc_unary import UnaryProtocol, UnaryService
from xds_server.tls_connection import Connection, TlsTransport
from xds_server.tls_front import TlsFront, TlsFrontConfig

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
EMPTY_SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


class Wire(asyncio.Transport):
    """A TCP transport that goes nowhere."""

    def __init__(self, protocol: asyncio.Protocol | None = None) -> None:
        super().__init__({"peername": ("192.0.2.1", 1)})
        self.closed = False
        self.sent = bytearray()
        self._protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        if not self.closed and self._protocol is not None:
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)
        self.closed = True

    abort = close

    def pause_reading(self) -> None:
        return

    def resume_reading(self) -> None:
        return


class Behind(Connection):
    """A connection whose handshake is over and whose encryption is the identity."""

    def __init__(self, front: TlsFront, outer: Wire) -> None:
        super().__init__(front)
        self._outer = outer

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._outer.write(data)

    def close(self) -> None:
        self.closing = True

    def abort(self, reason: str) -> None:
        self.closing = True


@cache
def loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


@cache
def front() -> TlsFront:
    credential = server_credential()
    config = TlsFrontConfig(alpn=(b"h2",), max_connections=10**6, max_handshakes=10**6)
    return TlsFront(config, lambda: credential, lambda _: asyncio.Protocol(), lambda _peer, _reason: None)


async def echo(message: bytes, _: TlsTransport) -> bytes:
    return message


def service(**limits: Any) -> UnaryService:
    return UnaryService({b"/rpc.Marble/Activate": echo}, finished, **limits)


def finished(_: Status) -> None:
    return


async def into_tls(data: bytes) -> None:
    connection = Connection(front())
    wire = Wire(connection)
    connection.connection_made(wire)
    half = len(data) // 2
    connection.data_received(data[:half] or b"\0")
    if not wire.closed:
        connection.data_received(data[half:] or b"\0")
    wire.close()
    await asyncio.sleep(0)
    assert connection.lost.done()


async def into_h2(data: bytes) -> None:
    wire = Wire()
    connection = Behind(front(), wire)
    protocol = UnaryProtocol(service())
    transport = TlsTransport(connection, wire, {})
    protocol.connection_made(transport)
    protocol.data_received(PREFACE)
    if not connection.closing:
        protocol.data_received(data)
    for _ in range(3):
        await asyncio.sleep(0)
    protocol.connection_lost(None)
    connection.connection_lost(None)
    await asyncio.sleep(0)


def fuzz_one(data: bytes) -> None:
    """The first byte chooses the layer: TLS, HTTP/2 frames after the preface, or the preface's own settings too."""
    match data[:1]:
        case first if first < b"\x55":
            loop().run_until_complete(into_tls(data[1:]))
        case first if first < b"\xaa":
            loop().run_until_complete(into_h2(EMPTY_SETTINGS + data[1:]))
        case _:
            loop().run_until_complete(into_h2(data[1:]))


if __name__ == "__main__":
    run(fuzz_one)
