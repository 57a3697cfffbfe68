# SPDX-License-Identifier: Apache-2.0
"""What fails when: a list that depends on nothing but its seed, so that a run can be repeated.

A target fails in one way at a time. What lasts for a while ends before the next thing happens to the same target, with
a moment of peace between; whatever has begun has ended when the time is over.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """The target follows from the kind, see `_TARGETS`."""

    COORDINATOR_KILLED = "coordinator killed"
    WORKER_KILLED = "worker killed"
    APP_KILLED = "app killed"
    APP_HANGS = "app hangs"
    MANIFEST_UPDATED = "manifest updated"
    LINK_DOWN = "link down"
    PACKETS_DROPPED = "packets dropped"
    DELAYED = "delayed"
    STALLED = "stalled"
    BLACKHOLE = "blackhole"
    RESET = "reset"
    HALF_OPEN = "half-open"
    CUT = "cut"
    CORRUPTED = "corrupted"
    REFUSED = "refused"
    HIJACKED = "hijacked"
    SWAPPED = "swapped"


# How often, compared with each other.
_WEIGHTS = {
    Fault.COORDINATOR_KILLED: 3,
    Fault.WORKER_KILLED: 3,
    Fault.APP_KILLED: 3,
    Fault.APP_HANGS: 3,
    Fault.MANIFEST_UPDATED: 4,
    Fault.LINK_DOWN: 3,
    Fault.PACKETS_DROPPED: 3,
    Fault.DELAYED: 3,
    Fault.STALLED: 3,
    Fault.BLACKHOLE: 3,
    Fault.RESET: 5,
    Fault.HALF_OPEN: 4,
    Fault.CUT: 5,
    Fault.CORRUPTED: 4,
    Fault.REFUSED: 2,
    Fault.HIJACKED: 3,
    Fault.SWAPPED: 2,
}
# Which end by themselves, at once.
_INSTANT = frozenset({Fault.APP_KILLED, Fault.MANIFEST_UPDATED, Fault.RESET, Fault.CUT, Fault.CORRUPTED})
# A worker starts its app again after 0.5 s, then later each time, and forgets that after a minute.
_APP_REST = 61.0
PEACE = 1.5
CONTROL = "xds"
"""the way to the Coordinator, beside those to the Marbles"""


@dataclass(frozen=True, slots=True)
class Event:
    """Seconds since the beginning; `target` is a Marble, a way (named by the Marble it leads to) or the Coordinator."""

    at: float
    fault: Fault
    target: str
    lasts: float

    def __str__(self) -> str:
        return f"{self.at:7.2f} s  {self.fault} {self.target}" + (f" for {self.lasts:.1f} s" if self.lasts else "")


def schedule(seed: int, seconds: float, marbles: Sequence[str], mean: float = 3.0) -> list[Event]:
    """What fails in so many seconds; the first of the Marbles is the one that dials all others. One fault begins about
    every `mean` seconds."""
    rng = random.Random(seed)
    events: list[Event] = []
    free: dict[tuple[str, str], float] = {}
    now = 1.0
    while True:
        now += rng.expovariate(1 / mean)
        fault = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        target = rng.choice(_targets(fault, marbles))
        lasts = 0.0 if fault in _INSTANT else round(min(rng.uniform(0.5, 9.0), seconds / 6), 2)
        if now >= seconds:
            return events
        kind, rest = _part(fault)
        if now < free.get((kind, target), 0.0) or now + lasts > seconds:
            continue
        free[kind, target] = now + max(lasts + PEACE, rest)
        if fault is Fault.WORKER_KILLED:
            free["app", target] = max(free.get(("app", target), 0.0), now + lasts + PEACE)
        events.append(Event(round(now, 2), fault, target, lasts))


def _targets(fault: Fault, marbles: Sequence[str]) -> Sequence[str]:
    match fault:
        case Fault.COORDINATOR_KILLED | Fault.MANIFEST_UPDATED:
            return ("coordinator",)
        case Fault.APP_KILLED | Fault.APP_HANGS:
            return marbles[1:]
        case Fault.WORKER_KILLED | Fault.LINK_DOWN | Fault.PACKETS_DROPPED:
            return marbles
        case Fault.HIJACKED | Fault.SWAPPED:
            return marbles[1:]
        case Fault.CUT | Fault.CORRUPTED | Fault.RESET | Fault.HALF_OPEN:
            return (*marbles[1:], *marbles[1:], CONTROL)
    return (*marbles[1:], CONTROL)


def _part(fault: Fault) -> tuple[str, float]:
    """What of a target it concerns, and how long that is left alone afterwards at least."""
    match fault:
        case Fault.COORDINATOR_KILLED | Fault.MANIFEST_UPDATED:
            return "coordinator", 0.0
        case Fault.WORKER_KILLED:
            return "worker", 8.0
        case Fault.APP_KILLED:
            return "app", _APP_REST
        case Fault.APP_HANGS:
            return "app", 0.0
        case Fault.LINK_DOWN | Fault.PACKETS_DROPPED:
            return "cable", 0.0
    return "way", 0.0
