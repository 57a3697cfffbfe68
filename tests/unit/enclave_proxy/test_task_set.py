# SPDX-License-Identifier: Apache-2.0
"""Tasks with one owner: one that fails disturbs no other, and none is left behind."""

from __future__ import annotations

import asyncio

from enclave_proxy.task_set import TaskSet


async def test_a_bug_is_reported_and_the_others_go_on() -> None:
    bugs: list[BaseException] = []
    tasks = TaskSet(bugs.append)
    go = asyncio.Event()

    async def fails() -> None:
        raise ZeroDivisionError

    async def waits() -> None:
        await go.wait()

    tasks.spawn(fails())
    other = tasks.spawn(waits())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [type(bug) for bug in bugs] == [ZeroDivisionError]
    assert len(tasks) == 1
    go.set()
    await tasks.close(drain=5)
    assert other.done()
    assert not other.cancelled()


async def test_every_task_begins_and_cleans_up_before_close_returns() -> None:
    """Even one that was started in the same turn of the loop: it may own a socket."""
    tasks = TaskSet(lambda bug: None)
    cleaned: list[int] = []

    async def body(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(number)

    for number in range(3):
        tasks.spawn(body(number))
    await tasks.close()
    assert sorted(cleaned) == [0, 1, 2]
    assert len(tasks) == 0
