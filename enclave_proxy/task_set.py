# SPDX-License-Identifier: Apache-2.0
"""A set of tasks with one owner: for work that may end at any time without stopping its neighbours.

A TaskGroup stops everything when one task fails; a relay must not drop its other connections because of one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class TaskSet:
    """Starts tasks, keeps them, reports those that end with an exception, and waits for all when closed."""

    def __init__(self, on_bug: Callable[[BaseException], None]) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._on_bug = on_bug

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, body: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `body`; an exception that it does not handle itself goes to `on_bug`."""
        task = asyncio.get_running_loop().create_task(body)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def close(self, drain: float = 0.0) -> None:
        """Wait up to `drain` seconds for the tasks to end by themselves, then cancel the rest and wait for them."""
        if self._tasks and drain > 0:
            await asyncio.wait(self._tasks, timeout=drain)
        await asyncio.sleep(0)  # a task that never began could not clean up after itself: let each one begin
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_bug(error)
