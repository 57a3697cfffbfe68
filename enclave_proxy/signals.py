# SPDX-License-Identifier: Apache-2.0
"""Signals before and after there is an app: first they end the worker, then they are the app's, except those that end.

A signal that means "end" reaches the app when its turn comes (see `shutdown`), not before. Each further one ends the
stage that the shutdown is in: whoever presses Ctrl-C twice does not want to wait.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from enclave_proxy.child import ENDING, FORWARDED

# Before there is an app to pass it to, a hang-up is meant for us; USR1, USR2 and WINCH would be lost on us.
_ENDING_EARLY = ENDING | {signal.SIGHUP}


class Receiver(Protocol):
    """Whoever gets the signals that do not end."""

    def send(self, number: signal.Signals) -> None: ...


# Calls back on the running loop for each signal, while entered.
Catch = Callable[[Callable[[signal.Signals], None]], AbstractContextManager[None]]


@contextmanager
def by_the_loop(on: Callable[[signal.Signals], None]) -> Iterator[None]:
    """The usual way, on a process's main thread."""
    loop = asyncio.get_running_loop()
    for number in FORWARDED:
        loop.add_signal_handler(number, on, number)
    try:
        yield
    finally:
        for number in FORWARDED:
            loop.remove_signal_handler(number)


class Signals:
    """Takes the process's signals while `installed`."""

    def __init__(self, catch: Catch | None = None) -> None:
        self._catch = catch or by_the_loop
        self.ending = asyncio.Event()
        self.number = signal.SIGTERM  # which one it was, once `ending` is set
        self.early: signal.Signals | None = None
        self._hurry = asyncio.Event()
        self._app: Receiver | None = None
        self._task: asyncio.Task[object] | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Until an app is attached, an ending signal cancels the task that entered here and is kept in `early`."""
        self._task = asyncio.current_task()
        with self._catch(self._on):
            yield

    def attach(self, app: Receiver) -> None:
        """From now on signals go to this app."""
        self._app = app

    async def stage(self, work: Awaitable[object]) -> bool:
        """Wait for `work`, or for a further ending signal, which cancels it; whether the work was done."""
        self._hurry.clear()
        task = asyncio.ensure_future(work)
        async with asyncio.TaskGroup() as group:
            hurried = group.create_task(self._hurry.wait())
            try:
                await asyncio.wait((task, hurried), return_when=asyncio.FIRST_COMPLETED)
            finally:
                hurried.cancel()
                if not task.done():
                    task.cancel()
                    await asyncio.wait((task,))
        if task.cancelled():
            return False
        task.result()
        return True

    def _on(self, number: signal.Signals) -> None:
        if self._app is not None:
            if number not in ENDING:
                self._app.send(number)
            elif self.ending.is_set():
                self._hurry.set()
            else:
                self.number = number
                self.ending.set()
        elif number in _ENDING_EARLY and self.early is None and self._task is not None:
            self.early = number
            self._task.cancel()
