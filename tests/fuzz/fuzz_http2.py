# SPDX-License-Identifier: Apache-2.0
"""Random HTTP/2 on the client API, behind a finished handshake: frames of the fuzzer's choice to real routes.

The rule: nothing is raised, no byte of the budget stays taken, and the connection is either open or closed. The input
is a script, so that the fuzzer gets past HPACK: each instruction is a byte that chooses a frame and takes its arguments
from what follows; everything else is sent as it is.
"""

from __future__ import annotations

import asyncio
from functools import cache

from hpack import Encoder

from tests.fuzz.driver import run
from tests.fuzz.fuzz_tls_front import EMPTY_SETTINGS, PREFACE, Behind, Wire, front, loop
from tests.kit.fake_operations import FakeOperations
from xds_server.byte_budget import ByteBudget
from xds_server.client_api_routes import routes
from xds_server.h2_session import H2Limits, H2Port
from xds_server.http2 import Http2Session
from xds_server.http_dispatch import Dispatcher
from xds_server.metrics import CoordinatorMetrics
from xds_server.tls_front import TlsTransport

PATHS = (
    "/api/v2/status", "/api/v2/quote?nonce=%", "/secrets?s=a&s", "//", "/%zz", "*", "",
    "/api/v2/manifest", "/manifest", "/api/v2/secrets", "/api/v2/recover", "/api/v2/monotonic-counter",
)  # fmt: skip
METHODS = ("GET", "POST", "HEAD", "CONNECT", "")
LIMITS = H2Limits(streams=8, headers=65536, body=100_000, call_seconds=10, lifetime=50)
DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8


@cache
def dispatcher() -> Dispatcher:
    return Dispatcher(routes(FakeOperations()), CoordinatorMetrics("fuzz"))


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def request(stream: int, argument: int, end: bool) -> bytes:
    fields = [
        (":method", METHODS[argument % len(METHODS)]),
        (":path", PATHS[argument // len(METHODS) % len(PATHS)]),
        (":scheme", "https"),
        (":authority", "x"),
    ]
    if argument > 200:
        fields.append(("content-length", str(argument)))
    if argument > 250:
        fields.append(("expect", "100-continue"))
    return frame(HEADERS, 4 | end, stream, Encoder().encode(fields))


def script(data: bytes) -> bytes:
    """Frames for the instructions in `data`."""
    out = bytearray()
    position = 0
    while position + 3 <= len(data):
        kind, stream, argument = data[position], data[position + 1] % 32, data[position + 2]
        position += 3
        match kind % 9:
            case 0 | 1:
                out += request(stream | 1, argument, end=bool(kind % 2))
            case 2:
                out += frame(DATA, argument & 1, stream, b"{" * (argument * 40))
            case 3:
                out += frame(RST, 0, stream, argument.to_bytes(4, "big"))
            case 4:
                out += frame(WINDOW, 0, stream, (argument << 20).to_bytes(4, "big"))
            case 5:
                out += frame(SETTINGS, 0, 0, bytes([0, argument % 8, 0, 0, argument, stream]))
            case 6:
                out += frame(PING, argument & 1, 0, bytes(8))
            case 7:
                out += frame(argument, kind, stream, data[position : position + 9])
            case _:
                out += data[position : position + argument % 16]
                position += argument % 16
    return bytes(out)


async def into_session(data: bytes) -> None:
    wire = Wire()
    connection = Behind(front(), wire)
    port = H2Port(LIMITS, ByteBudget(50_000))
    session = Http2Session(port, dispatcher(), 5)
    session.connection_made(TlsTransport(connection, wire, {"alpn": "h2"}))
    session.data_received(PREFACE + EMPTY_SETTINGS)
    for start in range(0, len(data), 1000):
        if connection.closing:
            break
        session.data_received(data[start : start + 1000])
        await asyncio.sleep(0)
    for _ in range(3):
        await asyncio.sleep(0)
    session.connection_lost(None)
    connection.connection_lost(None)
    for _ in range(3):
        await asyncio.sleep(0)
    assert port.budget.used == 0
    assert not port.sessions


def fuzz_one(data: bytes) -> None:
    loop().run_until_complete(into_session(script(data)))


if __name__ == "__main__":
    run(fuzz_one)
