# SPDX-License-Identifier: Apache-2.0
"""The xDS port with thousands of workers: connect storm, memory, one secret for all, one worker's change, endpoints.

One Coordinator process (real xDS server, Mesh, CA, snapshot), and from another process a TLS 1.3 connection with an
attested identity for each worker, half of them incremental, half state of the world, each with everything that our
worker subscribes to. A few are grpcio's own clients. What is compared is the same change with 10 and with all workers
connected. There is no peer to run beside it: what others publish stands in docs/operate.md.

CPU is the server process's own, by its own clock; the workers share the machine with it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from bench.measure import write_result
from bench.xds_scale_foreign import Foreign, foreign_workers
from bench.xds_scale_town import PEERS, types_of
from sds.resources import BUNDLE_NAME, IDENTITY_NAME

FOREIGN = 10
FEW = 10
ROUNDS = 5
RENEWALS, SERIES = 200, 20
MOVES = 40
# The last ACK is on its way when the last worker has written it.
ON_THE_WAY = 0.1
PATIENCE = 600.0
_ROOM = 64 * 1024 * 1024

Answer = dict[str, Any]


class Remote:
    """A process that takes commands."""

    def __init__(self, process: Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, *arguments: str, core: int) -> Remote:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *arguments, stdin=PIPE, stdout=PIPE, limit=_ROOM
        )
        os.sched_setaffinity(process.pid, {core})
        return cls(process)

    async def do(self, what: str, **arguments: object) -> Answer:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
        return await self.answer()

    async def answer(self) -> Answer:
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            line = await self.process.stdout.readline()
        if not line:
            raise RuntimeError("a process of the benchmark has ended: see its error above")
        return dict(json.loads(line))

    async def end(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


class Scale:
    """One run. `few` of the workers come first, then the rest."""

    def __init__(self, server: Remote, clients: Remote, foreign: list[Foreign], workers: int, port: int) -> None:
        self.server = server
        self.clients = clients
        self.foreign = foreign
        self.workers = workers
        self.port = port
        self.figures: dict[str, object] = {}

    def note(self, **figures: object) -> None:
        self.figures.update(figures)
        print(json.dumps(figures), flush=True)

    async def storm(self, tasks: asyncio.TaskGroup) -> None:
        """Everybody who is not there yet, at once."""
        before = await self.server.do("cpu")
        rest = self.workers - FEW
        for worker in self.foreign:
            tasks.create_task(worker.run(self.port))
        found = await self.clients.do("connect", first=FEW, count=rest, timeout=PATIENCE)
        for worker in self.foreign:
            await worker.ready()
        await self._quiet()
        after = await self.server.do("cpu")
        refused = sum(found["refused"].values()) + sum(bool(worker.error) for worker in self.foreign)
        self.note(
            refused_streams=refused,
            refusals=found["refused"],
            storm_seconds=round(found["seconds"], 2),
            storm_cpu_us_per_worker=_micro(after["cpu"] - before["cpu"], rest + len(self.foreign)),
        )

    async def memory(self, empty: int, registered: int) -> None:
        """What a worker costs: to be known, and to be connected."""
        now = (await self.server.do("usage"))["rss"]
        count = self.workers + len(self.foreign)
        self.note(
            rss_bytes_per_worker=round((now - empty) / count),
            rss_bytes_per_registered=round((registered - empty) / count),
            rss_bytes=now,
        )

    async def bundle(self) -> None:
        """Another root: one secret for all, to the last ACK."""
        costs, times = [], []
        count = self.workers + len(self.foreign)
        for _ in range(ROUNDS):
            identities = (await self.server.do("counts"))["identities"]
            heard = sum(worker.bundles for worker in self.foreign)
            await self.clients.do("mark")
            began = await self.server.do("rotate")
            last = await self.clients.do("await_seen", name=BUNDLE_NAME, count=self.workers, timeout=PATIENCE)
            await asyncio.sleep(ON_THE_WAY)
            after = await self.server.do("cpu")
            costs.append(_micro(after["cpu"] - began["cpu"], count))
            times.append(max(last["last"], *(worker.last for worker in self.foreign)) - began["time"])
            made = await self.server.do("counts")
            if last["seen"].get(BUNDLE_NAME) != self.workers:
                raise RuntimeError(f"expected {self.workers} bundles, the workers saw {last['seen']}")
            if sum(worker.bundles for worker in self.foreign) != heard + len(self.foreign):
                raise RuntimeError("a grpcio worker did not get the bundle")
        self.note(
            cpu_us_per_push=statistics.median(costs),
            cpu_us_per_push_rounds=costs,
            last_ack_seconds=round(statistics.median(times), 3),
            serialised_per_rotation=made["shared"] + made["identities"] - identities,
        )

    async def one_worker(self, connected: int) -> float:
        """One worker's new identity, many times; what happens anyway meanwhile is not counted. Whatever else runs on
        the machine can only add, for seconds on end: so the best of several series counts."""
        await self._quiet()
        idle = (await self.server.do("idle", seconds=2.0))["cpu"] / 2.0
        rest = await self.server.do("rest", count=2 * SERIES)
        await self.clients.do("mark")
        found = await self.server.do("renew", count=RENEWALS, among=FEW)
        seen = (await self.clients.do("run", seconds=ON_THE_WAY))["seen"]
        if seen != {IDENTITY_NAME: RENEWALS}:
            raise RuntimeError(f"expected {RENEWALS} identities and nothing else, the workers saw {seen}")
        cost = _least(found["cpu"]) - _least(rest["cpu"])
        self.note(
            **{
                f"cpu_us_one_worker_of_{connected}": round(cost * 1e6),
                f"idle_cpu_us_per_second_with_{connected}": round(idle * 1e6),
            }
        )
        return cost

    async def endpoints(self) -> None:
        """Workers of one type come back under another address: those who call it get a new list."""
        await self._quiet()
        await self.clients.do("mark")
        before, start = await self.server.do("counts"), await self.server.do("cpu")
        numbers = list(range(FEW, self.workers))[:MOVES]
        found = await self.clients.do("move", numbers=numbers, address=1, gap=0.05)
        after, end = await self.server.do("counts"), await self.server.do("cpu")
        pushes = after["marblemesh_xds_pushes_total"] - before["marblemesh_xds_pushes_total"]
        self.note(
            endpoint_moves=len(numbers),
            endpoint_pushes=round(pushes),
            cpu_us_per_endpoint_push=_micro(end["cpu"] - start["cpu"], max(pushes, 1)),
            refused_on_move=sum(found["refused"].values()),
        )

    async def _quiet(self) -> None:
        """Until nothing has been pushed for a while."""
        pushed = -1.0
        while (now := (await self.server.do("counts"))["marblemesh_xds_pushes_total"]) != pushed:
            pushed = now
            await self.clients.do("run", seconds=1.5)


def _least(values: Sequence[float]) -> float:
    """The smallest median of a series."""
    return min(statistics.median(values[start : start + SERIES]) for start in range(0, len(values), SERIES))


def _micro(seconds: float, count: float) -> float:
    return round(seconds / count * 1e6, 1)


async def run(workers: int, folder: Path, cores: Sequence[int]) -> dict[str, object]:
    identities = folder / "identities"
    total = workers + FOREIGN
    async with AsyncExitStack() as stack:
        server = await Remote.start("bench.xds_scale_server", str(total), str(identities), core=cores[0])
        stack.push_async_callback(server.end)
        started = await server.do("start")
        empty = await server.do("usage")
        registered = await server.do("activate")
        clients = await Remote.start("bench.xds_scale_clients", str(identities), str(started["port"]), core=cores[-1])
        stack.push_async_callback(clients.end)
        await clients.answer()
        foreign = foreign_workers(identities, started["root"], range(workers, total))
        scale = Scale(server, clients, foreign, workers, started["port"])
        scale.note(workers=total, types=types_of(total), peers_per_type=PEERS, foreign_workers=FOREIGN)
        scale.note(cpu_us_per_identity=_micro(registered["cpu"] - empty["cpu"], total))
        async with asyncio.TaskGroup() as tasks:
            await clients.do("connect", first=0, count=FEW, timeout=PATIENCE)
            few = await scale.one_worker(FEW)
            await scale.storm(tasks)
            await scale.memory(empty["rss"], registered["rss"])
            many = await scale.one_worker(total)
            scale.note(one_worker_ratio=round(many / few, 2))
            await scale.endpoints()
            await scale.bundle()
            counts = await server.do("counts")
            scale.note(nacks=counts["marblemesh_xds_nacks_total"], streams=counts["marblemesh_xds_streams"])
            await server.do("stop")
        return scale.figures


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make bench ARGS=xds_scale", description=__doc__)
    parser.add_argument("--workers", type=int, default=5000, help="workers in all (default 5000)")
    options = parser.parse_args(arguments)
    if options.workers < 2 * (FEW + FOREIGN):
        parser.error(f"at least {2 * (FEW + FOREIGN)} workers")
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    with tempfile.TemporaryDirectory(prefix="mmb") as folder:
        figures = asyncio.run(run(options.workers - FOREIGN, Path(folder), cores))
    print(f"written: {os.path.relpath(write_result('xds_scale', figures))}")
    return 0
