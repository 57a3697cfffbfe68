# SPDX-License-Identifier: Apache-2.0
"""Signals of a process that is worker and app at once: the worker hears them first, then the app gets them for real.

    kill(2) ─► blocked everywhere ─► thread in sigwait ─► worker's loop (drain) ─► deliver ─► app's handler, main thread

Python runs handlers on the main thread only, which is the app's and may sit in a system call for hours. So a signal is
delivered by making it pending for that thread, and then waking it with a real-time signal whose handler lets the first
one through: the kernel does the rest as in any program (default action, wakeup descriptor of an event loop, EINTR).
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from enclave_proxy.child import ENDING, FORWARDED

# Nobody's own: the C library keeps the lowest real-time signals, programs count from there.
WAKE = signal.Signals(signal.SIGRTMAX)


class FusedSignals:
    """Make it on the main thread, before any other thread exists: the mask is inherited. `ended` is told the status of
    an app that a signal's default action has ended."""

    def __init__(self, ended: Callable[[int], None]) -> None:
        self._ended = ended
        self._main = threading.main_thread().ident or 0
        self._process = os.getpid()
        self._pending: deque[signal.Signals] = deque()
        self._to_worker: Callable[[signal.Signals], object] | None = None
        self._raise = signal.raise_signal
        signal.signal(WAKE, self._woken)
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        signal.raise_signal = self._raise_signal
        os.register_at_fork(after_in_child=self._let_go)
        threading.Thread(target=self._wait, name="marblemesh-signals", daemon=True).start()

    @contextmanager
    def caught(self, on: Callable[[signal.Signals], None]) -> Iterator[None]:
        """On the worker's loop: call `on` there for each signal, instead of `loop.add_signal_handler`."""
        loop = asyncio.get_running_loop()
        self._to_worker = lambda number: loop.call_soon_threadsafe(on, number)
        try:
            yield
        finally:
            self._to_worker = None

    def deliver(self, number: signal.Signals) -> None:
        """Let the app have it. From any thread."""
        self._pending.append(number)
        signal.pthread_kill(self._main, number)
        signal.pthread_kill(self._main, WAKE)

    @contextmanager
    def unblocked(self, numbers: Iterable[int] = FORWARDED) -> Iterator[None]:
        """For the calling thread, and for a process that it starts meanwhile: a child must not inherit our mask."""
        if os.getpid() != self._process:
            yield
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)  # runs handlers, which may raise
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _wait(self) -> None:
        while True:
            number = signal.Signals(signal.sigwait(FORWARDED))
            if (to_worker := self._to_worker) is not None:
                with suppress(RuntimeError):  # its loop has closed: the process is about to end
                    to_worker(number)

    def _woken(self, _number: int, _frame: object) -> None:
        while self._pending:
            number = self._pending.popleft()
            if number in signal.sigpending():  # else the app has taken it already, by sigwait
                self._act(number, lambda: None)

    def _raise_signal(self, number: int) -> None:
        """`signal.raise_signal` for code that counts on having been hit when it returns."""
        if number in FORWARDED and os.getpid() == self._process:
            self._act(signal.Signals(number), lambda: self._raise(number))
        else:
            self._raise(number)

    def _act(self, number: signal.Signals, before: Callable[[], None]) -> None:
        # The default action would take the worker along in the middle of a write: end the app, and let the worker
        # finish. Others than the ending ones keep their default; a C library's handler is seen by the kernel only.
        if number in ENDING and signal.getsignal(number) is signal.SIG_DFL:
            self._end(128 + number)
        before()
        with self.unblocked({number}):
            pass

    def _end(self, status: int) -> NoReturn:
        self._ended(status)
        while True:  # nothing of the app runs on this thread any more; the worker ends the process
            time.sleep(3600)

    def _let_go(self) -> None:
        """In a forked child: it has no worker and no thread that waits."""
        signal.signal(WAKE, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
