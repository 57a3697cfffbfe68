# SPDX-License-Identifier: Apache-2.0
"""The receiving half of an HTTP/2 connection up to whole frames: preface, sizes, and what a client may make us do.

HTTP/2 lets a client make work that no window or stream limit bounds: pings and settings that must be answered, streams
that are opened and reset at once (CVE-2023-44487), empty frames, CONTINUATION, and below it TLS records that bring
nothing. So every frame costs credit. What we send earns some, for it has to be answered, and so does time; who only
spends is told to go when it is used up.
"""

from __future__ import annotations

from abc import abstractmethod

from h2.errors import ErrorCodes

from xds_server import rpc_frames as f
from xds_server.rpc_headers import ConnectionFault
from xds_server.rpc_outbound import Outbound

# As many frames as an honest client sends in a burst, and what time gives back.
CREDIT = 4000
CREDIT_PER_SECOND = 50
_COST = {f.HEADERS: 10, f.CONTINUATION: 5}
COST_OF_RESET = 5  # of what somebody works on
# What a DATA frame of ours may be answered with: an ACK, two window updates, a ping that measures the line.
_EARNED = 4
# One more credit for each so many bytes of DATA; and the cost of TLS records that bring nothing.
_DATA_PER_CREDIT = 256
_OVERHEAD_PER_CREDIT = 128


class Framing(Outbound):
    """Base of `rpc_h2.Connection`. After a fault of the peer `ended` is set, the last bytes to write say why, and
    nothing more is taken in."""

    __slots__ = ("_credit", "_credit_at", "_greeted", "_last", "_rest", "ended", "fault")

    def __init__(self, greeting: bytes, now: float) -> None:
        super().__init__(greeting)
        self._rest = b""
        self._greeted = 0  # 1: the preface came, 2: and the settings
        self._last = 0  # the newest stream
        self._credit = float(CREDIT)
        self._credit_at = now
        self.ended = False
        self.fault = ""

    def receive(self, data: bytes, now: float, overhead: int = 0) -> None:
        """Take in what came; `overhead`: how many more bytes it took on the wire."""
        if self.ended:
            return
        earned = self.earned * _EARNED + (now - self._credit_at) * CREDIT_PER_SECOND
        self._credit = min(CREDIT, self._credit + earned) - overhead // _OVERHEAD_PER_CREDIT
        self._credit_at, self.earned = now, 0
        if self._rest:
            data = self._rest + data
        try:
            position = self._frames(data, 0 if self._greeted else self._preface(data))
        except ConnectionFault as fault:
            self.fault = str(fault)
            self._rest = b""
            self._write(f.goaway(self._last, fault.code, str(fault)))
            self.cut()
        else:
            self._rest = data[position:]

    def _preface(self, data: bytes) -> int:
        if not f.PREFACE.startswith(data[: len(f.PREFACE)]):
            raise ConnectionFault(ErrorCodes.PROTOCOL_ERROR, "no HTTP/2 preface")
        if len(data) < len(f.PREFACE):
            return 0
        self._greeted = 1
        return len(f.PREFACE)

    def _frames(self, data: bytes, position: int) -> int:
        """Take in every whole frame from `position` on; where the rest begins."""
        while self._greeted and len(data) - position >= f.FRAME_HEAD and not self.ended:
            size, kind, flags, number = f.read_head(data, position)
            if size > f.FRAME_SIZE:
                raise ConnectionFault(ErrorCodes.FRAME_SIZE_ERROR, "frame larger than SETTINGS_MAX_FRAME_SIZE")
            end = position + f.FRAME_HEAD + size
            if end > len(data):
                break
            self._charge(kind, size)
            if self._greeted < 2:
                if kind != f.SETTINGS or flags & f.ACK:
                    raise ConnectionFault(ErrorCodes.PROTOCOL_ERROR, "the first frame is not SETTINGS")
                self._greeted = 2
            self._frame(kind, number, flags, data[position + f.FRAME_HEAD : end])
            position = end
        return position

    def _charge(self, kind: int, size: int) -> None:
        if kind == f.DATA:
            self._credit += size // _DATA_PER_CREDIT - 1
        else:
            self._credit -= _COST.get(kind, 1)
        if self._credit < 0:
            raise ConnectionFault(ErrorCodes.ENHANCE_YOUR_CALM, "too many frames for too little")

    @abstractmethod
    def _frame(self, kind: int, number: int, flags: int, payload: bytes) -> None:
        """One frame. Raises ConnectionFault."""

    @abstractmethod
    def cut(self) -> None:
        """The connection is over."""
