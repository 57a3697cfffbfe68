# SPDX-License-Identifier: Apache-2.0
"""One whole demo: directory, ports, manifest; the mesh; the trial or the live view; and nothing left behind."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path

from aiohttp import ClientSession, ClientTimeout

from marblemesh.demo.errors import CheckFailedError, PortTakenError
from marblemesh.demo.gateway import make_gateway
from marblemesh.demo.observe import Now, observe
from marblemesh.demo.ports import free_ports
from marblemesh.demo.processes import Processes
from marblemesh.demo.progress import last_line
from marblemesh.demo.result import Result, parse_vote_report
from marblemesh.demo.state_dir import state_directory
from marblemesh.demo.steps.start import envoy_version, start_mesh, start_voting
from marblemesh.demo.steps.trial import trial
from marblemesh.demo.steps.world import Say, Wish, World
from marblemesh.demo.topology import HOST, Paths, Ports, Topology, base_environment, demo_manifest

# Ports are chosen at random among 20 000; that one is taken between our look and its bind twice in a row is no race.
ATTEMPTS = 3
# A demo that has run for a week is not the demo any more.
GATEWAY_LIFETIME = timedelta(days=7)
VIEW_SECONDS = 0.5
# Our own processes on loopback; what takes longer is asked again.
HTTP_TIMEOUT = ClientTimeout(total=2)

Show = Callable[[Now], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """Where and with what. `prometheus` None: not installed. `env` is our own environment."""

    paths: Paths
    python: str
    envoy: Path
    prometheus: str | None
    env: Mapping[str, str]


async def run_once(settings: Settings, wish: Wish, result: Result, say: Say) -> None:
    """Start, drive the votes through, check. Fills `result`; raises DemoError."""

    async def body(world: World) -> None:
        await trial(world, wish, result)

    await _with_mesh(settings, result, say, body)
    result.ok = True


async def run_live(settings: Settings, wish: Wish, result: Result, say: Say, show: Show) -> None:
    """Start, and show what happens until cancelled. Fills `result`; raises DemoError when a process ends."""

    async def body(world: World) -> None:
        await start_voting(world, wish)
        bot = world.processes["vote-bot"]
        if wish.votes:
            world.processes.may_end("vote-bot")
        try:
            while True:
                world.processes.check()
                show(await observe(world))
                await asyncio.sleep(VIEW_SECONDS)
        finally:
            # First of all the bot: it says its result while there is still a web to fetch the board from.
            await bot.stop()
            if report := last_line(bot.out):
                result.add_votes(parse_vote_report(report))

    try:
        await _with_mesh(settings, result, say, body)
    except asyncio.CancelledError:
        if result.failures:
            raise CheckFailedError(f"{result.failures} requests of vote-bot failed") from None
        result.ok = True
        raise


async def _with_mesh(settings: Settings, result: Result, say: Say, body: Callable[[World], Awaitable[None]]) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            async with _world(settings, result, say) as world:
                started = time.monotonic()
                await start_mesh(world)
                result.durations["start"] = round(time.monotonic() - started, 3)
                await body(world)
        except PortTakenError as error:
            if attempt == ATTEMPTS:
                raise
            say(f"{error}; starting again with others")
        else:
            return


@asynccontextmanager
async def _world(settings: Settings, result: Result, say: Say) -> AsyncIterator[World]:
    paths = settings.paths
    with state_directory(paths):
        ports = Ports.of(free_ports(Ports.count(), HOST, random.SystemRandom()))
        gateway = make_gateway(datetime.now(UTC), GATEWAY_LIFETIME)
        example = (files("manifests") / "examples/emojivoto.json").read_text()
        manifest = demo_manifest(example, ports, gateway.certificate).encode()
        fingerprint = hashlib.sha256(manifest).hexdigest()
        result.logs, result.ports, result.manifest_fingerprint = str(paths.logs), ports.mesh(), fingerprint
        url = f"http://{HOST}:{ports.prometheus}" if settings.prometheus else None
        result.prometheus = {"url": url} if url else {"skipped": "not installed"}
        version = await envoy_version(settings.envoy)
        result.envoy = {"inside": version, "edge": version}
        topology = Topology(ports, paths, settings.python, base_environment(settings.env), fingerprint)
        async with Processes(paths.logs) as processes, ClientSession(timeout=HTTP_TIMEOUT) as http:
            yield World(topology, processes, http, settings.envoy, settings.prometheus, gateway, manifest, say)
