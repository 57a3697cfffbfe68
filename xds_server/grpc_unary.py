# SPDX-License-Identifier: Apache-2.0
"""Unary gRPC calls over HTTP/2 (the `h2` library), one protocol object per connection.

Why not a whole gRPC library: what arrives here comes from anybody with a self-signed certificate, so every buffer needs
a limit of its own (grpclib has none for a message's length and stops at frames it does not know), and grpcio cannot
stand behind our TLS. What is left is small: collect a request, call the handler, send one message and the trailers.

Bounds: `MAX_STREAMS` calls per connection, `max_message` bytes per request, `Limits.budget` bytes of requests in the
whole process, `timeout` seconds for a call from its first header to its last byte, `MAX_RESETS` resets (a client that
opens and resets streams in a loop makes work without ever waiting for it, CVE-2023-44487).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from grpclib.const import Status
from grpclib.metadata import encode_grpc_message
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError as H2Error
from h2.settings import SettingCodes

from sds.logs import get_logger
from xds_server.tls_front import TlsTransport

MAX_STREAMS = 16
MAX_RESETS = 100
MAX_HEADERS = 16 * 1024
# What every gRPC implementation accepts by default, in both directions.
MAX_MESSAGE = 4 * 1024 * 1024
# Sixteen requests of the largest size, or 10 000 of a usual one (5 KiB).
BUDGET = 16 * MAX_MESSAGE
_PREFIX = 5  # flag and length before a message
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}

_log = get_logger(__name__)


class RpcError(Exception):
    """The call ends with this status; the text goes to the client."""

    def __init__(self, status: Status, text: str) -> None:
        self.status = status
        super().__init__(text)


Handler = Callable[[bytes, TlsTransport], Awaitable[bytes]]


@dataclass(slots=True)
class UnaryService:
    """The methods of one port (path → handler), its limits, and what is in use of them."""

    handlers: dict[bytes, Handler]
    finished: Callable[[Status], None]
    timeout: float = 20.0
    max_message: int = MAX_MESSAGE
    budget: int = BUDGET
    buffered: int = 0
    protocols: set[UnaryProtocol] = field(default_factory=set)

    def connect(self, transport: TlsTransport) -> UnaryProtocol:
        """The protocol for a new connection."""
        return UnaryProtocol(self)

    def stop(self) -> None:
        """Tell every client to go away; connections close after the call in flight."""
        for protocol in tuple(self.protocols):
            protocol.go_away()


@dataclass(slots=True)
class _Call:
    stream: int
    headers: dict[bytes, bytes]
    lease: ExitStack
    timer: asyncio.TimerHandle
    body: bytearray = field(default_factory=bytearray)
    task: asyncio.Task[None] | None = None
    reply: memoryview | None = None
    started: bool = False  # response headers are out


class UnaryProtocol(asyncio.Protocol):
    """One HTTP/2 connection."""

    def __init__(self, service: UnaryService) -> None:
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._calls: dict[int, _Call] = {}
        self._resets = 0
        self._writable = True
        self._leaving = False
        config = H2Configuration(client_side=False, header_encoding=None)
        self._h2 = H2Connection(config=config)

    # --- from the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, TlsTransport)
        self._transport = transport
        self._service.protocols.add(self)
        self._h2.local_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = MAX_STREAMS
        self._h2.local_settings[SettingCodes.MAX_HEADER_LIST_SIZE] = MAX_HEADERS
        self._h2.initiate_connection()
        self._flush()

    def data_received(self, data: bytes) -> None:
        try:
            events = self._h2.receive_data(data)
        except H2Error:
            self._flush()  # the GOAWAY that says why
            self._transport.close()
            return
        for event in events:
            self._on(event)
        self._flush()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._send_all()

    def connection_lost(self, exc: Exception | None) -> None:
        self._service.protocols.discard(self)
        for call in tuple(self._calls.values()):
            self._drop(call)

    # --- requests

    def _on(self, event: Event) -> None:
        match event:
            case RequestReceived() if event.stream_id is not None:
                self._begin(event.stream_id, event.headers or [])
            case DataReceived() if event.stream_id is not None:
                self._collect(event.stream_id, event.data or b"", event.flow_controlled_length or 0)
            case StreamEnded() if event.stream_id in self._calls:
                self._serve(self._calls[event.stream_id])
            case StreamReset():
                self._reset_by_peer(event.stream_id)
            case WindowUpdated() | RemoteSettingsChanged():
                self._send_all()
            case ConnectionTerminated():
                self._transport.close()

    def _begin(self, stream: int, headers: list[tuple[bytes, bytes]]) -> None:
        lease = ExitStack()
        lease.enter_context(self._transport.in_use())
        timer = self._loop.call_later(self._service.timeout, self._too_late, stream)
        call = _Call(stream, {bytes(name): bytes(value) for name, value in headers}, lease, timer)
        self._calls[stream] = call
        http = _http_fault(call.headers)
        if http is not None:
            self._end(call, [(b":status", http)])
        elif self._leaving:
            self._refuse(call, Status.UNAVAILABLE, "coordinator stops: try again")
        elif call.headers[b":path"] not in self._service.handlers:
            self._refuse(call, Status.UNIMPLEMENTED, "Method not found")

    def _collect(self, stream: int, data: bytes, flow: int) -> None:
        if flow:
            self._h2.acknowledge_received_data(flow, stream)
        call = self._calls.get(stream)
        if call is None:
            return
        if len(call.body) + len(data) > self._service.max_message + _PREFIX:
            self._refuse(call, Status.RESOURCE_EXHAUSTED, f"message larger than {self._service.max_message} bytes")
        elif self._service.buffered + len(data) > self._service.budget:
            self._refuse(call, Status.RESOURCE_EXHAUSTED, "too many requests at once: try again")
        else:
            self._service.buffered += len(data)
            call.body += data

    def _serve(self, call: _Call) -> None:
        if call.task is None and call.reply is None:
            call.task = self._loop.create_task(self._run(call))

    async def _run(self, call: _Call) -> None:
        try:
            timeout = min(self._service.timeout, _client_timeout(call.headers))
            async with asyncio.timeout(timeout):
                handler = self._service.handlers[call.headers[b":path"]]
                reply = await handler(_message(call.body, self._service.max_message), self._transport)
        except RpcError as error:
            self._refuse(call, error.status, str(error))
        except TimeoutError:
            self._refuse(call, Status.DEADLINE_EXCEEDED, "deadline exceeded")
        except Exception:  # a bug: the client learns nothing of it, the log everything
            _log.exception("call failed", path=call.headers[b":path"].decode("ascii", "replace"))
            self._refuse(call, Status.INTERNAL, "internal error")
        else:
            call.reply = memoryview(b"\0" + len(reply).to_bytes(4, "big") + reply)
            self._send(call)
        self._flush()

    def _too_late(self, stream: int) -> None:
        call = self._calls.get(stream)
        if call is not None:
            self._refuse(call, Status.DEADLINE_EXCEEDED, f"call took longer than {self._service.timeout:g} s")
            self._flush()

    def _reset_by_peer(self, stream: int | None) -> None:
        call = self._calls.get(stream or 0)
        if call is not None:
            self._drop(call)
        self._resets += 1
        if self._resets > MAX_RESETS:
            self._h2.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
            self._flush()
            self._transport.close()

    # --- answers

    def _send_all(self) -> None:
        for call in tuple(self._calls.values()):
            self._send(call)
        self._flush()

    def _send(self, call: _Call) -> None:
        """As much of the answer as windows and the socket take; the rest when they open."""
        if call.reply is None or not self._alive(call):
            return
        if not call.started:
            call.started = True
            self._h2.send_headers(call.stream, [(b":status", b"200"), (b"content-type", b"application/grpc")])
        while call.reply and self._writable:
            room = min(self._h2.local_flow_control_window(call.stream), self._h2.max_outbound_frame_size)
            if room <= 0:
                return
            self._h2.send_data(call.stream, call.reply[:room].tobytes())
            call.reply = call.reply[room:]
            self._flush()
        if not call.reply:
            self._service.finished(Status.OK)
            self._end(call, [(b"grpc-status", b"0")])

    def _refuse(self, call: _Call, status: Status, text: str) -> None:
        if not self._alive(call):
            return
        self._service.finished(status)
        trailers = [(b"grpc-status", str(status.value).encode()), (b"grpc-message", encode_grpc_message(text).encode())]
        head = [] if call.started else [(b":status", b"200"), (b"content-type", b"application/grpc")]
        self._end(call, head + trailers)

    def _end(self, call: _Call, headers: list[tuple[bytes, bytes]]) -> None:
        with suppress(H2Error):  # the peer closed the stream or the connection meanwhile
            self._h2.send_headers(call.stream, headers, end_stream=True)
        self._drop(call)
        if self._leaving and not self._calls:
            self._flush()
            self._transport.close()

    def _alive(self, call: _Call) -> bool:
        return self._calls.get(call.stream) is call and not self._transport.is_closing()

    def _drop(self, call: _Call) -> None:
        if self._calls.pop(call.stream, None) is None:
            return
        call.timer.cancel()
        self._service.buffered -= len(call.body)
        if call.task is not None and call.task is not asyncio.current_task():
            call.task.cancel()
        call.lease.close()

    def go_away(self) -> None:
        """No new calls; close when the last one has ended."""
        self._leaving = True
        if not self._calls:
            self._h2.close_connection()
            self._flush()
            self._transport.close()

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data:
            self._transport.write(data)


def _http_fault(headers: dict[bytes, bytes]) -> bytes | None:
    """The HTTP status for what is no gRPC request at all."""
    if headers.get(b":method") != b"POST":
        return b"405"
    media_type = headers.get(b"content-type", b"").split(b";")[0].strip()
    if media_type not in (b"application/grpc", b"application/grpc+proto"):
        return b"415"
    return None


def _client_timeout(headers: dict[bytes, bytes]) -> float:
    text = headers.get(b"grpc-timeout")
    if text is None:
        return float("inf")
    match = _TIMEOUT.fullmatch(text)
    if match is None:
        raise RpcError(Status.INTERNAL, "malformed grpc-timeout")
    return int(match[1]) * _UNITS[match[2]]


def _message(body: bytearray, limit: int) -> bytes:
    """The one message of a unary request."""
    if len(body) < _PREFIX:
        raise RpcError(Status.INTERNAL, "request ends before its first message")
    if body[0] != 0:
        raise RpcError(Status.UNIMPLEMENTED, "compressed messages are not accepted")
    length = int.from_bytes(body[1:_PREFIX], "big")
    if length > limit:
        raise RpcError(Status.RESOURCE_EXHAUSTED, f"message of {length} bytes, at most {limit} are accepted")
    if length != len(body) - _PREFIX:
        raise RpcError(Status.INTERNAL, f"message of {len(body) - _PREFIX} bytes announced as {length}")
    return bytes(body[_PREFIX:])
