# SPDX-License-Identifier: Apache-2.0
"""Admission of new streams when a whole mesh comes back at once: a token bucket that makes them wait in the order in
which they came, instead of sending them away to come back in the same moment."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable


class Overloaded(Exception):
    """Too many wait already; `seconds` from now there may be room."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"too many clients connect at once: try again in {seconds:.0f} s")


class Bucket:
    """`burst` tokens at most, `rate` new ones per second. Pure: whoever asks says what time it is."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._at = now

    def take(self, count: float, now: float) -> bool:
        """Take tokens, if there are so many."""
        self._fill(now)
        if self._tokens < count:
            return False
        self._tokens -= count
        return True

    def owe(self, count: float, now: float) -> float:
        """Take tokens whether there are so many or not; seconds until the debt is paid."""
        self._fill(now)
        self._tokens -= count
        return max(0.0, -self._tokens / self._rate)

    def wait(self, now: float) -> float:
        """Seconds until there is a token."""
        self._fill(now)
        return max(0.0, (1.0 - self._tokens) / self._rate)

    def is_full(self, now: float) -> bool:
        """Whether nothing is missing."""
        self._fill(now)
        return self._tokens >= self._burst

    def _fill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now


class Admission:
    """`enter` returns at once while there are tokens, later in the order of arrival; `limit` may wait."""

    def __init__(self, rate: float, burst: int, limit: int, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._limit = limit
        self._clock = clock
        self._bucket = Bucket(rate, burst, clock())
        self._queue: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._queue)

    async def enter(self) -> None:
        """Wait for one's turn. Raises Overloaded."""
        if not self._queue and self._bucket.take(1, self._clock()):
            return
        if self.waiting >= self._limit:
            raise Overloaded(max(1.0, self.waiting / self._rate))
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._queue[turn] = None
        if self._timer is None:
            self._timer = loop.call_later(self._bucket.wait(self._clock()), self._admit)
        try:
            await turn
        finally:
            self._queue.pop(turn, None)  # the client did not want to wait

    def close(self) -> None:
        """Let everybody in, to be told that we stop."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._queue:
            self._next()

    def _admit(self) -> None:
        self._timer = None
        now = self._clock()
        while self._queue:
            if not self._bucket.take(1, now):
                self._timer = asyncio.get_running_loop().call_later(self._bucket.wait(now), self._admit)
                return
            self._next()

    def _next(self) -> None:
        turn, _ = self._queue.popitem(last=False)
        if not turn.done():  # or it leaves in this very moment
            turn.set_result(None)
