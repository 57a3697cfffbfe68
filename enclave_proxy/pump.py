# SPDX-License-Identifier: Apache-2.0
"""Moves the bytes of one admitted connection: two streams that are watched, no task and no queue between.

Each direction reads a chunk into the loop's scratch buffer and sends it on at once, a few in a row if they are whole.
What the receiver does not take is kept, and the sender is not read again before it is gone: a connection holds at most
one chunk (64 KiB) each way.

Ends: the end of one direction passes on as just that (close_notify, FIN), the other goes on. Both ended: closed. A
receiver that has gone (its UNIX socket is closed) takes nothing more; what still comes for it is thrown away for a
bounded time, so that what it said last arrives: a socket closed with unread input resets the connection. One that
breaks (reset, no close_notify) breaks the other side too, without a clean end: nobody may take a part for the whole.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from enclave_proxy.counters import ListenerCounters, Refusal
from enclave_proxy.limits import Limits
from enclave_proxy.readiness import Readiness, readiness
from enclave_proxy.stream import END, WANT_WRITE, Deaf, Stream
from enclave_proxy.tls_library import CHUNK, scratch
from enclave_proxy.tls_stream import Alerted, Truncated

# How much of a timeout may pass unnoticed: timers look at what moved, bytes do not look at the clock.
_GRAIN = 8
# Chunks that one direction may move before others have their turn: a quarter of a millisecond.
_ROW = 4


class Moved(Protocol):
    """Where it is said at the end how many bytes one connection has carried."""

    received: int
    sent: int


async def splice(near: Stream, far: Stream, limits: Limits, counters: ListenerCounters, moved: Moved) -> Refusal | None:
    """Join two streams and wait until both directions have ended; None, or why it was cut off. Closes both, at once if
    it is cancelled. `near` is the side that connected to us; `moved` is told at the end."""
    joint = _Joint(near, far, limits, counters)
    try:
        joint.start()
        return await joint.ended
    finally:
        moved.received, moved.sent = joint.moved
        joint.close()


class _Joint:
    """Two streams and the two ways between them."""

    __slots__ = ("_far", "_limits", "_loop", "_near", "_quiet_since", "_seen", "_started", "_timer", "_ways", "ended")

    def __init__(self, near: Stream, far: Stream, limits: Limits, counters: ListenerCounters) -> None:
        ready = readiness()
        self._loop = ready.loop
        self.ended: asyncio.Future[Refusal | None] = self._loop.create_future()
        self._near, self._far = near, far
        inward = _Way(self, ready, near, far, counters, inward=True)
        outward = _Way(self, ready, far, near, counters, inward=False)
        inward.other, outward.other = outward, inward
        self._ways = inward, outward
        self._limits = limits
        self._started = self._quiet_since = self._loop.time()
        self._seen = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def moved(self) -> tuple[int, int]:
        """Bytes from and to the near side."""
        return self._ways[0].moved, self._ways[1].moved

    def start(self) -> None:
        for way in self._ways:
            way.start()
        self._watch_clock()

    def end(self, why: Refusal | None = None) -> None:
        """Both directions are done, or it is cut off."""
        if not self.ended.done():
            self.ended.set_result(why)
            self._forget()

    def close(self) -> None:
        self._forget()
        whole = self.ended.done() and not self.ended.cancelled() and self.ended.result() is None
        for side in (self._near, self._far):
            side.close() if whole else side.tear()

    def changed(self) -> None:
        """One direction has ended or is deaf: another timeout counts from now on."""
        self._quiet_since = self._loop.time()
        self._watch_clock()

    def _forget(self) -> None:
        for way in self._ways:
            way.stop()
        if self._timer is not None:
            self._timer.cancel()

    def _watch_clock(self) -> None:
        """Look again when the next timeout may be over."""
        if self._timer is not None:
            self._timer.cancel()
        waits = [wait for wait in (self._patience()[0] / _GRAIN, self._rest()) if wait > 0]
        if waits:
            self._timer = self._loop.call_later(min(waits), self._tick)

    def _patience(self) -> tuple[float, Refusal]:
        """How long nothing may move: 0 for ever."""
        one, other = self._ways
        if one.lingers or other.lingers:
            return self._limits.linger, Refusal.LINGER
        if one.done or other.done:
            return self._limits.half_closed_timeout, Refusal.IDLE
        return self._limits.idle_timeout, Refusal.IDLE

    def _rest(self) -> float:
        """What is left of the lifetime; 0: it has none."""
        limit = self._limits.lifetime
        return max(self._started + limit - self._loop.time(), 0.001) if limit else 0.0

    def _tick(self) -> None:
        now = self._loop.time()
        # Bytes that are thrown away are no sign of life.
        moved = self._ways[0].moved + self._ways[1].moved
        if moved != self._seen:
            self._seen, self._quiet_since = moved, now
        allowed, why = self._patience()
        if self._limits.lifetime and now - self._started >= self._limits.lifetime:
            self.end(Refusal.LIFETIME)
        elif allowed and now - self._quiet_since >= allowed:
            self.end(why)
        else:
            self._watch_clock()


class _Way:
    """One direction of a joint. What is watched for it: its source for reading, its destination for writing."""

    __slots__ = (
        "_blocked", "_counters", "_destination", "_inward", "_joint", "_pending", "_reading", "_ready", "_scratch",
        "_source", "_writing", "done", "dropping", "moved", "other", "source_ended",
    )  # fmt: skip
    other: _Way

    def __init__(
        self,
        joint: _Joint,
        ready: Readiness,
        source: Stream,
        destination: Stream,
        counters: ListenerCounters,
        *,
        inward: bool,
    ) -> None:
        self._ready = ready
        self._joint = joint
        self._source = source
        self._destination = destination
        self._scratch = scratch.view
        self._counters = counters
        self._inward = inward
        self._pending = b""
        self._reading = self._writing = False
        self._blocked = False  # the source cannot be read before it can be written to
        self.source_ended = False
        self.dropping = False
        self.done = False
        self.moved = 0

    @property
    def lingers(self) -> bool:
        """Whether it has to be over soon."""
        return self.dropping or (self.source_ended and not self.done)

    def start(self) -> None:
        self._watch_source()

    def stop(self) -> None:
        """Do nothing any more."""
        self.done = True
        self._leave_source()
        self._leave_destination()

    def readable(self) -> None:
        """Read and send on: once, or as long as whole chunks come and are taken at once, but not for ever."""
        source = self._source
        try:
            for _ in range(_ROW):
                size = source.read()
                if size <= 0:
                    self._no_bytes(size)
                    return
                if not self.dropping:
                    self.moved += size
                    if self._inward:
                        self._counters.received += size
                    else:
                        self._counters.sent += size
                    taken = self._destination.send(size)
                    if taken < size:
                        self._hold(bytes(self._scratch[taken:size]))
                        return
                if source.unread:
                    self._ready.loop.call_soon(self._read_rest)
                    return
                if size < CHUNK:
                    return
        except Deaf:
            self.drop()
        except OSError as e:
            self._joint.end(_reason(e))

    def _no_bytes(self, what: int) -> None:
        if what == END:
            self._source_has_ended()
        elif what == WANT_WRITE:
            self._blocked = True
            self._leave_source()
            self.other.watch_destination()

    def _read_rest(self) -> None:
        if self._reading:
            self.readable()

    def _hold(self, data: bytes) -> None:
        self._pending = data
        self._leave_source()
        self.watch_destination()

    def writable(self) -> None:
        """The destination can be written to again."""
        try:
            if self._pending:
                taken = self._destination.send_again(self._pending)
                self.moved += taken
                self._pending = self._pending[taken:]
                if self._pending:
                    return
            self._leave_destination()
            self.other.unblock()
            if self.source_ended:
                self._pass_end()
            elif not self._blocked:
                self._watch_source()
        except Deaf:
            self.drop()
        except OSError:
            self._joint.end(Refusal.ABORTED)

    def unblock(self) -> None:
        """The source can be written to again, which its reading waited for."""
        if self._blocked:
            self._blocked = False
            if not self._pending and not self.source_ended:
                self._watch_source()

    def drop(self) -> None:
        """The destination takes nothing more: what comes for it is thrown away, until the source ends or `linger` is
        over."""
        if self.done or self.dropping:
            return
        self.dropping = True
        self._pending = b""
        self._leave_destination()
        self.other.unblock()
        if self.source_ended:
            self._finish()
        else:
            if not self._blocked:
                self._watch_source()
            self._joint.changed()

    def _source_has_ended(self) -> None:
        self._leave_source()
        self.source_ended = True
        if self._source.gone():
            self.other.drop()
        self._pass_end()

    def _pass_end(self) -> None:
        if self.done:
            return
        if self.dropping or self._destination.end_writing():
            self._finish()
        else:
            self.watch_destination()
            self._joint.changed()

    def _finish(self) -> None:
        self.done = True
        if self.other.done:
            self._joint.end()
        else:
            self._joint.changed()

    def watch_destination(self) -> None:
        if not self._writing:
            self._writing = True
            self._ready.watch_writing(self._destination.descriptor, self.writable)

    def _leave_destination(self) -> None:
        if self._writing:
            self._writing = False
            self._ready.leave_writing(self._destination.descriptor)

    def _watch_source(self) -> None:
        if not self._reading:
            self._reading = True
            self._ready.watch_reading(self._source.descriptor, self.readable)
            if self._source.unread:
                self._ready.loop.call_soon(self._read_rest)

    def _leave_source(self) -> None:
        if self._reading:
            self._reading = False
            self._ready.leave_reading(self._source.descriptor)


def _reason(error: OSError) -> Refusal:
    if isinstance(error, Truncated):
        return Refusal.TRUNCATED
    return Refusal.REFUSED_BY_PEER if isinstance(error, Alerted) else Refusal.ABORTED
