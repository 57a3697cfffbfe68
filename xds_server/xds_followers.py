# SPDX-License-Identifier: Apache-2.0
"""What goes on by itself while the xDS port is open: changes are gathered and pushed, rotations of roots taken from
phase to phase, endpoints of lost instances let go, old and silent streams ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine

from xds_server.mesh import Mesh
from xds_server.mesh_changes import NOBODY, Concerned
from xds_server.rotation import Phase
from xds_server.xds_convergence import Change
from xds_server.xds_gate import Gate
from xds_server.xds_metrics import XdsMetrics
from xds_server.xds_record import Log
from xds_server.xds_streams import Streams

# Changes come in bursts (a renewal of all identities, a deployment): wait for a pause, but not for ever.
QUIET_SECONDS = 0.020
MAX_DELAY_SECONDS = 0.500
# How often a rotation looks whether everybody has answered.
LOOK_SECONDS = 0.05


class Followers:
    """`on_change` is called at every change, at once; `before_push` before streams are told of what has gathered."""

    def __init__(
        self,
        mesh: Mesh,
        streams: Streams,
        gate: Gate,
        log: Log,
        metrics: XdsMetrics,
        *,
        on_change: Callable[[], None],
        before_push: Callable[[], None],
        look_seconds: float,
    ) -> None:
        self._mesh = mesh
        self._streams = streams
        self._gate = gate
        self._log = log
        self._metrics = metrics
        self._hear = on_change
        self._before_push = before_push
        self._look_seconds = look_seconds
        self._changed = asyncio.Event()
        self._changed_at = 0.0
        self._concerned = NOBODY
        self._expiry = asyncio.Event()
        self._rotating = asyncio.Event()
        self._unwatch: Callable[[], object] = lambda: None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin; needs a running loop."""
        self._unwatch = self._mesh.watch(self._on_change)
        self._streams.on_end = self._expiry.set
        loop = asyncio.get_running_loop()
        jobs: tuple[Coroutine[object, object, None], ...] = (
            self._push_changes(),
            self._expire_endpoints(),
            self._follow_rotation(),
            self._look_after_streams(),
        )
        self._tasks = {loop.create_task(job) for job in jobs}
        for task in self._tasks:
            task.add_done_callback(self._on_task_end)

    async def stop(self) -> None:
        """End all of it."""
        self._unwatch()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._metrics.failures.labels("internal").inc()
            self._log.error("xds server task failed, changes are no longer pushed", exc_info=fault)

    def _on_change(self, who: Concerned) -> None:
        self._hear()
        self._concerned |= who
        if not self._changed_at:
            self._changed_at = time.monotonic()
        self._changed.set()
        self._expiry.set()
        self._rotating.set()

    # ---- changes

    async def _push_changes(self) -> None:
        while True:
            await self._changed.wait()
            await self._pause()
            self._before_push()
            began, self._changed_at = self._changed_at, 0.0
            who, self._concerned = self._concerned, NOBODY
            self._changed.clear()  # with what came since the pause, too: it is in `who`
            told = time.monotonic()
            self._metrics.debounce_seconds.observe(told - began)
            change = Change(began, self._metrics.convergence_seconds.observe)
            self._streams.open.tell(who, change, rotating=self._mesh.rotation.phase is not Phase.SETTLED)
            change.all_told()
            await self._streams.open.all_pushed()
            # Where pushes take longer than the pauses between changes, half of the time is for everything else.
            await asyncio.sleep(min(time.monotonic() - told, MAX_DELAY_SECONDS))

    async def _pause(self) -> None:
        """Until nothing changed for the quiet time, or the longest delay has passed."""
        loop = asyncio.get_running_loop()
        end = loop.time() + MAX_DELAY_SECONDS
        while self._changed.is_set() and loop.time() < end:
            self._changed.clear()
            try:
                async with asyncio.timeout(min(QUIET_SECONDS, end - loop.time())):
                    await self._changed.wait()
            except TimeoutError:
                return
        self._changed.clear()

    # ---- rotation of roots

    async def _follow_rotation(self) -> None:
        """Take a rotation of roots from phase to phase as the clients answer."""
        while True:
            if self._mesh.rotation.phase is Phase.SETTLED:
                self._metrics.rotation_phase.set(Phase.SETTLED)
                self._streams.open.behind.clear()
                self._rotating.clear()
                await self._rotating.wait()
            else:
                await asyncio.sleep(LOOK_SECONDS)
                self._advance_rotation()

    def _advance_rotation(self) -> None:
        before = self._mesh.rotation
        self._metrics.rotation_phase.set(before.phase)
        answered = not self._concerned and not self._streams.open.behind
        if not self._mesh.advance(answered=answered):
            return
        after = self._mesh.rotation
        seconds = 0.0 if before.since is None else (self._mesh.now() - before.since).total_seconds()
        self._metrics.rotation_phase.set(after.phase)
        self._metrics.rotation_seconds.labels(before.phase.name.lower()).observe(seconds)
        self._metrics.rotation_behind.inc(after.behind - before.behind)
        log = self._log.warning if after.behind > before.behind else self._log.info
        log("rotation of the marble root goes on", done=before.phase.name.lower(), seconds=round(seconds, 3))

    # ---- time

    async def _expire_endpoints(self) -> None:
        while True:
            due = self._mesh.expire()
            self._expiry.clear()
            seconds = max((due - self._mesh.now()).total_seconds(), 0.05)
            try:
                async with asyncio.timeout(seconds):
                    await self._expiry.wait()
            except TimeoutError:
                continue

    async def _look_after_streams(self) -> None:
        while True:
            await asyncio.sleep(self._look_seconds)
            self._streams.look()
            self._gate.prune()
