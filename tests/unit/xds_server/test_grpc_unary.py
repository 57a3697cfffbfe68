# SPDX-License-Identifier: Apache-2.0
"""Unary gRPC over h2: right answers to right calls, a named status for wrong ones, bounds on everything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from grpclib.client import Channel
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded, TrailersReceived
from hypothesis import given, settings
from hypothesis import strategies as st

from sds.wire.marble_pb2 import ActivationRequest, ActivationResponse, Parameters
from tests.fuzz.fuzz_tls_front import PREFACE, fuzz_one
from tests.kit.marble_client import MarbleCredentials
from tests.kit.tls_port import TlsPort, tls_port
from xds_server.grpc_unary import UnaryService
from xds_server.h2_meter import CREDIT
from xds_server.rpc import RpcError
from xds_server.tls_front import TlsFrontConfig, TlsTransport

PATH = "/rpc.Marble/Activate"
CREDENTIALS = MarbleCredentials.make()
HEADERS = [
    (":method", "POST"),
    (":scheme", "https"),
    (":authority", "x"),
    (":path", PATH),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]


@dataclass
class Fake:
    """Answers with files of `size` bytes, or as told by the request's type."""

    size: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    codes: list[Status] = field(default_factory=list)

    async def __call__(self, message: bytes, _: TlsTransport) -> bytes:
        match ActivationRequest.FromString(message).marble_type:
            case "refuse":
                raise RpcError("PERMISSION_DENIED", "no: 100 % ü")
            case "wait":
                self.waiting.set()
                await self.gate.wait()
            case "bug":
                raise ZeroDivisionError
        return ActivationResponse(parameters=Parameters(files={"f": bytes(self.size)})).SerializeToString()


@asynccontextmanager
async def grpc_port(fake: Fake, **limits: float) -> AsyncIterator[tuple[TlsPort, UnaryService]]:
    service = UnaryService({PATH.encode(): fake}, fake.codes.append, **limits)  # type: ignore[arg-type]
    config = TlsFrontConfig(alpn=(b"h2",), alpn_required=True, require_client_certificate=True)
    async with tls_port(service.connect, config) as port:
        yield port, service
    assert service.port.budget.used == 0
    assert not service.port.sessions


async def call(port: TlsPort, marble_type: str, size: int = 0) -> ActivationResponse:
    async with Channel("127.0.0.1", port.port, ssl=CREDENTIALS.tls()) as channel:
        request = ActivationRequest(marble_type=marble_type, quote=bytes(size))
        async with channel.request(
            PATH, Cardinality.UNARY_UNARY, ActivationRequest, ActivationResponse, timeout=5
        ) as stream:
            await stream.send_message(request, end=True)
            reply: ActivationResponse | None = await stream.recv_message()
            await stream.recv_trailing_metadata()
    assert reply is not None
    return reply


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
async def test_answers_of_any_size_arrive(size: int) -> None:
    async with grpc_port(Fake(size)) as (port, _):
        assert len((await call(port, "ok", size)).parameters.files["f"]) == size


async def test_a_refusal_carries_code_and_text() -> None:
    fake = Fake()
    async with grpc_port(fake) as (port, _):
        with pytest.raises(GRPCError) as e:
            await call(port, "refuse")
    assert (e.value.status, e.value.message) == (Status.PERMISSION_DENIED, "no: 100 % ü")
    assert fake.codes == [Status.PERMISSION_DENIED]


async def test_a_bug_tells_the_client_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with grpc_port(Fake()) as (port, _):
        with pytest.raises(GRPCError) as e:
            await call(port, "bug")
    assert (e.value.status, e.value.message) == (Status.INTERNAL, "internal error")


async def test_a_call_ends_in_time() -> None:
    async with grpc_port(Fake(), timeout=0.1) as (port, _):
        with pytest.raises(GRPCError) as e:
            await call(port, "wait")
    assert e.value.status is Status.DEADLINE_EXCEEDED


async def test_a_message_that_is_too_large_is_refused_while_it_arrives() -> None:
    async with grpc_port(Fake(), max_message=100_000) as (port, _):
        with pytest.raises(GRPCError) as e:
            await call(port, "ok", 200_000)
    assert e.value.status is Status.RESOURCE_EXHAUSTED


async def test_all_requests_together_are_bounded() -> None:
    async with grpc_port(Fake(), budget=50_000) as (port, _):
        with pytest.raises(GRPCError) as e:
            await call(port, "ok", 60_000)
    assert (e.value.status, e.value.message) == (Status.RESOURCE_EXHAUSTED, "too many requests at once: try again")


async def test_stop_lets_the_call_in_flight_end() -> None:
    fake = Fake()
    async with grpc_port(fake) as (port, service), asyncio.TaskGroup() as group:
        running = group.create_task(call(port, "wait"))
        await fake.waiting.wait()
        service.stop()
        fake.gate.set()
        assert (await running).parameters.files["f"] == b""


