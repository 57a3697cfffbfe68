# SPDX-License-Identifier: Apache-2.0
"""Passive outlier ejection: endpoints that keep failing are left out for a while. Rules only: no sockets, the clock is
given.

Every dial is the health check. So many failures in a row put an endpoint out, each time for longer; a success heals it.
Its failures in a row are not forgotten while it is out: one more when it is back puts it out again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierRules:
    """Seconds are floats. `consecutive`, `base`, `maximum` and `interval` are the defaults of Envoy's
    config.cluster.v3.OutlierDetection (consecutive_5xx, which for TCP means failed connections, base_ejection_time,
    max_ejection_time, interval).

    The other two differ. Envoy takes out at most 10 %, but always one: of two endpoints, and of one, all the rest is
    left to its panic mode. Here it is half, rounded down. Envoy has no jitter unless told, and then all its proxies
    come back to an endpoint in the same second.
    """

    consecutive: int = 5
    base: float = 30.0
    maximum: float = 300.0
    interval: float = 10.0
    jitter: float = 3.0
    share: float = 0.5


@dataclass(slots=True)
class _Record:
    failures: int = 0
    ejections: int = 0
    until: float = -math.inf


class Outliers(Generic[K]):
    """Who of the members is out. `clock` gives seconds that never go back, `random` numbers in [0, 1).

    Memory: one record for each member that has ever failed.
    """

    def __init__(
        self, clock: Callable[[], float], random: Callable[[], float], rules: OutlierRules | None = None
    ) -> None:
        self._clock = clock
        self._random = random
        self._rules = rules or OutlierRules()
        self._members: Collection[K] = ()
        self._records: dict[K, _Record] = {}

    def retain(self, members: Collection[K]) -> None:
        """From now on these are the members: others are forgotten, and of fewer members fewer may be out."""
        self._members = members
        for key in self._records.keys() - set(members):
            del self._records[key]
        out = sorted((self._records[key] for key in self.out()), key=lambda record: record.until)
        for record in out[: max(0, len(out) - self._allowed())]:
            record.until = self._clock()  # those that would be back first

    def out(self) -> list[K]:
        """Who is out now."""
        now = self._clock()
        return [key for key, record in self._records.items() if now < record.until]

    def is_out(self, key: K) -> bool:
        """Whether a member is left out now."""
        record = self._records.get(key)
        return record is not None and self._clock() < record.until

    def remaining(self, key: K) -> float:
        """For how many seconds a member is still out; 0: it is not."""
        record = self._records.get(key)
        return 0.0 if record is None else max(0.0, record.until - self._clock())

    def failures(self, key: K) -> int:
        """How often a member has failed since it last succeeded."""
        record = self._records.get(key)
        return 0 if record is None else record.failures

    def failed(self, key: K) -> bool:
        """A dial failed. Whether that put the member out; what is no member (any more) is not counted."""
        if key not in self._members:
            return False
        record = self._records.setdefault(key, _Record())
        record.failures += 1
        if record.failures < self._rules.consecutive or self.is_out(key) or len(self.out()) >= self._allowed():
            return False
        rules, now = self._rules, self._clock()
        ceiling = math.ceil(rules.maximum / rules.base)
        record.ejections = min(self._remembered(record, now) + 1, ceiling)
        record.until = now + min(rules.base * record.ejections, rules.maximum) + self._random() * rules.jitter
        return True

    def succeeded(self, key: K) -> None:
        """A dial was admitted: the member is in again. How often it was out is forgotten with time."""
        record = self._records.get(key)
        if record is None:
            return
        now = self._clock()
        record.failures = 0
        record.until = min(record.until, now)
        if not self._remembered(record, now):
            del self._records[key]

    def _remembered(self, record: _Record, now: float) -> int:
        """Ejections in a row: one less for each interval that the member has been in since."""
        if not record.ejections:
            return 0
        return max(0, record.ejections - int((now - record.until) // self._rules.interval))

    def _allowed(self) -> int:
        return int(len(self._members) * self._rules.share)
