# SPDX-License-Identifier: Apache-2.0
"""The sending half of an HTTP/2 connection: messages become frames as far as the peer's windows and the socket allow.

What does not fit waits in its stream, as a view of the message and not as frames; so a client that reads slowly holds
one message per stream and one buffer of frames, whatever windows it has opened.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from h2.errors import ErrorCodes

from xds_server import rpc_frames as f
from xds_server.rpc_headers import ConnectionFault
from xds_server.rpc_stream import PREFIX, Stream

# Frames that are made before the socket takes them.
_HIGH_WATER = 256 * 1024
# Larger frames than this win nothing, and hold up the other streams.
_MOST_IN_FRAME = 4 * f.FRAME_SIZE
# The end of a call earns nearly what its beginning cost, all of it if it went well.
_ENDED, _ENDED_WELL = 2, 3


class Outbound(ABC):
    """Base of `rpc_h2.Connection`."""

    __slots__ = (
        "_blocked",
        "_first_window",
        "_frame_size",
        "_out",
        "_out_size",
        "_said_table",
        "_streams",
        "_window",
        "earned",
    )

    def __init__(self, greeting: bytes) -> None:
        self._streams: dict[int, Stream] = {}
        self._blocked: dict[int, Stream] = {}
        self._window = f.WINDOW
        self._first_window = f.WINDOW
        self._frame_size = f.FRAME_SIZE
        self._said_table = False
        self.earned = 0  # what was sent and has to be answered, since whoever counts it has looked
        self._out = [greeting]
        self._out_size = len(greeting)

    # ---- for whoever serves the streams

    def send(self, stream: Stream, body: bytes) -> bool:
        """Send one message. False: not all of it fits; `Owner.writable` says when to send the next one.

        Not to be called while one waits. On a stream that has ended it is without effect.
        """
        if not self._is_open(stream):
            return True
        if stream.pending is not None:
            raise RuntimeError("a message is still waiting")
        if not stream.started:
            self._start(stream, end=False)
        size = PREFIX + len(body)
        head = b"\0" + len(body).to_bytes(4, "big")
        if size <= min(stream.window, self._window, self._frame_size) and self._out_size < _HIGH_WATER:
            self._write_data(stream, head, body)
            return True
        stream.pending = memoryview(head + body)
        self._blocked[stream.number] = stream
        self._pump()
        stream.waits = stream.pending is not None
        return not stream.waits

    def finish(self, stream: Stream, status: str, text: str = "") -> None:
        """End with this gRPC status: OK after what still waits, a fault at once."""
        if not self._is_open(stream):
            return
        stream.trailers = f.trailers(status, text)
        if stream.pending is None or status != "OK":
            self._end(stream)

    # ---- for whoever owns the socket

    def take_out(self) -> bytes:
        """What is to be written now."""
        out = b"".join(self._out)
        self._out.clear()
        self._out_size = 0
        if self._blocked:
            self._pump()
        return out

    @property
    def has_out(self) -> bool:
        """Whether `take_out` has something."""
        return bool(self._out)

    # ---- windows

    def _resize_windows(self, value: int) -> None:
        """SETTINGS_INITIAL_WINDOW_SIZE: of streams that are open too. Raises ConnectionFault."""
        if value > f.MAX_WINDOW:
            raise ConnectionFault(ErrorCodes.FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE too large")
        for stream in self._streams.values():
            stream.window += value - self._first_window
            if stream.window > f.MAX_WINDOW:
                raise ConnectionFault(ErrorCodes.FLOW_CONTROL_ERROR, "window too large")
        self._first_window = value

    def _use_frame_size(self, value: int) -> None:
        self._frame_size = min(value, _MOST_IN_FRAME)

    def _widen(self, step: int) -> None:
        """WINDOW_UPDATE of the connection. Raises ConnectionFault."""
        self._window += step
        if self._window > f.MAX_WINDOW:
            raise ConnectionFault(ErrorCodes.FLOW_CONTROL_ERROR, "window too large")

    # ---- frames

    def _pump(self) -> None:
        """As much of what waits as the windows take, a frame of each stream in turn."""
        turn = list(self._blocked.values())
        while turn and self._out_size < _HIGH_WATER and self._window > 0:
            turn = [stream for stream in turn if self._pump_frame(stream)]

    def _pump_frame(self, stream: Stream) -> bool:
        """Send one frame of what waits; whether the stream could go on."""
        waiting = stream.pending
        room = min(stream.window, self._window, self._frame_size)
        if waiting is None or room <= 0:
            return False
        self._write_data(stream, b"", bytes(waiting[:room]))
        if room < len(waiting):
            stream.pending = waiting[room:]
            return True
        stream.pending = None
        del self._blocked[stream.number]
        if stream.trailers is not None:
            self._end(stream)
        elif stream.waits:
            stream.waits = False
            self._drained(stream)
        return False

    def _write_data(self, stream: Stream, prefix: bytes, body: bytes) -> None:
        size = len(prefix) + len(body)
        stream.window -= size
        self._window -= size
        self.earned += 1
        self._write(f.frame_head(size, f.DATA, 0, stream.number) + prefix)
        self._write(body)

    def _start(self, stream: Stream, *, end: bool) -> None:
        stream.started = True
        block = f.GRPC_HEAD if stream.trailers is None else f.GRPC_HEAD + stream.trailers
        self._write_head(stream.number, block, end=end)

    def _end(self, stream: Stream) -> None:
        assert stream.trailers is not None
        self.earned += _ENDED_WELL if stream.trailers == f.OK_TRAILERS else _ENDED
        if stream.started:
            self._write_head(stream.number, stream.trailers, end=True)
        else:
            self._start(stream, end=True)
        self._forget(stream)

    def _write_head(self, number: int, block: bytes, *, end: bool) -> None:
        if not self._said_table:
            self._said_table = True
            block = f.EMPTY_TABLE + block
        self._write(f.frame(f.HEADERS, f.END_HEADERS | (f.END_STREAM if end else 0), number, block))

    def _write(self, data: bytes) -> None:
        self._out.append(data)
        self._out_size += len(data)

    def _is_open(self, stream: Stream) -> bool:
        return self._streams.get(stream.number) is stream

    @abstractmethod
    def _drained(self, stream: Stream) -> None:
        """What waited has been sent."""

    @abstractmethod
    def _forget(self, stream: Stream) -> None:
        """The stream is over."""