class Raw:
    """An HTTP/2 client that does as it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer, self.h2 = reader, writer, H2Connection()
        self.h2.initiate_connection()

    @classmethod
    async def connect(cls, port: TlsPort) -> Raw:
        return cls(*await port.connect(CREDENTIALS, alpn="h2"))

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    async def answer(self) -> dict[str, str]:
        """Headers and trailers of the first stream, or the reason of a GOAWAY."""
        self.flush()
        found: dict[str, str] = {}
        while data := await self.reader.read(65536):
            for event in self.h2.receive_data(data):
                match event:
                    case ResponseReceived() | TrailersReceived():
                        found |= {_text(k): _text(v) for k, v in event.headers or []}
                    case ConnectionTerminated():
                        return found | {"goaway": str(int(event.error_code or 0))}
                    case StreamEnded():
                        return found
                    case DataReceived():
                        continue
            self.flush()
        return found


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


MESSAGE = ActivationRequest(marble_type="ok").SerializeToString()
FRAMED = b"\0" + len(MESSAGE).to_bytes(4, "big") + MESSAGE


@pytest.mark.parametrize(
    ("change", "body", "answer"),
    [
        ({":path": "/rpc.Marble/Other"}, FRAMED, {"grpc-status": "12", "grpc-message": "Method not found"}),
        ({":method": "GET"}, FRAMED, {":status": "405"}),
        ({"content-type": "application/json"}, FRAMED, {":status": "415"}),
        ({"grpc-timeout": "soon"}, FRAMED, {"grpc-status": "13", "grpc-message": "malformed grpc-timeout"}),
        ({"grpc-timeout": "5S"}, FRAMED, {"grpc-status": "0"}),
        ({}, b"", {"grpc-status": "13", "grpc-message": "request ends before its first message"}),
        ({}, b"\1" + FRAMED[1:], {"grpc-status": "12"}),
        ({}, FRAMED + b"x", {"grpc-status": "13"}),
        ({}, FRAMED[:-1], {"grpc-status": "13"}),
        ({}, b"\0\xff\xff\xff\xff", {"grpc-status": "8"}),
    ],
)
async def test_what_is_no_call_gets_a_status(change: dict[str, str], body: bytes, answer: dict[str, str]) -> None:
    async with grpc_port(Fake()) as (port, _):
        raw = await Raw.connect(port)
        raw.h2.send_headers(1, list((dict(HEADERS) | change).items()))
        raw.h2.send_data(1, body, end_stream=True)
        assert answer.items() <= (await raw.answer()).items()
        raw.writer.transport.abort()


async def test_an_unknown_frame_is_ignored() -> None:
    async with grpc_port(Fake()) as (port, _):
        raw = await Raw.connect(port)
        raw.flush()
        raw.writer.write(bytes([0, 0, 1, 0xEE, 0, 0, 0, 0, 0, 7]))
        raw.h2.send_headers(1, HEADERS)
        raw.h2.send_data(1, FRAMED, end_stream=True)
        assert (await raw.answer())["grpc-status"] == "0"
        raw.writer.transport.abort()


async def test_a_request_that_does_not_end_is_ended() -> None:
    async with grpc_port(Fake(), timeout=0.1) as (port, _):
        raw = await Raw.connect(port)
        raw.h2.send_headers(1, HEADERS)
        assert (await raw.answer())["grpc-status"] == "4"
        raw.writer.transport.abort()


async def test_rapid_resets_end_the_connection() -> None:
    async with grpc_port(Fake()) as (port, _):
        raw = await Raw.connect(port)
        for number in range(CREDIT // 10):
            raw.h2.send_headers(1 + 2 * number, HEADERS)
            raw.h2.reset_stream(1 + 2 * number)
        assert (await raw.answer())["goaway"] == "11"
        raw.writer.transport.abort()


async def test_a_protocol_error_ends_the_connection_without_a_word_from_the_log() -> None:
    async with grpc_port(Fake()) as (port, _):
        reader, writer = await port.connect(CREDENTIALS, alpn="h2")
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await reader.read()
        writer.transport.abort()


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_no_bytes_escape(data: bytes) -> None:
    fuzz_one(data)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 400), st.binary(max_size=8))
def test_a_damaged_call_does_not_escape(position: int, damage: bytes) -> None:
    client = H2Connection()
    client.initiate_connection()
    client.send_headers(1, HEADERS)
    client.send_data(1, FRAMED, end_stream=True)
    data = bytearray(client.data_to_send()[len(PREFACE) :])
    data[position : position + len(damage)] = damage
    fuzz_one(b"\xff" + bytes(data))
