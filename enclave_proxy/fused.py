# SPDX-License-Identifier: Apache-2.0
"""Worker and Python app in one process: one enclave, one process, as SGX wants it.

    main thread     block signals ─► start the worker ─► wait ─► the app's __main__ ─► its threads ─► atexit
    worker thread   uvloop: identity, xDS, relay ─────────┘ "start the app"              its status ─┘ flush, end

The app has the main thread because signal handlers and many frameworks insist on it. Its end is Python's own: threads
are joined, `atexit` runs, and only after that (our hook is the first registered, hence the last to run) the worker is
told the status. If the worker ends first, or the app does not listen to signals, the process ends at once: no code of
the app goes on without the mesh.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import thread as executor_threads
from contextlib import suppress
from dataclasses import dataclass, field

from structlog.typing import FilteringBoundLogger

from enclave_proxy.fused_command import PythonCommand, run_main
from enclave_proxy.fused_decisions import Decisions
from enclave_proxy.fused_grpc import GrpcAddresses
from enclave_proxy.fused_guard import guard_sockets
from enclave_proxy.fused_imports import ImportWatch
from enclave_proxy.fused_loops import UvloopSockets
from enclave_proxy.fused_names import Names
from enclave_proxy.fused_processes import watch_processes
from enclave_proxy.fused_side import enter_worker
from enclave_proxy.fused_signals import FusedSignals
from enclave_proxy.fused_sockets import SwappedSockets
from enclave_proxy.relay_config import RelayConfig

# What the worker may take to flush and end once the app has; then the process ends all the same.
_LAST_WORDS = 30.0
_FAILED = 1


@dataclass(slots=True)
class FusedApp:
    """The app, as the worker's thread sees it. Has the methods of `child.Child`."""

    signals: FusedSignals
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _status: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def pid(self) -> int:
        """The process's own."""
        return os.getpid()

    def send(self, number: signal.Signals) -> None:
        """Let the app's handler run."""
        if not self._status.done():
            self.signals.deliver(number)

    async def wait(self) -> int:
        """The exit status, as a shell gives it."""
        return await asyncio.shield(self._status)

    def kill(self) -> bool:
        """Give the app up, if it has not ended; says whether it had not. The process ends with the worker."""
        if self._status.done():
            return False
        self._status.set_result(128 + signal.SIGKILL)
        return True

    async def end_others(self, _deadline: float) -> None:
        """Nothing to do: processes that the app has started and left behind are not the worker's children."""

    def ended(self, status: int) -> None:
        """From the app's thread: it is over."""
        with suppress(RuntimeError):  # the worker has ended already
            self._loop.call_soon_threadsafe(self._set, status)

    def _set(self, status: int) -> None:
        if not self._status.done():
            self._status.set_result(status)


@dataclass(frozen=True, slots=True)
class _Start:
    command: PythonCommand
    env: Mapping[str, str] = field(repr=False)
    decisions: Decisions


class Fused:
    """Make it on the main thread, first of all."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._app: FusedApp | None = None
        self._worker: threading.Thread | None = None
        self._status = _FAILED
        self._starts: queue.SimpleQueue[_Start | None] = queue.SimpleQueue()
        self._outcome = _FAILED
        self._process = os.getpid()
        self._app_is_over = False
        self._sockets: SwappedSockets | None = None
        self.signals = FusedSignals(self._ended)

    async def start(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        config: Callable[[], RelayConfig | None],
        *,
        closed: bool,
    ) -> FusedApp:
        """Called by the worker: hand the app to the main thread. Raises CommandError. `closed`: under SGX."""
        parsed = PythonCommand.parse(command)
        self._app = FusedApp(self.signals)
        self._starts.put(_Start(parsed, env, Decisions(config, closed=closed, log=self._log)))
        return self._app

    def run(self, work: Callable[[], int]) -> int:
        """Run the worker (`work` gives its exit status) and the app; the status to exit with, by `sys.exit`."""
        atexit.register(self._finish)
        worker = threading.Thread(target=self._work, args=(work,), name="marblemesh-worker", daemon=True)
        worker.start()
        self._worker = worker
        start = self._starts.get()
        if start is None:
            worker.join()
            return self._outcome
        self._prepare(start)
        status = run_main(start.command, start.env)
        _join_threads()
        self._status = status
        return status

    def _prepare(self, start: _Start) -> None:
        os.environ.clear()  # noqa: TID251 - becoming the app: this is its environment from now on
        os.environ.update(start.env)  # noqa: TID251
        decisions = start.decisions
        names = Names(decisions)
        self._sockets = SwappedSockets(decisions)
        self._sockets.install()
        names.install()
        UvloopSockets(decisions, names).install()
        watch_processes(self.signals.unblocked, refuse=decisions.closed)
        ImportWatch({"grpc": GrpcAddresses(decisions).install}).install()
        if decisions.closed:
            guard_sockets()

    def _work(self, work: Callable[[], int]) -> None:
        enter_worker()
        try:
            self._outcome = work()
        except BaseException:
            traceback.print_exc()
        if self._app is None:
            self._starts.put(None)
        elif not self._app_is_over:
            self._leave(self._outcome)

    def _ended(self, status: int) -> None:
        if self._app is not None:
            self._app.ended(status)

    def _finish(self) -> None:
        """The last `atexit` hook: of the app nothing is left but daemon threads."""
        if self._app is None or self._worker is None or os.getpid() != self._process:
            return
        self._app_is_over = True
        self._app.ended(self._status)
        self._worker.join(_LAST_WORDS)
        if self._worker.is_alive():
            self._log.error("the worker does not end after its app")
        if self._worker.is_alive() or self._outcome != self._status:
            self._leave(_FAILED if self._worker.is_alive() else self._outcome)
        if self._sockets is not None:
            self._sockets.unlink()

    def _leave(self, status: int) -> None:
        if self._sockets is not None:
            self._sockets.unlink()
        for stream in (sys.stdout, sys.stderr) if self._app_is_over else ():
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)


def _join_threads() -> None:
    """Wait for the app's threads here, and not in the interpreter's own end, which first forbids new executor work: the
    worker needs that as long as it lives. Executors' threads wait for work until then, so they are not waited for."""
    while threads := [
        thread
        for thread in threading.enumerate()
        if not thread.daemon
        and thread is not threading.current_thread()
        and thread not in executor_threads._threads_queues
    ]:
        threads[0].join()
