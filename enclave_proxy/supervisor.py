# SPDX-License-Identifier: Apache-2.0
"""The app over its starts: run it, watch whether it listens, start it again as the policy says, end it when told.

start ─► running ─► ended ─► Restarts ─► delay ─► start          stop(): the signal, and no start after that
                      └──── status, when there is no next start
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from enclave_proxy.app_probe import until_it_listens
from enclave_proxy.app_state import AppState
from enclave_proxy.child import Child
from enclave_proxy.relay_config import RelayConfig
from enclave_proxy.restarts import Restarts

# What an app that has ended leaves behind in its process group may take to end as well; the next start waits for it.
LEFT_BEHIND = 5.0


class App(Protocol):
    """A running app: a child process (`child`), or code of this very process (`fused`)."""

    @property
    def pid(self) -> int: ...

    def send(self, number: signal.Signals) -> None: ...

    async def wait(self) -> int: ...

    async def end_others(self, deadline: float) -> None: ...

    def kill(self) -> bool: ...


Starter = Callable[[tuple[str, ...], Mapping[str, str]], Awaitable[App]]


@dataclass(slots=True, kw_only=True)
class Supervisor:
    """`config` gives what is in force in the relay; `patience` is how many seconds the app has to listen, 0: nobody
    looks."""

    command: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    restarts: Restarts
    patience: float
    config: Callable[[], RelayConfig | None]
    state: AppState
    log: FilteringBoundLogger
    start: Starter = Child.start
    _child: App | None = None
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> int:
        """Run the app until it is over; its last status. Raises CommandError if it cannot be started."""
        try:
            while True:
                started = time.monotonic()
                status = await self._once()
                delay = self._next(status, time.monotonic() - started)
                if delay is None or await self._told_within(delay):
                    return status
        finally:
            self.state.restart_delay = None

    def send(self, number: signal.Signals) -> None:
        """Pass a signal on; one that comes between two starts is lost, as for any program that is not there."""
        if self._child is not None:
            self._child.send(number)

    def stop(self, number: signal.Signals) -> None:
        """Tell the app to end, and do not start it again."""
        self._stopping.set()
        self.send(number)

    def kill(self) -> None:
        """The same for an app that does not listen to signals: SIGKILL, to all that it has started too."""
        self._stopping.set()
        if self._child is not None:
            self._child.kill()

    async def _once(self) -> int:
        child = await self.start(self.command, self.env)
        state, self._child = self.state, child
        state.running, state.restart_delay = True, None
        state.starts += 1
        self.log.info("app started", pid=child.pid, program=self.command[0], starts=state.starts)
        try:
            async with asyncio.TaskGroup() as group:
                probing = group.create_task(self._probe())
                status = await child.wait()
                probing.cancel()
            state.running = False
            await child.end_others(LEFT_BEHIND)
        finally:
            state.running = False
            if child.kill():
                await child.wait()
            self._child = None
        state.last_status = status
        self.log.info("app ended", status=status)
        return status

    async def _probe(self) -> None:
        if self.patience == 0:
            return
        if await until_it_listens(self.state, self.config, self.patience):
            self.log.debug("app listens")
        else:
            self.log.warning("the app does not listen everywhere, readiness waits no longer", seconds=self.patience)

    def _next(self, status: int, ran: float) -> float | None:
        if self._stopping.is_set():
            return None
        delay = self.restarts.after(status, ran=ran, now=time.monotonic())
        if self.restarts.exhausted:
            self.log.error("the app was restarted too often, giving up", status=status, starts=self.state.starts)
        elif delay is not None:
            self.state.restart_delay = delay
            self.log.warning("app is started again", status=status, seconds=round(delay, 3))
        return delay

    async def _told_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._stopping.wait()
        except TimeoutError:
            return False
