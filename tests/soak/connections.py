# SPDX-License-Identifier: Apache-2.0
"""Many idle connections and many new ones, for minutes, against a real worker: memory stays flat, no descriptor or task
is left behind, no connection fails.

    python -m tests.soak.connections                         10 000 idle, 500 new ones a second, 600 s
    python -m tests.soak.connections --idle 500 --rate 100 --seconds 20 -o json

mTLS to a worker of two relay processes (one has no room for the descriptors of 10 000 connections where a process may
have 20 000), and from it to an app on a UNIX socket that sends back what it gets. Every connection shakes hands in
full, has its bytes echoed and is ended by both sides; the idle ones must answer at the end, too. Ends with status 1 if
anything was not as it must be, and with 3 if all was but the machine could not do so many a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from enclave_proxy.bootstrap import Credentials
from sds.attestation.simulated import SimulatedEnclave, SimulatedPlatform
from tests.kit.mesh import Json, MeshHarness, RunningWorker, free_port
from tests.kit.outside import Outside
from tests.soak import measure

HERE = Path(__file__).parent
APP = (sys.executable, str(HERE / "connections_app.py"))
SAMPLE = 2.0
# Growth of memory that is no leak: what allocators keep for their next peak. A leak of 1 KB for each of 300 000
# connections would be a hundred times as much.
NOISE_KIB = 8192
NOISE_SHARE = 0.02
# How long the worker may take to be as it was before.
SETTLE = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    idle: int = 10_000
    rate: float = 500.0
    seconds: float = 600.0
    processes: int = 2


@dataclass
class State:
    """What a worker has: descriptors of each relay process, tasks of the first, connections of all."""

    descriptors: list[int]
    tasks: float
    connections: float


@dataclass
class Result:
    size: Json
    load: Json = field(default_factory=dict)
    memory: list[Json] = field(default_factory=list)
    cpu_ms: dict[str, float] = field(default_factory=dict)
    """of both cores, for each new connection; what the idle ones cost is in it"""
    before: Json = field(default_factory=dict)
    after: Json = field(default_factory=dict)
    counters: Json = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    """what was not as it must be"""
    too_slow: str = ""

    @property
    def status(self) -> int:
        return 1 if self.wrong else 3 if self.too_slow else 0


class Soak:
    """One worker under load."""

    def __init__(self, worker: RunningWorker, size: Size) -> None:
        self._worker = worker
        self._size = size
        self.pids = [worker.pid] + [
            pid for pid in measure.children(worker.pid) if "relay_process" in measure.command(pid)
        ]
        assert len(self.pids) == size.processes, [measure.command(pid) for pid in self.pids]
        self.result = Result({name: getattr(size, name) for name in size.__dataclass_fields__})
        self._samples: dict[int, list[tuple[float, int]]] = {pid: [] for pid in self.pids}
        self._phase = ""
        self._spent: dict[str, float] = {}

    async def state(self) -> State:
        metrics = await self._metrics()
        now = ("connections_active{", "handshakes_active{")
        connections = sum(value for name, value in metrics.items() if name.startswith(now))
        await asyncio.sleep(0.1)  # our own look is a connection, too
        return State([measure.descriptors(pid) for pid in self.pids], metrics["tasks"], connections)

    async def _metrics(self) -> dict[str, float]:
        text = (await self._worker.admin("/metrics"))[1]
        lines = (line.rpartition(" ") for line in text.splitlines() if line.startswith("marblemesh_worker_"))
        return {name.removeprefix("marblemesh_worker_"): float(value) for name, _, value in lines}

    async def run(self, port: int, pem: Path) -> None:
        before = await self.state()
        self.result.before = vars(before)
        arguments = [str(port), str(pem), str(self._size.idle), str(self._size.rate), str(self._size.seconds)]
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(HERE / "connections_load.py"), *arguments, stdout=PIPE
        )
        try:
            async with asyncio.TaskGroup() as group:
                sampling = group.create_task(self._sample())
                await self._listen(process)
                sampling.cancel()
            assert await process.wait() == 0, "the load ended with an error"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        self._judge_load()
        self._judge_memory()
        await self._judge_rest(before)

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        began = time.monotonic()
        async for line in process.stdout:
            said = json.loads(line)
            self._phase = said["phase"]
            self.result.load = said
            self._count_cpu(said, process.pid)
            taken = ", ".join(f"{measure.resident(pid) / 1024:.1f}" for pid in self.pids)
            print(f"{time.monotonic() - began:6.0f} s  {_brief(said)}, RSS {taken} MiB", file=sys.stderr, flush=True)

    def _count_cpu(self, said: Json, load: int) -> None:
        """What a new connection costs, from before the first to after the last of them."""
        who = {"worker": self.pids, "load": [load], "app": self._apps()}
        spent = {name: sum(measure.cpu_seconds(pid) for pid in pids) for name, pids in who.items()}
        if said["phase"] == "held":
            self._spent = spent
        elif said["phase"] == "renewed" and said["started"]:
            per = 1000 / said["started"]
            self.result.cpu_ms = {name: round((spent[name] - self._spent[name]) * per, 3) for name in who}

    def _apps(self) -> list[int]:
        return [pid for pid in measure.children(self._worker.pid) if "connections_app" in measure.command(pid)]

    async def _sample(self) -> None:
        began = time.monotonic()
        while True:
            if self._phase == "renew":
                for pid in self.pids:
                    self._samples[pid].append((time.monotonic() - began, measure.resident(pid)))
            await asyncio.sleep(SAMPLE)

    # ---- the verdict

    def _judge_load(self) -> None:
        load, size, wrong = self.result.load, self._size, self.result.wrong
        wrong += [f"{count} connections failed: {why}" for why, count in load["failures"].items()]
        expected = size.idle + load["started"]
        if not load["failures"] and (load["opened"], load["ended_cleanly"]) != (expected, expected):
            wrong.append(f"{load['opened']} opened and {load['ended_cleanly']} ended cleanly of {expected}")
        if load["rate_reached"] < 0.98 * size.rate:
            self.result.too_slow = f"{load['rate_reached']} connections a second of {size.rate:g}"

    def _judge_memory(self) -> None:
        for pid, samples in self._samples.items():
            if len(samples) < 8:
                continue
            trend = measure.trend(samples)
            self.result.memory.append(
                {
                    "start_mib": round(samples[0][1] / 1024, 1),
                    "second_quarter_mib": round(trend.first / 1024, 2),
                    "last_quarter_mib": round(trend.last / 1024, 2),
                    "slope_kib_per_minute": round(trend.slope, 1),
                }
            )
            if trend.growth > max(NOISE_KIB, NOISE_SHARE * trend.first):
                self.result.wrong.append(f"process {pid} grew by {trend.growth:.0f} KiB")

    async def _judge_rest(self, before: State) -> None:
        """The worker is to come back to what it was."""
        deadline = time.monotonic() + SETTLE
        while (after := await self.state()) != before and time.monotonic() < deadline:
            await asyncio.sleep(1)
        self.result.after = vars(after)
        if after != before:
            self.result.wrong.append(f"not as before: {after}, was {before}")
        metrics = await self._metrics()
        for name, value in metrics.items():
            if name.startswith(("connections_refused_total", "connections_ended_total", "connection_bugs_total")):
                self.result.counters[name] = value
                if value:
                    self.result.wrong.append(f"{name} is {value:g}")
        faults = [line for line in self._worker.lines if "exception" in line or "Traceback" in str(line.get("event"))]
        self.result.wrong += [f"logged: {line}" for line in faults[:3]]


def _brief(said: Json) -> str:
    failed = sum(said["failures"].values())
    return (
        f"{said['phase']}: {said['held']} idle, {said['opened']} opened, {said['in_flight']} in flight, "
        f"{failed} failed, p50 {said['p50_ms']} ms, p99 {said['p99_ms']} ms"
    )


@asynccontextmanager
async def deployed(size: Size) -> AsyncIterator[tuple[RunningWorker, int, Path]]:
    """A worker with its app, its port, and a file with the identity of a peer that may connect."""
    with TemporaryDirectory(prefix="mm-") as directory:  # short: sockets lie in it
        async with MeshHarness(Path(directory)) as mesh:
            await mesh.start_coordinator()
            port = free_port()
            tls = {"server": {"Incoming": [{"Port": str(port), "Peers": ["client"]}]}}
            await mesh.set_manifest(mesh.manifest({"server": {}, "client": {}}, tls))
            room = 2 * size.idle + 2000
            flags = (
                "--concurrency",
                str(size.processes),
                "--limits",
                f"connections={room},listener-connections={room}",
            )
            # The worker's own look at the app's socket would be one more connection.
            worker = await mesh.start_worker("server", *APP, f"{port}.sock", flags=(*flags, "--app-timeout", "0"))
            await worker.logged("app listening")
            await worker.admin_says("/readyz", lambda text: text == "ok\n")
            yield worker, port, await _identity(mesh)


async def _identity(mesh: MeshHarness) -> Path:
    client, marble = (int(address.rpartition(":")[2]) for address in (mesh.client_addr, mesh.mesh_addr))
    platform = SimulatedPlatform.open(mesh.platform, datetime.now(UTC))
    outside = Outside(client, marble, mesh.directory, platform)
    env = await outside.activate("client", enclave=SimulatedEnclave.default("client"))
    identity = Credentials.from_env(dict(env), datetime.now(UTC)).identity
    file = mesh.directory / "client.pem"
    file.write_bytes(identity.key.pem.rstrip() + b"\n" + identity.chain)
    return file


async def run(size: Size) -> Result:
    """All of it; what was wrong is in the result."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for worker, app and load, which inherit it
    needed = 2 * size.idle // size.processes + 2000
    if hard < max(needed, size.idle + 1000):
        raise SystemExit(f"a process may have {hard} descriptors here, {needed} are needed: raise `ulimit -Hn`")
    async with deployed(size) as (worker, port, pem):
        soak = Soak(worker, size)
        await soak.run(port, pem)
        return soak.result


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak.connections",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--idle", type=int, default=Size().idle, help="connections that stay (default 10000)")
    parser.add_argument("--rate", type=float, default=Size().rate, help="new connections a second (default 500)")
    parser.add_argument("--seconds", type=float, default=Size().seconds, help="how long (default 600)")
    parser.add_argument("--processes", type=int, default=Size().processes, help="of the worker's relay (default 2)")
    parser.add_argument("-o", dest="output", choices=("text", "json"), default="text")
    arguments = vars(parser.parse_args())
    output = arguments.pop("output")
    result = asyncio.run(run(Size(**arguments)))
    if output == "json":
        print(json.dumps({**vars(result), "status": result.status}, indent=2))
    else:
        print(
            f"{_brief(result.load)}, {result.load['rate_reached']} a second, all answered within "
            f"{result.load['worst_ms']:.0f} ms"
        )
        print(f"CPU for each new connection, ms: {result.cpu_ms}")
        for entry in result.memory:
            print(", ".join(f"{name} {value}" for name, value in entry.items()))
        for text in result.wrong or ["nothing was wrong"]:
            print(text)
        if result.too_slow:
            print(f"the machine could not do more: {result.too_slow}")
    sys.exit(result.status)


if __name__ == "__main__":
    main()
