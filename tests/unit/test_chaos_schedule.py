# SPDX-License-Identifier: Apache-2.0
"""The chaos test's schedule: it can be repeated, and leaves everything whole at its end."""

from __future__ import annotations

from itertools import pairwise

from tests.soak.chaos_schedule import Fault, schedule

MARBLES = ("web", "api", "db")


def test_the_same_seed_gives_the_same_schedule_and_another_one_another() -> None:
    assert schedule(7, 600, MARBLES) == schedule(7, 600, MARBLES)
    assert schedule(7, 600, MARBLES) != schedule(8, 600, MARBLES)


def test_ten_minutes_have_every_kind_of_fault() -> None:
    for seed in range(20):
        events = schedule(seed, 600, MARBLES)
        assert {event.fault for event in events} == set(Fault), seed


def test_what_has_begun_has_ended_when_the_time_is_over() -> None:
    for seed in range(50):
        events = schedule(seed, 60, MARBLES)
        assert events == sorted(events, key=lambda event: event.at)
        assert all(event.at + event.lasts <= 60 for event in events)


def test_a_way_fails_in_one_way_at_a_time() -> None:
    network = {Fault.DELAYED, Fault.STALLED, Fault.BLACKHOLE, Fault.HALF_OPEN, Fault.REFUSED, Fault.HIJACKED}
    for seed in range(50):
        for target in ("api", "db", "xds"):
            events = [e for e in schedule(seed, 600, MARBLES) if e.fault in network and e.target == target]
            assert all(one.at + one.lasts < other.at for one, other in pairwise(events))
