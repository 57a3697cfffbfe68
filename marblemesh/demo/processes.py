# SPDX-License-Identifier: Apache-2.0
"""The demo's child processes: started with their logs in files, watched, and reaped whatever happens.

Each process leads a session of its own: Ctrl-C in the terminal reaches the demo alone, which ends its children in
order; what a child left behind is found by its process group. If the demo is killed hard they die with it (`lifeline`).
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from marblemesh.demo.errors import DemoError, PortTakenError
from marblemesh.demo.lifeline import tied_to_us
from marblemesh.demo.topology import Command

# A worker gives its app time to end, too; what is not gone then is killed.
GRACE_SECONDS = 6.0
POLL_SECONDS = 0.05
TAIL_LINES = 12
MAX_LINE = 1000  # a traceback in one line of JSON is longer; the whole of it stands in the log
# The last part of a log that is read for its last lines.
_TAIL_BYTES = 32 * 1024
# How asyncio, grpc, Envoy and Prometheus each say EADDRINUSE.
_TAKEN = re.compile(r"address (is )?already in use|address in use|failed to bind|errno 98|EADDRINUSE", re.IGNORECASE)


class Process:
    """One child process; `log` holds its standard error, `out` its standard output."""

    def __init__(self, command: Command, child: asyncio.subprocess.Process, log: Path, out: Path) -> None:
        self.command, self.log, self.out = command, log, out
        self._child = child
        self._told_to_end = False

    @classmethod
    async def start(cls, command: Command, logs: Path) -> Self:
        """Start `command`. Raises DemoError when the system cannot."""
        log, out = logs / f"{command.name}.log", logs / f"{command.name}.out"
        with log.open("wb") as stderr, out.open("wb") as stdout:
            try:
                child = await asyncio.create_subprocess_exec(
                    *tied_to_us(command.argv),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    env=command.env,
                    cwd=command.cwd,
                    start_new_session=True,
                )
            except OSError as error:
                raise DemoError(f"{command.name} cannot be started: {error}") from error
        return cls(command, child, log, out)

    @property
    def name(self) -> str:
        return self.command.name

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def status(self) -> int | None:
        """The exit status (negative: the signal), None while it runs."""
        return self._child.returncode

    async def wait(self) -> int:
        return await self._child.wait()

    def signal(self, number: signal.Signals) -> None:
        if self.status is None:
            self._child.send_signal(number)

    def end(self) -> None:
        """Tell it to end, once: many programs take a second SIGTERM for impatience and skip their own cleaning up."""
        if not self._told_to_end:
            self._told_to_end = True
            self.signal(signal.SIGTERM)

    async def stop(self, grace: float = GRACE_SECONDS) -> None:
        """SIGTERM, then SIGKILL to whatever is left of its process group."""
        self.end()
        try:
            async with asyncio.timeout(grace):
                await self._child.wait()
        except TimeoutError:
            with self.log.open("a") as log:
                log.write(f"demo: {self.name} did not end within {grace:g} s after SIGTERM, killed\n")
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        await self._child.wait()

    def tail(self, lines: int = TAIL_LINES) -> tuple[str, ...]:
        """The last lines of its log."""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
            text = log.read().decode(errors="replace")
        return tuple(line[:MAX_LINE] for line in text.splitlines()[-lines:])

    def ended(self) -> DemoError:
        """Why the demo cannot go on without this process, which has ended."""
        tail = self.tail()
        if any(_TAKEN.search(line) for line in tail):
            return PortTakenError(f"{self.name}: a port that was free a moment ago is taken", tail)
        status = self.status or 0
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return DemoError(f"{self.name} {how}", tail)


class Processes:
    """All children of the demo. As a context manager it leaves none behind."""

    def __init__(self, logs: Path, grace: float = GRACE_SECONDS) -> None:
        """`logs` is the directory for logs; `grace` how many seconds a process has to end after SIGTERM."""
        self._logs, self._grace = logs, grace
        self._started: list[Process] = []
        self._finished: set[str] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def __getitem__(self, name: str) -> Process:
        return next(process for process in self._started if process.name == name)

    @property
    def names(self) -> list[str]:
        return [process.name for process in self._started]

    async def start(self, command: Command) -> Process:
        process = await Process.start(command, self._logs)
        self._started.append(process)
        return process

    def may_end(self, name: str) -> None:
        """From now on it is no failure when this process ends."""
        self._finished.add(name)

    def check(self) -> None:
        """Raises DemoError when a process has ended that must run."""
        for process in self._started:
            if process.status is not None and process.name not in self._finished:
                raise process.ended()

    async def until(self, ready: Callable[[], Awaitable[bool]], what: str, seconds: float) -> None:
        """Poll `ready` until it is true. Raises DemoError when a process ends meanwhile, or the time is up."""
        deadline = time.monotonic() + seconds
        while not await ready():
            self.check()
            if time.monotonic() > deadline:
                raise DemoError(f"{what} after {seconds:.0f} s", self._last_words(what))
            await asyncio.sleep(POLL_SECONDS)

    async def watch(self) -> None:
        """Never returns; raises DemoError as soon as a process has ended that must run."""
        while True:
            self.check()
            await asyncio.sleep(4 * POLL_SECONDS)

    async def stop(self) -> None:
        """End all, the last started first: whoever asks goes before who answers. Cancelling does not stop it."""
        for process in reversed(self._started):
            process.end()
        await asyncio.gather(*(process.stop(self._grace) for process in self._started))
        self._started.clear()

    def _last_words(self, what: str) -> tuple[str, ...]:
        named = [process for process in self._started if what.startswith(process.name)]
        return named[0].tail() if named else ()
