# SPDX-License-Identifier: Apache-2.0
"""What a client's HTTP/2 frames may cost us before they are parsed. Pure: bytes in, a verdict out.

HTTP/2 lets a client make work that no stream or window limits: pings and settings that must be answered, streams that
are opened and reset at once (CVE-2023-44487) or made to be reset by us (CVE-2025-8671), DATA frames of one byte, frames
on streams long closed, CONTINUATION without end. Each frame takes about 30 µs here whatever it carries, so frames are
what is counted: every one costs, bytes of DATA and finished answers earn. An honest client earns more than it spends;
one that only spends has had 1000 frames, 30 ms, when it is told to go.
"""

from __future__ import annotations

CREDIT = 1000
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

_HEAD = 9  # length (3), type, flags, stream (4)
_DATA, _HEADERS, _RST_STREAM = 0x0, 0x1, 0x3
_COSTS = {_HEADERS: 5, _RST_STREAM: 5}
# A DATA frame of less than this is dearer than it is worth; usual ones have 16 KiB and earn 63.
_EARNING_BYTES = 256
# An answer: HEADERS, and DATA that the client acknowledges with two WINDOW_UPDATE frames.
ANSWER = 8
SENT_FRAME = 3


class FrameMeter:
    """One per connection; follows the frame boundaries of what the client sends."""

    def __init__(self, credit: int = CREDIT) -> None:
        self._most = credit
        self.credit = credit
        self._skip = len(PREFACE)
        self._head = bytearray()

    def feed(self, data: bytes) -> bool:
        """Count the frames that begin in `data`; False once the client has spent all it had."""
        position = 0
        while position < len(data):
            if self._skip:
                step = min(self._skip, len(data) - position)
                self._skip -= step
                position += step
                continue
            step = min(_HEAD - len(self._head), len(data) - position)
            self._head += data[position : position + step]
            position += step
            if len(self._head) == _HEAD:
                self._skip = int.from_bytes(self._head[:3], "big")
                self._charge(self._head[3], self._skip)
                self._head.clear()
        return self.credit > 0

    def earn(self, credit: int) -> None:
        self.credit = min(self._most, self.credit + credit)

    def _charge(self, kind: int, length: int) -> None:
        self.credit -= _COSTS.get(kind, 1)
        if kind == _DATA:
            self.earn(length // _EARNING_BYTES)
