# SPDX-License-Identifier: Apache-2.0
"""Who comes first gets in first, however many come; and a share of requests is a share."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds_server.xds_admission import Admission, Bucket, Overloaded


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_time_for(self, tokens: int, rate: float) -> None:
        self.now += (tokens + 0.01) / rate


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def queued(admission: Admission, count: int) -> tuple[list[int], list[asyncio.Task[None]]]:
    """So many callers one after another; in which order they got in."""
    entered: list[int] = []

    async def enter(number: int) -> None:
        await admission.enter()
        entered.append(number)

    tasks = [asyncio.ensure_future(enter(number)) for number in range(count)]
    await settle()
    return entered, tasks


async def test_a_burst_gets_in_at_once_and_the_rest_waits_in_the_order_in_which_it_came() -> None:
    clock = Clock()
    admission = Admission(rate=100, burst=3, limit=10, clock=clock)
    entered, tasks = await queued(admission, 6)
    assert (entered, admission.waiting) == ([0, 1, 2], 3)
    clock.pass_time_for(2, rate=100)
    await asyncio.wait(tasks[3:5])
    assert (entered, admission.waiting) == ([0, 1, 2, 3, 4], 1)
    clock.pass_time_for(1, rate=100)
    await asyncio.wait(tasks)
    assert (entered, admission.waiting) == ([0, 1, 2, 3, 4, 5], 0)


async def test_nobody_overtakes_those_who_wait_although_there_is_a_token() -> None:
    clock = Clock()
    admission = Admission(rate=1, burst=1, limit=10, clock=clock)
    entered, tasks = await queued(admission, 2)
    clock.now += 1.0  # a token is there, the timer has not fired yet
    late = asyncio.ensure_future(admission.enter())
    await settle()
    assert (entered, late.done(), admission.waiting) == ([0], False, 2)
    admission.close()
    await asyncio.wait([*tasks, late])


async def test_who_finds_the_queue_full_is_sent_away_with_a_hint() -> None:
    admission = Admission(rate=10, burst=1, limit=20, clock=Clock())
    _, tasks = await queued(admission, 21)
    with pytest.raises(Overloaded, match="try again in 2 s"):
        await admission.enter()
    admission.close()
    await asyncio.wait(tasks)


async def test_who_leaves_while_waiting_makes_room_and_takes_no_turn() -> None:
    clock = Clock()
    admission = Admission(rate=100, burst=1, limit=2, clock=clock)
    entered, tasks = await queued(admission, 3)
    tasks[1].cancel()
    await settle()
    assert admission.waiting == 1
    clock.pass_time_for(1, rate=100)
    await asyncio.wait(tasks[2:])
    assert entered == [0, 2]


async def test_closing_lets_everybody_through_to_be_told_that_we_stop() -> None:
    admission = Admission(rate=0.001, burst=1, limit=10, clock=Clock())
    entered, tasks = await queued(admission, 4)
    admission.close()
    await asyncio.wait(tasks)
    assert entered == [0, 1, 2, 3]


@given(
    st.floats(0.1, 1000), st.integers(1, 100), st.lists(st.tuples(st.floats(0, 10), st.integers(1, 50)), max_size=40)
)
def test_a_bucket_never_gives_more_than_its_burst_and_its_rate_allow(
    rate: float, burst: int, steps: list[tuple[float, int]]
) -> None:
    now, given_out = 0.0, 0
    bucket = Bucket(rate, burst, now)
    for passed, count in steps:
        now += passed
        given_out += count if bucket.take(count, now) else 0
    assert given_out <= burst + rate * now + 1e-6


@given(st.floats(0.1, 1000), st.integers(1, 100), st.lists(st.integers(1, 1000), min_size=1, max_size=20))
def test_a_debt_is_paid_after_the_seconds_that_were_said(rate: float, burst: int, counts: list[int]) -> None:
    bucket = Bucket(rate, burst, 0.0)
    seconds = [bucket.owe(count, 0.0) for count in counts]
    assert seconds == sorted(seconds)
    assert bucket.take(1e-9, seconds[-1] + 1e-3 + 1e-9 / rate)
