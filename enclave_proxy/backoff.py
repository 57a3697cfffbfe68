# SPDX-License-Identifier: Apache-2.0
"""How long to wait before asking again: exponential with full jitter: a thousand workers never ask at once."""

from __future__ import annotations

from collections.abc import Callable


class Backoff:
    """Delays in seconds. `random` gives numbers in [0, 1); `floor` keeps a full jitter from being (almost) zero."""

    def __init__(self, random: Callable[[], float], *, initial: float, cap: float, floor: float = 0.0) -> None:
        self._random = random
        self._initial = initial
        self._cap = cap
        self._floor = floor
        self._ceiling = initial

    def next(self) -> float:
        """The next delay: anywhere between the floor and a ceiling that doubles each time up to the cap."""
        ceiling, self._ceiling = self._ceiling, min(self._ceiling * 2, self._cap)
        return self._floor + (ceiling - self._floor) * self._random()

    def reset(self) -> None:
        """The other side answered: start again with short delays."""
        self._ceiling = self._initial
