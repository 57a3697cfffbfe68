# SPDX-License-Identifier: Apache-2.0
"""An endpoint that keeps failing is left out for a while; never more than half of them are."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_proxy.outliers import OutlierRules, Outliers

RULES = OutlierRules(jitter=0.0)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def outliers(clock: Clock, members: str = "abcd", rules: OutlierRules = RULES, random: float = 0.0) -> Outliers[str]:
    made = Outliers[str](clock, lambda: random, rules)
    made.retain(frozenset(members))
    return made


def eject(made: Outliers[str], key: str) -> None:
    """However often it takes."""
    while not made.failed(key):
        assert made.failures(key) < 20


def test_the_fifth_failure_in_a_row_puts_an_endpoint_out() -> None:
    made = outliers(Clock())
    assert [made.failed("a") for _ in range(6)] == [False] * 4 + [True, False]
    assert made.out() == ["a"]
    assert (made.is_out("a"), made.is_out("b")) == (True, False)


def test_a_success_between_failures_starts_the_count_anew() -> None:
    made = outliers(Clock())
    for _ in range(5):
        for _ in range(4):
            assert not made.failed("a")
        made.succeeded("a")
    assert made.failures("a") == 0


def test_each_time_it_is_out_for_longer_up_to_five_minutes() -> None:
    clock = Clock()
    made = outliers(clock)
    durations = []
    for _ in range(12):
        eject(made, "a")
        durations.append(made.remaining("a"))
        clock.now += made.remaining("a")
    assert durations == [30.0 * n for n in range(1, 11)] + [300.0, 300.0]


def test_who_is_back_and_fails_once_more_is_out_again() -> None:
    clock = Clock()
    made = outliers(clock)
    eject(made, "a")
    clock.now += 30.0
    assert not made.is_out("a")
    assert made.failed("a")


def test_a_success_brings_it_back_at_once() -> None:
    """A handshake that took long, or a try for want of any other endpoint."""
    made = outliers(Clock())
    eject(made, "a")
    made.succeeded("a")
    assert made.out() == []
    assert not made.failed("a")


def test_earlier_ejections_are_forgotten_one_for_each_interval_without_another() -> None:
    clock = Clock()
    made = outliers(clock)
    for _ in range(3):
        eject(made, "a")
        clock.now += made.remaining("a")
    made.succeeded("a")
    clock.now += 2 * RULES.interval
    eject(made, "a")
    assert made.remaining("a") == 60.0


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 15))
@settings(max_examples=50, deadline=None)
def test_jitter_only_ever_prolongs_and_is_bounded(random: float, times: int) -> None:
    clock, rules = Clock(), OutlierRules()
    made = outliers(clock, rules=rules, random=random)
    for count in range(1, times + 1):
        eject(made, "a")
        wanted = min(rules.base * count, rules.maximum)
        assert wanted <= made.remaining("a") <= wanted + rules.jitter
        clock.now += made.remaining("a")


@pytest.mark.parametrize(("members", "out"), [("a", 0), ("ab", 1), ("abc", 1), ("abcd", 2), ("abcde", 2)])
def test_never_more_than_half_are_out(members: str, out: int) -> None:
    made = outliers(Clock(), members)
    for _ in range(10):
        for key in members:
            made.failed(key)
    assert len(made.out()) == out


def test_when_endpoints_go_those_come_back_that_would_be_back_first() -> None:
    clock = Clock()
    made = outliers(clock, "abcd")
    eject(made, "a")
    clock.now += 1
    eject(made, "b")
    made.retain({"a", "b", "c"})
    assert made.out() == ["b"]


def test_what_is_no_endpoint_any_more_is_forgotten_and_its_late_failures_do_not_count() -> None:
    made = outliers(Clock(), "ab")
    eject(made, "a")
    made.retain({"b", "c"})
    for _ in range(9):
        assert not made.failed("a")
    made.retain({"a", "b"})
    assert (made.failures("a"), made.is_out("a")) == (0, False)
