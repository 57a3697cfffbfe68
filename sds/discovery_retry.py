# SPDX-License-Identifier: Apache-2.0
"""When to send again what a client refused although nothing in it has changed. Pure: times in, seconds out.

A refused version is not repeated: it would be refused again, and again, in a loop that costs both ends. But some
reasons pass (an address that is still in use, a clock that runs behind), and whoever refused has no way to ask. So
after some minutes it is tried once more; the pause is spread, so that a fleet that refused together does not answer
together.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from sds.discovery_stream import Stream

PAUSE_SECONDS = 300.0
_SPREAD = 0.4


class Retry:
    """One stream's. `jitter` gives numbers from 0 to 1."""

    __slots__ = ("_due", "_jitter")

    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        self._jitter = jitter
        self._due: float | None = None

    def step(self, stream: Stream, now: float) -> float:
        """Make what was refused long enough ago due again; the seconds until there may be something to do, infinity if
        nothing is refused. `now`: seconds of any clock that never goes back."""
        if not stream.has_refused:
            self._due = None
            return math.inf
        if self._due is None:
            self._due = now + PAUSE_SECONDS * (1 - _SPREAD / 2 + _SPREAD * self._jitter())
        if now >= self._due:
            self._due = None
            stream.retry_refused()
            return math.inf
        return self._due - now
