# SPDX-License-Identifier: Apache-2.0
"""Moves the bytes of one admitted connection: two protocols that write straight to each other's transport.

Payload takes no queue and no task; what waits is bounded by the transports' own write buffers, because a side whose
buffer is full stops the reading of the other one. Both sides are made paused: not one byte is read from either before
they are joined, and they are joined only after the peer was admitted.

Ends: asyncio's TLS transports cannot close one direction only. So when either side ends its stream, what it has sent so
far is flushed to the other side and then both are closed; an application that shuts down its sending half and still
expects an answer gets none. A side that does not take what is left within `linger` seconds is cut off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

# Bytes that may wait for a slow side before the other is stopped. Together with one chunk in flight (at most 256 KiB)
# a connection holds below 700 KiB in the worst case: 64 KiB + 256 KiB each way.
HIGH_WATER = 64 * 1024


class Half(asyncio.Protocol):
    """One side of a relayed connection."""

    __slots__ = ("_choked", "_count", "_early", "_flushing", "closed", "ended", "other", "transport")

    transport: asyncio.Transport

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.other: Half | None = None
        self.ended: asyncio.Future[None] = loop.create_future()  # nothing more will come from this side
        self.closed: asyncio.Future[None] = loop.create_future()
        self._count: Callable[[int], None] | None = None
        self._early: list[bytes] = []
        self._choked = False
        self._flushing = False

    @property
    def connected(self) -> bool:
        """Whether there is, or was, a transport."""
        return hasattr(self, "transport")

    @property
    def unsent(self) -> int:
        """Bytes that wait in this side's write buffer."""
        return 0 if self.closed.done() else self.transport.get_write_buffer_size()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=HIGH_WATER)
        self.transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        if self._flushing:
            return  # nobody is left to take it
        other = self.other
        if other is None or self._count is None:
            # A TLS transport may deliver what came with the end of the handshake although reading is paused: at most
            # one read of 256 KiB.
            self._early.append(data)
            return
        self._count(len(data))
        other.transport.write(data)

    def eof_received(self) -> bool:
        self._end()
        # A plain transport stays open for what still has to be written to it; a TLS transport cannot.
        return self.transport.get_extra_info("ssl_object") is None

    def pause_writing(self) -> None:
        self._choked = True
        if self.other is not None and not self._flushing:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        self._choked = False
        if self._flushing:
            self._close()
        elif self.other is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)
        self._end()

    def start(self, count: Callable[[int], None]) -> None:
        """Begin to pass what this side sends to the other one; `count` gets the size of each chunk."""
        other = self.other
        if other is None:
            raise RuntimeError("a side must be joined before it starts")
        self._count = count
        for data in self._early:
            self.data_received(data)
        self._early.clear()
        if self.ended.done():
            other.close_flushed()
        elif not other._choked and not self._flushing:
            self.transport.resume_reading()

    def close_flushed(self) -> None:
        """Close once everything written so far has left the buffer. What arrives from now on is dropped."""
        if self._flushing or self.transport.is_closing():
            return
        self._flushing = True
        # `close()` of asyncio's TLS transport drops what it could not yet hand to the socket, so that it must come
        # after the buffer is empty: with a limit of zero `resume_writing` says when. It also fails on unread input, so
        # that input is read and dropped.
        self.transport.resume_reading()
        self.transport.set_write_buffer_limits(high=0)
        if self.transport.get_write_buffer_size() == 0:
            self._close()

    def _close(self) -> None:
        # Once only: in Python before 3.11.4 a second close() of a TLS transport leaves it unusable, even for abort().
        if not self.transport.is_closing():
            self.transport.close()

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
        if self.other is not None:
            self.other.close_flushed()


async def splice(
    near: Half, far: Half, linger: float, received: Callable[[int], None], sent: Callable[[int], None]
) -> None:
    """Join two connected sides and wait until both are closed; on cancellation both are cut off.

    `received` counts the bytes from `near` to `far`, `sent` those of the other direction. After the end of either side
    the rest may take as long as it makes progress within every `linger` seconds.
    """
    try:
        near.other, far.other = far, near
        near.start(received)
        far.start(sent)
        await asyncio.wait((near.ended, far.ended), return_when=asyncio.FIRST_COMPLETED)
        waiting = -1
        while True:
            _, pending = await asyncio.wait((near.closed, far.closed), timeout=linger)
            before, waiting = waiting, near.unsent + far.unsent
            if not pending or waiting in (0, before):
                return
    finally:
        near.transport.abort()
        far.transport.abort()
