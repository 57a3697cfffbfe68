# SPDX-License-Identifier: Apache-2.0
"""Names are asked for again while they are in use, and their last good addresses outlive a failing DNS."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from enclave_proxy.resolver import LOOKUPS, MAX_ADDRESSES, Lookup, Resolver, Unresolved, system_lookup
from enclave_proxy.task_set import TaskSet
from tests.unit.enclave_proxy.test_outliers import Clock

HOST = "db.test"
NO_SUCH_NAME = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
DNS_IS_DOWN = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
LONG = 5.0


class Names:
    """A DNS whose answer is set from outside, and that may be told to wait."""

    def __init__(self, *addresses: str) -> None:
        self.answer: Sequence[str] | Exception = addresses
        self.asked = 0
        self.busy = 0
        self.most_at_once = 0
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked += 1
        self.busy += 1
        self.most_at_once = max(self.most_at_once, self.busy)
        try:
            await self.open.wait()
        finally:
            self.busy -= 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@asynccontextmanager
async def resolver(lookup: Lookup, clock: Clock) -> AsyncIterator[Resolver]:
    bugs: list[BaseException] = []
    tasks = TaskSet(bugs.append)
    try:
        yield Resolver(tasks, clock, lookup)
    finally:
        await tasks.close()
        assert bugs == []


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_current_answer_is_not_asked_for_again() -> None:
    names, clock = Names("10.0.0.1", "fd00::1"), Clock()
    async with resolver(names, clock) as made:
        for _ in range(3):
            assert await made.resolve(HOST, LONG) == ("10.0.0.1", "fd00::1")
            clock.now += 1
        assert names.asked == 1


async def test_a_name_in_use_is_refreshed_while_nobody_waits() -> None:
    names, clock = Names("10.0.0.1"), Clock()
    async with resolver(names, clock) as made:
        await made.resolve(HOST, LONG)
        clock.now += 6
        names.answer = ["10.0.0.2"]
        assert await made.resolve(HOST, LONG) == ("10.0.0.1",)
        await settle()
        assert await made.resolve(HOST, LONG) == ("10.0.0.2",)
        assert names.asked == 2


async def test_an_answer_of_another_time_is_not_used_without_asking() -> None:
    names, clock = Names("10.0.0.1"), Clock()
    async with resolver(names, clock) as made:
        await made.resolve(HOST, LONG)
        clock.now += 60
        names.answer = ["10.0.0.2"]
        assert await made.resolve(HOST, LONG) == ("10.0.0.2",)


async def test_many_that_wait_for_a_name_cause_one_lookup() -> None:
    names = Names("10.0.0.1")
    names.open.clear()
    async with resolver(names, Clock()) as made, asyncio.TaskGroup() as group:
        waiting = [group.create_task(made.resolve(HOST, LONG)) for _ in range(100)]
        await settle()
        names.open.set()
    assert {task.result() for task in waiting} == {("10.0.0.1",)}
    assert names.asked == 1


async def test_only_so_many_lookups_run_at_once() -> None:
    names = Names("10.0.0.1")
    names.open.clear()
    async with resolver(names, Clock()) as made, asyncio.TaskGroup() as group:
        waiting = [group.create_task(made.resolve(f"{n}.test", LONG)) for n in range(50)]
        await settle()
        names.open.set()
    assert len({task.result() for task in waiting}) == 1
    assert (names.asked, names.most_at_once) == (50, LOOKUPS)


async def test_while_dns_fails_the_last_good_answer_is_used_for_a_day() -> None:
    names, clock = Names("10.0.0.1"), Clock()
    async with resolver(names, clock) as made:
        await made.resolve(HOST, LONG)
        names.answer = DNS_IS_DOWN
        for _ in range(23):
            clock.now += 3600
            assert await made.resolve(HOST, LONG) == ("10.0.0.1",)
        assert made.counters.stale == 23
        clock.now += 3600
        with pytest.raises(Unresolved, match="Temporary failure"):
            await made.resolve(HOST, LONG)


async def test_a_dns_that_says_nothing_delays_a_known_name_once_and_an_unknown_one_for_a_bounded_time() -> None:
    names, clock = Names("10.0.0.1"), Clock()
    async with resolver(names, clock) as made:
        await made.resolve(HOST, LONG)
        clock.now += 60
        names.open.clear()
        assert await made.resolve(HOST, 0.01) == ("10.0.0.1",)
        async with asyncio.timeout(1):  # the lookup never answers: this would take 1.8 s if it waited for it
            for _ in range(10):
                assert await made.resolve(HOST, LONG) == ("10.0.0.1",)
        with pytest.raises(Unresolved, match="timed out"):
            await made.resolve("other.test", 0.01)
        assert names.asked == 3  # the lookups go on, and the answer is not lost
        names.answer = ["10.0.0.2"]
        names.open.set()
        await settle()
        assert await made.resolve(HOST, LONG) == await made.resolve("other.test", LONG) == ("10.0.0.2",)
        assert names.asked == 3


@pytest.mark.parametrize("denial", [NO_SUCH_NAME, []])
async def test_that_a_name_is_gone_is_an_answer_and_the_old_address_is_not_used(denial: Sequence[str]) -> None:
    names, clock = Names("10.0.0.1"), Clock()
    async with resolver(names, clock) as made:
        await made.resolve(HOST, LONG)
        clock.now += 60
        names.answer = denial
        with pytest.raises(Unresolved):
            await made.resolve(HOST, LONG)
        assert (made.counters.failures, made.counters.stale) == (1, 0)


async def test_a_failure_is_remembered_for_a_moment() -> None:
    names, clock = Names(), Clock()
    names.answer = NO_SUCH_NAME
    async with resolver(names, clock) as made:
        for _ in range(5):
            with pytest.raises(Unresolved, match="Name or service not known"):
                await made.resolve(HOST, LONG)
        assert names.asked == 1
        names.answer = ["10.0.0.1"]
        clock.now += 1
        assert await made.resolve(HOST, LONG) == ("10.0.0.1",)


async def test_while_dns_fails_it_is_asked_once_a_second_and_nobody_waits() -> None:
    names, clock = Names("10.0.0.1"), Clock()
    async with resolver(names, clock) as made:
        await made.resolve(HOST, LONG)
        names.answer = DNS_IS_DOWN
        clock.now += 60
        await made.resolve(HOST, LONG)
        names.open.clear()
        for _ in range(10):
            clock.now += 0.5
            assert await made.resolve(HOST, LONG) == ("10.0.0.1",)
            names.open.set()
            await settle()
            names.open.clear()
        assert names.asked == 2 + 5


async def test_an_answer_is_bounded_and_each_address_counts_once() -> None:
    names = Names(*(str(ipaddress.ip_address(0x0A000000 + n // 2)) for n in range(1000)))
    async with resolver(names, Clock()) as made:
        found = await made.resolve(HOST, LONG)
    assert len(found) == len(set(found)) == MAX_ADDRESSES


async def test_names_that_are_not_configured_any_more_are_forgotten() -> None:
    names = Names("10.0.0.1")
    async with resolver(names, Clock()) as made:
        await made.resolve(HOST, LONG)
        await made.resolve("other.test", LONG)
        made.retain({HOST})
        await made.resolve(HOST, LONG)
        assert names.asked == 2
        await made.resolve("other.test", LONG)
        assert names.asked == 3


async def test_the_system_knows_localhost() -> None:
    async with resolver(system_lookup, Clock()) as made:
        found = await made.resolve("localhost", LONG)
    assert set(found) <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize("host", ["x" * 64 + ".test", "a..b", ".", "nul\0.test"])
async def test_what_cannot_be_a_name_is_unresolved_and_no_bug(host: str) -> None:
    async with resolver(system_lookup, Clock()) as made:
        with pytest.raises(Unresolved):
            await made.resolve(host, LONG)
