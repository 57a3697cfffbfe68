# SPDX-License-Identifier: Apache-2.0
"""One HTTP/2 connection of a gRPC server, without socket and clock: bytes in, calls of an `Owner` and bytes out.

    receive(bytes) ─► frames ─► Owner.begun, message, half_closed, closed
    send, finish (rpc_outbound) ─► frames ─► take_out()

Made for thousands of connections that each carry one long stream and are quiet most of the time: an idle one is this
object and its stream, nothing else. The rules are those of RFC 9113; what a gRPC server never needs (push, priorities)
is accepted and without effect.

Bounds: `H2Limits`, frames by `rpc_framing`, headers by `rpc_headers`, large messages by the port's budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from h2.errors import ErrorCodes

from xds_server import rpc_frames as f
from xds_server.byte_budget import ByteBudget
from xds_server.rpc_framing import COST_OF_RESET, Framing
from xds_server.rpc_headers import MAX_HEADERS, ConnectionFault, Headers, judge
from xds_server.rpc_stream import Stream, StreamFault

_HALF = f.WINDOW // 2
_MAX_SETTINGS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class H2Limits:
    """Of one connection: streams at a time, bytes of one message, bytes of unfinished messages over all streams."""

    streams: int = 100
    message: int = 4 * 1024 * 1024
    unfinished: int = 5 * 1024 * 1024


class Owner(Protocol):
    """Who serves the streams of a connection. May send, pause and finish from inside; must not raise.

    `closed` comes once for each stream that has `begun`, whatever ended it; nothing comes after it.
    """

    def begun(self, stream: Stream) -> None: ...
    def message(self, stream: Stream, body: bytes) -> None: ...
    def half_closed(self, stream: Stream) -> None: ...
    def writable(self, stream: Stream) -> None: ...
    def closed(self, stream: Stream) -> None: ...


class _Nobody:
    """Owns a connection that is over."""

    def begun(self, stream: Stream) -> None: ...
    def message(self, stream: Stream, body: bytes) -> None: ...
    def half_closed(self, stream: Stream) -> None: ...
    def writable(self, stream: Stream) -> None: ...
    def closed(self, stream: Stream) -> None: ...


_NOBODY = _Nobody()


class Connection(Framing):
    """The server's side: `receive`, `send`, `finish` and `take_out` stand in the bases."""

    __slots__ = ("_budget", "_headers", "_limits", "_owner", "_taken", "_unfinished", "leaving", "pinged")

    def __init__(self, owner: Owner, limits: H2Limits, budget: ByteBudget, now: float) -> None:
        settings = {f.MAX_STREAMS: limits.streams, f.HEADER_TABLE_SIZE: 0, f.MAX_HEADERS: MAX_HEADERS}
        super().__init__(f.settings(settings), now)
        self._owner: Owner = owner
        self._limits = limits
        self._budget = budget
        self._headers = Headers()
        self._taken = 0  # of the connection's window
        self._unfinished = 0
        self.leaving = False
        self.pinged = False  # a ping of ours is unanswered

    @property
    def streams(self) -> int:
        """How many are open."""
        return len(self._streams)

    # ---- for whoever serves the streams

    def resume(self, stream: Stream) -> None:
        """Go on with a paused stream: what has come meanwhile is handed over before this returns."""
        stream.paused = False
        if self._is_open(stream):
            self._drain(stream)

    # ---- for whoever owns the socket

    def ping(self) -> None:
        """Ask whether the peer is there; `pinged` until it answers."""
        self.pinged = True
        self._write(f.frame(f.PING, 0, 0, b"marble\0\0"))

    def leave(self, code: ErrorCodes = ErrorCodes.NO_ERROR, text: str = "") -> None:
        """Take no new stream; those that are open go on."""
        if not self.leaving and not self.ended:
            self.leaving = True
            self._write(f.goaway(self._last, code, text))

    def finish_all(self, status: str, text: str) -> None:
        """End every stream with this gRPC status."""
        for stream in tuple(self._streams.values()):
            self.finish(stream, status, text)

    def cut(self) -> None:
        """The connection is gone: so are its streams."""
        self.ended = True
        for stream in tuple(self._streams.values()):
            self._forget(stream)
        self._owner = _NOBODY  # or each would keep the other, until the next collection of garbage

    # ---- frames

    def _frame(self, kind: int, number: int, flags: int, payload: bytes) -> None:
        if self._headers.pending and (kind != f.CONTINUATION or number != self._headers.stream):
            raise ConnectionFault(ErrorCodes.PROTOCOL_ERROR, "header block interrupted")
        match kind:
            case f.DATA:
                self._data(number, flags, payload)
            case f.HEADERS:
                self._header_block(number, flags, payload)
            case f.CONTINUATION:
                self._continuation(flags, payload)
            case f.WINDOW_UPDATE:
                self._window_update(number, payload)
            case f.RST_STREAM:
                self._reset_by_peer(number, payload)
            case f.SETTINGS:
                self._settings(number, flags, payload)
            case f.PING:
                self._ping(number, flags, payload)
            case f.GOAWAY:
                _expect(number == 0, "GOAWAY")
                _expect_size(len(payload) >= 8, "GOAWAY")
            case f.PRIORITY:
                _expect(number != 0, "PRIORITY")
                _expect_size(len(payload) == 5, "PRIORITY")
            case f.PUSH_PROMISE:
                raise ConnectionFault(ErrorCodes.PROTOCOL_ERROR, "a client cannot push")

    # ---- messages

    def _data(self, number: int, flags: int, payload: bytes) -> None:
        size = len(payload)
        # Who is held back is held back by its stream; the connection's window belongs to all of them and stays open.
        self._taken += size
        if self._taken >= _HALF:
            self._write(f.window_update(0, self._taken))
            self._taken = 0
        stream = self._streams.get(number)
        if stream is None:
            self._check_not_idle(number)
            return  # it has ended here, and the client will hear of it
        stream.room -= size
        if stream.ended or stream.room < 0:
            self._reset(stream, ErrorCodes.STREAM_CLOSED if stream.ended else ErrorCodes.FLOW_CONTROL_ERROR)
            return
        if flags & f.PADDED:
            payload = _unpadded(payload)
        body = stream.add(payload)
        if body is None:
            self._unfinished += len(payload)
        else:
            self._owner.message(stream, body)
            if stream.room > _HALF and not flags & f.END_STREAM:
                return  # as nearly always: there is nothing else, and no need to ask for more
        if flags & f.END_STREAM:
            stream.ended = True
        self._drain(stream)

    def _drain(self, stream: Stream) -> None:
        """Hand over the whole messages that have come, and the end if it has; ask for more if more is wanted."""
        try:
            while not stream.paused and self._is_open(stream):
                held = stream.held
                body = stream.next_message(self._limits.message)
                self._unfinished += stream.held - held
                if body is None:
                    break
                self._release(stream)
                self._owner.message(stream, body)
            if not self._is_open(stream):
                return
            if self._unfinished > self._limits.unfinished:
                raise StreamFault("RESOURCE_EXHAUSTED", "too many unfinished messages")
            if not stream.paused:
                self._go_on(stream)
        except StreamFault as fault:
            self.finish(stream, fault.status, str(fault))

    def _go_on(self, stream: Stream) -> None:
        """Everything whole has been handed over."""
        if stream.ended:
            if stream.held:
                raise StreamFault("INTERNAL", "the request ends inside a message")
            if not stream.told:
                stream.told = True
                self._owner.half_closed(stream)
        elif stream.room <= _HALF:
            # A message that does not fit into a window takes its size from the budget before more of it may come.
            wanted = stream.wanted
            if wanted > f.WINDOW and not stream.reserved:
                if not self._budget.take(wanted):
                    raise StreamFault("RESOURCE_EXHAUSTED", "too many large messages at once: try again")
                stream.reserved = wanted
            self._write(f.window_update(stream.number, f.WINDOW - stream.room))
            stream.room = f.WINDOW

    def _release(self, stream: Stream) -> None:
        if stream.reserved:
            self._budget.give_back(stream.reserved)
            stream.reserved = 0

    # ---- streams begin and end

    def _header_block(self, number: int, flags: int, payload: bytes) -> None:
        _expect(number % 2 == 1, "HEADERS")
        if flags & f.PADDED:
            payload = _unpadded(payload)
        if flags & f.PRIORITIZED:
            _expect_size(len(payload) >= 5, "HEADERS")
            payload = payload[5:]
        self._headers.begin(number, flags, payload)
        if flags & f.END_HEADERS:
            self._end_headers()

    def _continuation(self, flags: int, payload: bytes) -> None:
        _expect(self._headers.pending, "CONTINUATION")
        self._headers.add(payload)
        if flags & f.END_HEADERS:
            self._end_headers()

    def _end_headers(self) -> None:
        fields = self._headers.end()
        number, end = self._headers.stream, bool(self._headers.flags & f.END_STREAM)
        if number > self._last:
            self._begin(number, fields, end=end)
            return
        stream = self._streams.get(number)
        if stream is None:
            return  # it has ended here, and the client will hear of it
        if stream.ended or not end:
            self._reset(stream, ErrorCodes.STREAM_CLOSED if stream.ended else ErrorCodes.PROTOCOL_ERROR)
            return
        stream.ended = True
        self._drain(stream)

    def _begin(self, number: int, fields: list[tuple[bytes, bytes]], *, end: bool) -> None:
        self._last = number
        if self.leaving or len(self._streams) >= self._limits.streams:
            self._write(f.reset(number, ErrorCodes.REFUSED_STREAM))
            return
        if (refusal := judge(fields)) is not None:
            if refusal.reset:
                self._write(f.reset(number, ErrorCodes.PROTOCOL_ERROR))
            else:
                self._write_head(number, f.http_refusal(refusal.http_status), end=True)
            return
        path = dict(fields)[b":path"].decode("ascii", "replace")
        stream = self._streams[number] = Stream(number, path, self._first_window)
        stream.ended = end
        self._owner.begun(stream)
        if end:
            self._drain(stream)

    def _reset_by_peer(self, number: int, payload: bytes) -> None:
        _expect_size(len(payload) == 4, "RST_STREAM")
        self._check_not_idle(number)
        if (stream := self._streams.get(number)) is not None:
            self._credit -= COST_OF_RESET
            self._forget(stream)

    def _check_not_idle(self, number: int) -> None:
        _expect(number % 2 == 1 and number <= self._last, "a frame on an idle stream")

    def _reset(self, stream: Stream, code: ErrorCodes) -> None:
        self._write(f.reset(stream.number, code))
        self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        if self._streams.pop(stream.number, None) is None:
            return
        self._blocked.pop(stream.number, None)
        stream.pending = None
        self._unfinished -= stream.held
        self._release(stream)
        self._owner.closed(stream)

    def _drained(self, stream: Stream) -> None:
        self._owner.writable(stream)

    # ---- the connection itself

    def _settings(self, number: int, flags: int, payload: bytes) -> None:
        _expect(number == 0, "SETTINGS")
        if flags & f.ACK:
            _expect_size(not payload, "SETTINGS")
            self._headers.forget_table()
            return
        _expect_size(len(payload) % 6 == 0, "SETTINGS")
        values = f.read_settings(payload)
        if len(values) > _MAX_SETTINGS:
            raise ConnectionFault(ErrorCodes.ENHANCE_YOUR_CALM, "too many settings")
        for name, value in values:
            if name == f.INITIAL_WINDOW:
                self._resize_windows(value)
            elif name == f.MAX_FRAME:
                _expect(f.FRAME_SIZE <= value < 1 << 24, "SETTINGS_MAX_FRAME_SIZE")
                self._use_frame_size(value)
            elif name == f.ENABLE_PUSH:
                _expect(value in (0, 1), "SETTINGS_ENABLE_PUSH")
        self._write(f.frame(f.SETTINGS, f.ACK, 0))
        self._pump()

    def _ping(self, number: int, flags: int, payload: bytes) -> None:
        _expect(number == 0, "PING")
        _expect_size(len(payload) == 8, "PING")
        if flags & f.ACK:
            self.pinged = False
        else:
            self._write(f.frame(f.PING, f.ACK, 0, payload))

    def _window_update(self, number: int, payload: bytes) -> None:
        _expect_size(len(payload) == 4, "WINDOW_UPDATE")
        step = int.from_bytes(payload, "big") & f.MAX_WINDOW
        if number == 0:
            _expect(step > 0, "WINDOW_UPDATE")
            self._widen(step)
        elif (stream := self._streams.get(number)) is None:
            self._check_not_idle(number)
            return
        else:
            stream.window += step
            if step == 0 or stream.window > f.MAX_WINDOW:
                self._reset(stream, ErrorCodes.FLOW_CONTROL_ERROR if step else ErrorCodes.PROTOCOL_ERROR)
                return
        if self._blocked:
            self._pump()


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise ConnectionFault(ErrorCodes.PROTOCOL_ERROR, f"{what}: not as HTTP/2 wants it")


def _expect_size(holds: bool, what: str) -> None:
    if not holds:
        raise ConnectionFault(ErrorCodes.FRAME_SIZE_ERROR, f"{what} of wrong size")


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(ErrorCodes.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]
