# SPDX-License-Identifier: Apache-2.0
"""Handshakes one after the other, those of one source in the order in which they began. No I/O.

When a Coordinator comes back, its whole mesh connects within a second, and every handshake takes 2 ms of CPU. They
wait here, as sockets that cost next to nothing, instead of being refused and coming again in the same moment. At most
`limit` are under way, so that memory is bounded, and no more than `_SLICE` seconds are spent on them at a time: pushes
and answers to those who are connected go on in between. One source may have half of `limit` under way: who begins
handshakes and does not go on does not keep others out; and sources take turns.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Protocol

_SLICE = 0.004


class Shaking(Protocol):
    """One handshake. `host`: the source that it counts for."""

    host: str

    def shake(self) -> bool:
        """One step; whether there may be another."""


class Handshakes:
    """`soon(callback)` calls back in the next round of the loop."""

    def __init__(self, limit: int, soon: Callable[[Callable[[], None]], object]) -> None:
        self._limit = limit
        self._soon = soon
        self._starting: OrderedDict[str, deque[Shaking]] = OrderedDict()
        self._going_on: deque[Shaking] = deque()
        self._under_way: dict[Shaking, str] = {}
        self._sources: Counter[str] = Counter()
        self._scheduled = False

    @property
    def waiting(self) -> int:
        """Those that have not had their first turn."""
        return sum(map(len, self._starting.values()))

    def add(self, one: Shaking) -> None:
        """Something came: a step when its turn comes."""
        if one in self._under_way:
            self._going_on.append(one)
        else:
            self._starting.setdefault(one.host, deque()).append(one)
        self._schedule()

    def ended(self, one: Shaking) -> None:
        """Done, refused or gone. Twice is once."""
        source = self._under_way.pop(one, None)
        if source is None:
            return
        self._sources[source] -= 1
        if not self._sources[source]:
            del self._sources[source]
        if self._starting:
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._soon(self._some)

    def _some(self) -> None:
        self._scheduled = False
        end = time.monotonic() + _SLICE
        while time.monotonic() < end:
            if self._going_on:
                one = self._going_on.popleft()
            elif (first := self._next()) is not None:
                one = first
                self._under_way[one] = one.host
                self._sources[one.host] += 1
            else:
                return
            if not one.shake():
                self.ended(one)
        self._schedule()

    def _next(self) -> Shaking | None:
        """Who may begin: the first of the source whose turn it is and that has not its share already. At most two
        sources have."""
        if len(self._under_way) >= self._limit:
            return None
        for source, waiting in self._starting.items():
            if self._sources[source] < (self._limit + 1) // 2:
                one = waiting.popleft()
                del self._starting[source]
                if waiting:
                    self._starting[source] = waiting
                return one
        return None
