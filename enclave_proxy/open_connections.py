# SPDX-License-Identifier: Apache-2.0
"""Which connections each listener has open, from their first byte on, so that those of one listener can be ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

Owner = TypeVar("Owner")
Connection = asyncio.Task[None]


class OpenConnections(Generic[Owner]):
    """Tasks by their owner; a task that has ended is forgotten."""

    def __init__(self) -> None:
        self._open: dict[Owner, set[Connection]] = {}

    def add(self, owner: Owner, task: Connection) -> None:
        """Keep a connection until it has ended."""
        self._open.setdefault(owner, set()).add(task)
        task.add_done_callback(partial(self._forget, owner))

    async def end(self, of: Callable[[Owner], bool], drain: float) -> None:
        """Let the connections of these owners end by themselves for `drain` seconds, then cut off the rest."""
        tasks = set[Connection]().union(*(tasks for owner, tasks in self._open.items() if of(owner)))
        if tasks and drain > 0:
            await asyncio.wait(tasks, timeout=drain)
        await asyncio.sleep(0)  # a task that never began could not clean up after itself: let each one begin
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _forget(self, owner: Owner, task: Connection) -> None:
        self._open[owner].discard(task)
        if not self._open[owner]:
            del self._open[owner]
