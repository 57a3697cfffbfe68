# SPDX-License-Identifier: Apache-2.0
"""Signals before and after there is an app: first they end the worker, then they belong to the app.

A signal that means "end" also starts the worker's own drain; everything else is only passed on.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from enclave_proxy.child import ENDING, FORWARDED, Child

# Before there is an app to pass it to, a hang-up is meant for us; USR1, USR2 and WINCH would be lost on us.
_ENDING_EARLY = ENDING | {signal.SIGHUP}


class Signals:
    """Takes the process's signals while `installed`."""

    def __init__(self) -> None:
        self.ending = asyncio.Event()
        self.early: signal.Signals | None = None
        self._child: Child | None = None
        self._task: asyncio.Task[object] | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Until an app is attached, an ending signal cancels the task that entered here and is kept in `early`."""
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        for number in FORWARDED:
            loop.add_signal_handler(number, self._on, number)
        try:
            yield
        finally:
            for number in FORWARDED:
                loop.remove_signal_handler(number)

    def attach(self, child: Child) -> None:
        """From now on signals go to this app."""
        self._child = child

    def _on(self, number: signal.Signals) -> None:
        if self._child is not None:
            self._child.send(number)
            if number in ENDING:
                self.ending.set()
        elif number in _ENDING_EARLY and self.early is None and self._task is not None:
            self.early = number
            self._task.cancel()
