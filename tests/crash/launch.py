# SPDX-License-Identifier: Apache-2.0
"""The test's end of `tests.crash.coordinator`: start a Coordinator on a state directory, and learn how it ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
READY = "coordinator ready"
KILLED = -signal.SIGKILL
# A start takes 30 ms, and ten times that on a busy machine.
PATIENCE = 30.0
_MAX_ANSWER = 65536


@dataclass
class Process:
    """One Coordinator. `ready` is its log line that names its ports, None if it died before."""

    launcher: Launcher
    pid: int
    log: asyncio.StreamReader
    ready: dict[str, Any] | None = None
    status: int | None = None
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=40))
    _rest: asyncio.Task[None] | None = None

    def port(self, name: str) -> int:
        """The port of `client` or `mesh`."""
        assert self.ready is not None, self.text()
        return int(str(self.ready[f"{name}_addr"]).rpartition(":")[2])

    def kill(self) -> None:
        """SIGKILL, unless it has ended already."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)

    def kill_after(self, seconds: float) -> None:
        """SIGKILL then, unless it has ended."""
        asyncio.get_running_loop().call_later(seconds, self.kill)

    async def ended(self) -> int:
        """Wait for its end; the exit status, negative for a signal."""
        if self.status is None:
            self.status = int((await self.launcher.answer())["ended"])
            self.launcher.heard()
            if self._rest is not None:
                await self._rest
        return self.status

    def text(self) -> str:
        """The end of its log."""
        return "\n".join(self.lines)

    async def started(self) -> None:
        """Wait until it serves, or is dead."""
        async with asyncio.timeout(PATIENCE):
            while line := await self.log.readline():
                self.lines.append(line.decode(errors="replace").rstrip())
                if READY.encode() in line:
                    self.ready = json.loads(line)
                    break
        self._rest = asyncio.get_running_loop().create_task(self._read_on())

    async def _read_on(self) -> None:
        async for line in self.log:
            self.lines.append(line.decode(errors="replace").rstrip())


class Launcher:
    """Starts Coordinators, one after the other."""

    def __init__(self, orders: socket.socket) -> None:
        self._orders = orders

    async def answer(self) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE):
            data = await asyncio.get_running_loop().sock_recv(self._orders, _MAX_ANSWER)
        if not data:
            raise AssertionError("the launcher has ended")
        answer: dict[str, Any] = json.loads(data)
        return answer

    def heard(self) -> None:
        """The end of the last one is known here: its process id may be given to somebody else."""
        self._orders.send(b".")

    @asynccontextmanager
    async def coordinator(
        self, state: Path, platform: Path, *, deadly: int | None = None, seconds: float | None = None
    ) -> AsyncIterator[Process]:
        """A simulated Coordinator on free ports, ready or already dead: of its `deadly` operation, or after `seconds`.
        Killed with the block, if it lives then."""
        reader, writer = os.pipe()
        try:
            order = {"env": _environment(state, platform), "deadly": deadly}
            socket.send_fds(self._orders, [json.dumps(order).encode()], [writer])
        finally:
            os.close(writer)
        process = Process(self, int((await self.answer())["pid"]), asyncio.StreamReader())
        loop = asyncio.get_running_loop()
        if seconds is not None:
            process.kill_after(seconds)
        pipe, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(process.log), os.fdopen(reader, "rb", 0)
        )
        try:
            await process.started()
            yield process
        finally:
            process.kill()
            await process.ended()
            pipe.close()


@asynccontextmanager
async def launcher() -> AsyncIterator[Launcher]:
    """The process that forks Coordinators, until the block ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    command = (sys.executable, "-m", "tests.crash.coordinator", str(theirs.fileno()), str(os.getpid()))
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, pass_fds=(theirs.fileno(),), env={})
    theirs.close()
    try:
        yield Launcher(ours)
    finally:
        ours.close()
        async with asyncio.timeout(PATIENCE):
            await process.wait()


def _environment(state: Path, platform: Path) -> dict[str, str]:
    return {
        "EDG_COORDINATOR_CLIENT_ADDR": "127.0.0.1:0",
        "EDG_COORDINATOR_MESH_ADDR": "127.0.0.1:0",
        "EDG_COORDINATOR_XDS_ADDR": "127.0.0.1:0",
        "EDG_COORDINATOR_SEAL_DIR": str(state),
        "EDG_COORDINATOR_SIMULATION": "1",
        "EDG_SIMULATED_PLATFORM_DIR": str(platform),
    }
