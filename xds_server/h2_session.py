# SPDX-License-Identifier: Apache-2.0
"""One HTTP/2 connection of a server (the `h2` library) within limits: what gRPC and plain HTTP have in common.

    TlsTransport ─► FrameMeter ─► h2 ─► Call (head, body, answer) ─► hooks of the subclass ─► respond()

Why not a whole library: what arrives comes from anybody, so every buffer needs a limit of its own (grpclib has none for
a message's length and stops at frames it does not know), and neither grpcio nor aiohttp's server speaks HTTP/2 behind
our TLS.

Bounds: `streams` calls at a time and `lifetime` calls in all per connection (h2 remembers each closed stream), `calls`
at a time on the port (each some 5 KiB), `body` bytes per call, the port's `ByteBudget` for all of them, `call_seconds`
from the first header to the last byte, `idle_seconds` without a call, and frames by `h2_meter`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from enum import Enum

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

from xds_server.byte_budget import ByteBudget
from xds_server.h2_meter import ANSWER, SENT_FRAME, FrameMeter
from xds_server.tls_front import TlsTransport

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class H2Limits:
    """Counts, bytes and seconds."""

    streams: int
    headers: int
    body: int
    call_seconds: float
    calls: int = 2000
    idle_seconds: float = 60.0
    lifetime: int = 10_000


@dataclass(slots=True)
class H2Port:
    """What the connections of one port share."""

    limits: H2Limits
    budget: ByteBudget
    sessions: set[H2Session] = field(default_factory=set)
    calls: int = 0

    def stop(self) -> None:
        """Tell every client to go away; connections close after the calls in flight."""
        for session in tuple(self.sessions):
            session.go_away()


class Limit(Enum):
    """Why a call is not served."""

    LEAVING = "the connection closes: try again on another"
    TOO_LARGE = "body too large"
    NO_ROOM = "too many requests at once: try again"
    TOO_LATE = "took too long"


@dataclass(slots=True, eq=False)
class Call:
    """A request and its answer. `limit` may be lowered while the body arrives."""

    stream: int
    headers: dict[bytes, bytes]
    lease: ExitStack
    timer: asyncio.TimerHandle
    limit: int
    body: bytearray = field(default_factory=bytearray)
    complete: bool = False  # the client has sent everything
    task: asyncio.Task[None] | None = None
    head: Headers | None = None
    reply: memoryview = field(default_factory=lambda: memoryview(b""))
    trailers: Headers = ()
    started: bool = False  # response headers are out
    taken: int = 0  # of the budget


class H2Session(asyncio.Protocol):
    """Subclasses say what calls mean: `begun`, `ended`, `limited`; and answer with `respond` or `reset`."""

    # Whether an answer that comes before the end of the request stops the client's upload.
    stop_upload = False
    # Whether GOAWAY follows the last answer. grpclib's client takes it as the end of answers it has not read yet.
    goodbye = True

    def __init__(self, port: H2Port) -> None:
        self.loop = asyncio.get_running_loop()
        self._port = port
        self._limits = port.limits
        self._calls: dict[int, Call] = {}
        self._served = 0
        self._meter = FrameMeter()
        self._idle: asyncio.TimerHandle | None = None
        self._writable = True
        self._leaving = False
        self._h2 = H2Connection(config=H2Configuration(client_side=False, header_encoding=None))

    # --- what calls mean

    def begun(self, call: Call) -> None:
        """The head of a request is here."""

    def ended(self, call: Call) -> None:
        """Its body is complete."""

    def limited(self, call: Call, limit: Limit) -> None:
        """The call went over a limit: answer or reset it. Called again if it goes on."""
        raise NotImplementedError

    # --- from the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, TlsTransport)
        self.transport = transport
        self._port.sessions.add(self)
        # Our own limits hold at once; h2's after the client has acknowledged them, when it must keep to them.
        self._h2.local_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = self._limits.streams
        self._h2.local_settings[SettingCodes.MAX_HEADER_LIST_SIZE] = self._limits.headers
        self._h2.decoder.max_header_list_size = self._limits.headers
        self._h2.initiate_connection()
        self._rest()
        self.flush()

    def data_received(self, data: bytes) -> None:
        if not self._meter.feed(data):
            self._expel()
            return
        try:
            events = self._h2.receive_data(data)
        except H2Error:
            self.flush()  # the GOAWAY that says why
            self.transport.close()
            return
        for event in events:
            if self.transport.is_closing():
                return
            self._on(event)
        self.flush()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._send_all()

    def connection_lost(self, exc: Exception | None) -> None:
        self._port.sessions.discard(self)
        for call in tuple(self._calls.values()):
            self._drop(call)
        self._wake()

    def go_away(self) -> None:
        """No new calls; close when the last one has ended."""
        self._leaving = True
        if not self._calls:
            self._close()

    def _expel(self) -> None:
        with suppress(H2Error):
            self._h2.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
        self.flush()
        self.transport.close()

    def _close(self) -> None:
        with suppress(H2Error):  # it is closed already
            self._h2.close_connection()
        self.flush()
        self.transport.close()

    # --- requests

    def _on(self, event: Event) -> None:
        match event:
            case RequestReceived() if event.stream_id is not None:
                self._begin(event.stream_id, event.headers or [])
            case DataReceived() if event.stream_id is not None:
                self._collect(event.stream_id, event.data or b"", event.flow_controlled_length or 0)
            case StreamEnded() if event.stream_id in self._calls:
                call = self._calls[event.stream_id]
                call.complete = True
                self.ended(call)
            case StreamReset() if event.stream_id in self._calls:
                self._drop(self._calls[event.stream_id])
            case WindowUpdated() | RemoteSettingsChanged():
                self._send_all()
            case ConnectionTerminated():
                self.transport.close()

    def _begin(self, stream: int, headers: list[tuple[bytes, bytes]]) -> None:
        if len(self._calls) >= self._limits.streams or self._port.calls >= self._limits.calls:
            with suppress(H2Error):  # the client has reset it already
                self._h2.reset_stream(stream, ErrorCodes.REFUSED_STREAM)
            return
        lease = ExitStack()
        lease.enter_context(self.transport.in_use())
        timer = self.loop.call_later(self._limits.call_seconds, self._too_late, stream)
        fields = {bytes(name): bytes(value) for name, value in headers}
        call = self._calls[stream] = Call(stream, fields, lease, timer, self._limits.body)
        self._port.calls += 1
        self._wake()
        if self._leaving:
            self.limited(call, Limit.LEAVING)
            return
        self._served += 1
        if self._served >= self._limits.lifetime:
            self.go_away()
        self.begun(call)

    def _collect(self, stream: int, data: bytes, flow: int) -> None:
        call = self._calls.get(stream)
        # What is held is bounded by the limits below, not by the window: so the client may always go on.
        if flow:
            with suppress(H2Error):  # we have reset the stream while this was on its way
                self._h2.acknowledge_received_data(flow, stream)
        if call is None or call.head is not None:
            return
        if call.taken + len(data) > call.limit:
            self.limited(call, Limit.TOO_LARGE)
        elif not self._port.budget.take(len(data)):
            self.limited(call, Limit.NO_ROOM)
        else:
            call.taken += len(data)
            call.body += data

    def _too_late(self, stream: int) -> None:
        call = self._calls.get(stream)
        if call is not None:
            self.limited(call, Limit.TOO_LATE)
            self.flush()

    # --- answers

    def alive(self, call: Call) -> bool:
        """Whether anybody still waits for the answer."""
        return self._calls.get(call.stream) is call and not self.transport.is_closing()

    def respond(self, call: Call, head: Headers, body: bytes = b"", trailers: Headers = ()) -> None:
        """Send an answer, once; what windows and socket do not take yet follows when they open."""
        if call.head is None and self.alive(call):
            call.head, call.reply, call.trailers = head, memoryview(body), trailers
            self._send(call)

    def finish_early(self, call: Call, head: Headers, trailers: Headers) -> None:
        """End with `trailers`, whatever was sent before: after a part of an answer, or with `head` as all of it."""
        if self.alive(call):
            with suppress(H2Error):  # the peer closed the stream or the connection meanwhile
                last = trailers if call.started else [*head, *trailers]
                self._h2.send_headers(call.stream, last, end_stream=True)
            self._finished(call)

    def reset(self, call: Call, code: ErrorCodes) -> None:
        """End without an answer."""
        if self.alive(call):
            with suppress(H2Error):
                self._h2.reset_stream(call.stream, code)
            self._drop(call)

    def interim(self, call: Call, head: Headers) -> None:
        """A 1xx answer."""
        if call.head is None and self.alive(call):
            with suppress(H2Error):
                self._h2.send_headers(call.stream, head)
            self.flush()

    def _send_all(self) -> None:
        for call in tuple(self._calls.values()):
            if call.head is not None:
                self._send(call)
        self.flush()

    def _send(self, call: Call) -> None:
        if call.head is None or not self.alive(call):
            return
        try:
            if not call.started:
                call.started = True
                bare = not call.reply and not call.trailers
                self._h2.send_headers(call.stream, call.head, end_stream=bare)
            while call.reply and self._writable:
                room = min(self._h2.local_flow_control_window(call.stream), self._h2.max_outbound_frame_size)
                if room <= 0:
                    return
                last = len(call.reply) <= room and not call.trailers
                self._h2.send_data(call.stream, call.reply[:room].tobytes(), end_stream=last)
                call.reply = call.reply[room:]
                self._meter.earn(SENT_FRAME)
                self.flush()
            if call.reply:
                return
            if call.trailers:
                self._h2.send_headers(call.stream, call.trailers, end_stream=True)
            if self.stop_upload and not call.complete:
                self._h2.reset_stream(call.stream, ErrorCodes.NO_ERROR)
        except H2Error:  # the peer closed the stream or the connection meanwhile
            self._drop(call)
            return
        self._finished(call)

    def _finished(self, call: Call) -> None:
        self._meter.earn(ANSWER)
        self._drop(call)

    def _drop(self, call: Call) -> None:
        if self._calls.pop(call.stream, None) is None:
            return
        call.timer.cancel()
        self._port.calls -= 1
        self._port.budget.give_back(call.taken)
        call.taken = 0
        if call.task is not None and call.task is not asyncio.current_task():
            call.task.cancel()
        call.lease.close()
        if self._calls or self.transport.is_closing():
            return
        if not self._leaving:
            self._rest()
        elif self.goodbye:
            self._close()
        else:
            self.flush()
            self.transport.close()

    # --- idle time

    def _rest(self) -> None:
        """Nothing to do: say goodbye after a while, before the transport cuts without a word."""
        self._wake()
        self._idle = self.loop.call_later(self._limits.idle_seconds, self.go_away)

    def _wake(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def flush(self) -> None:
        """Hand what h2 has to the transport."""
        data = self._h2.data_to_send()
        if data:
            self.transport.write(data)
