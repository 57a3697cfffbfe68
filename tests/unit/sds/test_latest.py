# SPDX-License-Identifier: Apache-2.0
"""One value, many readers: each sees the newest, none holds up the writer."""

from __future__ import annotations

import asyncio

from sds.latest import Latest


async def test_a_reader_gets_the_current_value_first() -> None:
    assert await anext(Latest(7).changes()) == 7


async def test_a_slow_reader_gets_only_the_newest() -> None:
    latest = Latest(1)
    changes = latest.changes()
    assert await anext(changes) == 1
    await latest.publish(2)
    await latest.publish(3)
    assert await anext(changes) == 3
    assert latest.value == 3


async def test_every_waiting_reader_is_woken() -> None:
    latest = Latest(0)

    async def second() -> int:
        changes = latest.changes()
        await anext(changes)
        return await anext(changes)

    async with asyncio.TaskGroup() as group:
        readers = [group.create_task(second()) for _ in range(3)]
        await asyncio.sleep(0)
        await latest.publish(1)
    assert [reader.result() for reader in readers] == [1, 1, 1]


async def test_an_equal_value_is_news_too() -> None:
    latest = Latest(1)
    changes = latest.changes()
    await anext(changes)
    await latest.publish(1)
    assert await asyncio.wait_for(anext(changes), 1) == 1
