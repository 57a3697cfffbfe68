# SPDX-License-Identifier: Apache-2.0
"""The Marble API on a real port of loopback, served by a thread with an event loop of its own, and blocking clients.

    with MarblePort(bench) as port:
        with GrpcClient(port, credentials) as client:
            answer = client.call(request.SerializeToString())

For who wants to do the wrong thing on purpose and see from outside what becomes of it: nothing that the clients do can
hold up the server, and a server that hangs does not hold up the test.
"""

from __future__ import annotations

import asyncio
import functools
import io
import logging
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import structlog
import uvloop
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from h2.exceptions import FlowControlError

from sds.logs import configure
from tests.kit.coordinator import Bench
from tests.kit.marble_client import MarbleCredentials
from xds_server.events import ActivationEvent
from xds_server.grpc_unary import UnaryProtocol, UnaryService
from xds_server.marble_api import MarbleApi
from xds_server.tls_context import ServerCredential
from xds_server.tls_front import TlsFront, TlsFrontConfig

# No request takes longer than a few milliseconds, unless something is wrong.
PATIENCE = 5.0
_HEADERS = (
    (":method", "POST"),
    (":scheme", "https"),
    (":path", "/rpc.Marble/Activate"),
    (":authority", "localhost"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
)
_RECEIVE = 65536


class Hung(AssertionError):
    """The server did not do in time what it has to do."""


class MarblePort:
    """Serves a Bench's Coordinator as the process does, and takes over this process's log meanwhile."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.received: Counter[int] = Counter()  # bytes of HTTP/2 by the client's port
        self.alarm = io.StringIO()
        self.loop = uvloop.new_event_loop()  # as the process: asyncio leaves Nagle on for sockets that it did not make
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        ca = bench.coordinator.ca
        credential = ServerCredential((ca.marble_root,), ca.intermediate_key.load())
        service = MarbleApi(bench.coordinator, bench.metrics).service()
        config = TlsFrontConfig(alpn=(b"h2",), alpn_required=True, require_client_certificate=True)
        self.front = TlsFront(
            config, lambda: credential, lambda _: _Counted(service, self.received), lambda _p, _r: None
        )
        self._service = service
        self._thread = threading.Thread(target=self._serve, name="Marble API", daemon=True)

    def __enter__(self) -> Self:
        root = logging.getLogger()
        self._logging = (root.handlers[:], root.level)
        configure("error", "json", True, self.alarm)
        self._thread.start()
        self._within(self.front.start(self._listener))
        return self

    def __exit__(self, *_: object) -> None:
        self._service.stop()
        self._within(self.front.stop(0))
        self._within(self.bench.coordinator.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()
        structlog.reset_defaults()
        root = logging.getLogger()
        root.handlers[:] = self._logging[0]
        root.setLevel(self._logging[1])

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def _within(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE)

    # --- what has become of it

    def take_events(self) -> list[ActivationEvent]:
        """Every activation since the last call."""
        events = self.bench.events._events
        return [events.popleft() for _ in range(len(events))]

    def take_alarms(self) -> str:
        """What the server has logged as an error since the last call: exceptions that nobody caught are among it."""
        text = self.alarm.getvalue()
        self.alarm.seek(0)
        self.alarm.truncate()
        return text

    def wait_for_answers(self) -> None:
        """Until no call is under way. Raises Hung."""
        until(lambda: not asyncio.all_tasks(self.loop), "a call does not end")
        self._within(_turns())  # what it was answered is written a turn of the loop later

    def wait_for_silence(self, connections: int = 0) -> None:
        """Until all but these connections are gone, with everything that served them. Raises Hung."""
        until(lambda: self.front.connections <= connections, f"{self.front.connections} connections stay open")
        self.wait_for_answers()


async def _turns() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


class _Counted(UnaryProtocol):
    """Says how much has come through TLS, and to its end what came of it."""

    def __init__(self, service: UnaryService, received: Counter[int]) -> None:
        super().__init__(service)
        self._received = received

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        finally:
            self._received[self.transport.get_extra_info("peername")[1]] += len(data)


def until(condition: Callable[[], bool], otherwise: str) -> None:
    """Wait for something that another thread does; raises Hung."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise Hung(otherwise)
        time.sleep(0.0005)


@functools.cache
def _tls(credentials: MarbleCredentials) -> ssl.SSLContext:
    return credentials.tls()


class RawClient:
    """A TLS connection that sends what it is told to, and nothing else."""

    def __init__(self, port: MarblePort, credentials: MarbleCredentials) -> None:
        self.port = port
        self._sent = 0
        plain = socket.create_connection(("127.0.0.1", port.port), timeout=PATIENCE)
        self._name = plain.getsockname()[1]
        port.received.pop(self._name, None)
        self.socket = _tls(credentials).wrap_socket(plain)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """All of it, unless the server closes before."""
        with suppress(BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            self.socket.sendall(data)
        self._sent += len(data)

    def wait_until_read(self, others: int = 0) -> None:
        """Until the server has taken what was sent, or has closed (`others`: connections that are open beside this
        one). Raises Hung."""
        until(
            lambda: self.port.received[self._name] >= self._sent or self.port.front.connections <= others,
            "the server does not read",
        )

    def answer(self) -> bytes:
        """What the server has said so far."""
        found = bytearray()
        self.socket.setblocking(False)
        with suppress(ssl.SSLWantReadError, ConnectionResetError, ssl.SSLError):
            while data := self.socket.recv(_RECEIVE):
                found += data
        return bytes(found)

    def reset(self) -> None:
        """End without goodbye."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


@dataclass(frozen=True, slots=True)
class Answer:
    """gRPC status, its text, and the message."""

    status: int
    text: str
    body: bytes


class GrpcClient:
    """Calls of Activate, one after the other on one connection; a new one when the server has closed the last."""

    def __init__(self, port: MarblePort, credentials: MarbleCredentials) -> None:
        self._port, self._credentials = port, credentials
        self._connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def call(self, message: bytes) -> Answer:
        """One call with these bytes as its message."""
        return self._call(message) or self._call(message) or _never()

    def _connect(self) -> None:
        plain = socket.create_connection(("127.0.0.1", self._port.port), timeout=PATIENCE)
        self._socket = _tls(self._credentials).wrap_socket(plain)
        self._h2 = H2Connection()
        self._h2.initiate_connection()

    def _call(self, message: bytes) -> Answer | None:
        """None: the connection had come to its end."""
        stream = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream, _HEADERS)
        body = memoryview(b"\0" + len(message).to_bytes(4, "big") + message)
        size = self._h2.max_outbound_frame_size
        for start in range(0, len(body), size):
            part = body[start : start + size]
            self._h2.send_data(stream, part.tobytes(), end_stream=start + len(part) == len(body))
        try:
            self._socket.sendall(self._h2.data_to_send())
            return self._answer(stream)
        except (ConnectionError, ssl.SSLError, FlowControlError):
            self._socket.close()
            self._connect()
            return None

    def _answer(self, stream: int) -> Answer:
        headers: dict[bytes, bytes] = {}
        body = bytearray()
        while data := self._socket.recv(_RECEIVE):
            for event in self._h2.receive_data(data):
                match event:
                    case ResponseReceived() | TrailersReceived():
                        headers |= {bytes(name): bytes(value) for name, value in event.headers or ()}
                    case DataReceived():
                        body += event.data or b""
                        self._h2.acknowledge_received_data(event.flow_controlled_length or 0, stream)
                    case StreamEnded() if event.stream_id == stream:
                        self._socket.sendall(self._h2.data_to_send())
                        text = headers.get(b"grpc-message", b"").decode("ascii")
                        return Answer(int(headers[b"grpc-status"]), text, bytes(body[5:]))
                    case StreamReset() | ConnectionTerminated():
                        raise ConnectionResetError
            self._socket.sendall(self._h2.data_to_send())
        raise ConnectionResetError


def _never() -> Answer:
    raise Hung("the server closes every connection before it has answered")
