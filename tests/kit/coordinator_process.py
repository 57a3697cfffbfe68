# SPDX-License-Identifier: Apache-2.0
"""The real Coordinator as a process of its own on free ports, with nothing in its environment but what is given."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.kit.tls_port import client_context

READY = "coordinator ready"


@dataclass
class CoordinatorProcess:
    """A running Coordinator; `lines` are its log lines so far."""

    process: asyncio.subprocess.Process
    lines: list[dict[str, Any]] = field(default_factory=list)
    _read: asyncio.Task[None] | None = None
    _more: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def ready(self) -> dict[str, Any]:
        return next(line for line in self.lines if line.get("event") == READY)

    def port(self, name: str) -> int:
        """The port of `client`, `mesh`, `xds` or `prometheus`."""
        return int(str(self.ready[f"{name}_addr"]).rpartition(":")[2])

    async def read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            async with self._more:
                self.lines.append(parse(line))
                self._more.notify_all()
        async with self._more:
            self.lines.append({"event": "end of log"})
            self._more.notify_all()

    async def logged(self, event: str) -> dict[str, Any]:
        """Wait for a line; fails if the process ends without it."""
        async with asyncio.timeout(15), self._more:
            while True:
                for line in self.lines:
                    if line.get("event") == event:
                        return line
                if self.lines and self.lines[-1].get("event") == "end of log":
                    raise AssertionError(f"no {event!r} in {self.lines}")
                await self._more.wait()

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit status."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(15):
            return await self.process.wait()

    async def get(self, path: str) -> Any:
        """`data` of a client API reply."""
        return await self._request("GET", path, None)

    async def set_manifest(self, raw: bytes) -> Any:
        return await self._request("POST", "/manifest", raw)

    async def _request(self, method: str, path: str, body: bytes | None) -> Any:
        url = f"https://127.0.0.1:{self.port('client')}{path}"
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, url, data=body, ssl=client_context()) as reply,
        ):
            answer = json.loads(await reply.read())
            assert reply.status == 200, answer
            return answer["data"]

    async def metrics(self) -> str:
        url = f"http://127.0.0.1:{self.port('prometheus')}/metrics"
        async with aiohttp.ClientSession() as session, session.get(url) as reply:
            return await reply.text()


def parse(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        value = {"event": line.decode().rstrip("\n")}
    return value if isinstance(value, dict) else {"event": str(value)}


async def spawn(*flags: str, env: Mapping[str, str] | None = None) -> asyncio.subprocess.Process:
    """`marblemesh coordinator` as installed, with exactly this environment."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "marblemesh",
        "coordinator",
        *flags,
        env=dict(env or {}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def outcome(*flags: str, env: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Exit status, output and errors of a Coordinator that is expected to end by itself."""
    with tempfile.TemporaryDirectory(prefix="coordinator-") as temporary:
        process = await spawn(*flags, env={"EDG_COORDINATOR_SEAL_DIR": temporary, **(env or {})})
        async with asyncio.timeout(20):
            out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def coordinator(
    platform: Path | None, *flags: str, env: Mapping[str, str] | None = None, state: Path | None = None
) -> AsyncIterator[CoordinatorProcess]:
    """A Coordinator on free ports of loopback, ready; ended with the block. Simulated, unless `platform` is None (then
    `flags` say what else). `state`: its directory, None for one that goes with the block."""
    addresses = [f"--{name}-addr=127.0.0.1:0" for name in ("client", "mesh", "xds", "prometheus")]
    simulation = [] if platform is None else ["--simulation", f"--simulated-platform={platform}"]
    with tempfile.TemporaryDirectory(prefix="coordinator-") as temporary:
        sealed = f"--seal-dir={state or temporary}"
        running = CoordinatorProcess(await spawn(*addresses, *simulation, sealed, *flags, env=env))
        reading = asyncio.get_running_loop().create_task(running.read())
        try:
            await running.logged(READY)
            yield running
        finally:
            await running.stop()
            await reading
