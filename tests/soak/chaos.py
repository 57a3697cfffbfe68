# SPDX-License-Identifier: Apache-2.0
"""Everything fails at random under traffic, and nothing worse happens than an error.

    python -m tests.soak.chaos --seed 7                     ten minutes
    python -m tests.soak.chaos --seed 7 --seconds 60 -o json

A real Coordinator and three real workers in network namespaces, a box on every way between them. Coordinator, workers
and apps are killed and come back, apps hang, cables are pulled and packets dropped, connections are delayed, stalled,
reset, half-open, cut, corrupted and led to somebody else, the CA is rotated; strangers knock all the time. Must hold:

    no connection outlives its timeouts            what one app sent is what the other got, byte for byte
    no impostor gets or sends a byte               what was cut off never looks like an end
    all is well soon after the last fault          no descriptor, task or connection is left behind

Needs root. The same seed gives the same faults at the same times. Ends with status 1, and with the seed and what had
been done until then, if anything was not as it must be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from grpclib.exceptions import GRPCError, StreamTerminatedError

from tests.kit import mesh as kit
from tests.kit.mesh import Running
from tests.kit.netns import Namespace
from tests.soak import measure
from tests.soak.chaos_schedule import CONTROL, Event, Fault, schedule
from tests.soak.chaos_verdict import Verdict, is_clean, judge
from tests.soak.chaos_world import MARBLES, OUTCAST, STRANGER, World
from tests.soak.impostors import Impostors

INSIDE = "--inside"
# From the last fault until every target serves again: workers and Coordinator start, streams come back in up to 10 s.
RECOVERY = 45.0
# A process starts in a few seconds, but not where others have a greater right to the machine.
PATIENCE = 180.0
# How long a client may take to end, that is its last connections.
ENDING = 60.0
# How long a worker may take to have nothing left of them.
SETTLE = 30.0


# What a worker must not have counted, whatever others do.
NEVER = ("connection_bugs_total", "configurations_rejected_total", "xds_nacks_total")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    seed: int
    seconds: float = 600.0
    marbles: int = 3
    connections: int = 6
    """at a time, to each target"""
    mean: float = 3.0
    """seconds between faults"""


@dataclass
class Result:
    seed: int
    seconds: float
    faults: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    verdict: Verdict = field(default_factory=Verdict)
    longest: float = 0.0
    """seconds that a connection which the worker had to end was open, at most"""
    recovered: dict[str, float] = field(default_factory=dict)
    """seconds from the last fault to the first clean connection after it, by target"""
    knocks: Counter[str] = field(default_factory=Counter)
    slowest_handshake: float = 0.0
    """seconds that somebody who went on with no handshake could stay, at most"""
    hijacked: int = 0
    before: dict[str, dict[str, float]] = field(default_factory=dict)
    after: dict[str, dict[str, float]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)


class Chaos:
    """One run."""

    def __init__(self, world: World, size: Size) -> None:
        self._world = world
        self._size = size
        self._events = schedule(size.seed, size.seconds, world.marbles, size.mean)
        self._records: list[dict[str, Any]] = []
        self._deaths: dict[str, list[float]] = {marble: [] for marble in world.marbles}
        self._done: list[str] = []
        self._coordinator = asyncio.Lock()
        self._began = 0.0
        self._middle = ("", 0)
        self._suspicious: dict[str, dict[str, float]] = {}
        self.result = Result(size.seed, size.seconds)

    async def run(self) -> None:
        world = self._world
        await world.start()
        for worker in world.workers.values():
            await worker.logged("app started")
        impostors = Impostors(await world.activated(STRANGER), await world.activated(OUTCAST))
        await world.update()
        server, self._middle = await impostors.answer()
        self.result.before = {marble: await self._left_of(marble, None) for marble in world.marbles}
        client = await world.client(self._size.seed, self._size.connections)
        self._began = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                helpers = [group.create_task(self._collect(client)), group.create_task(self._tell())]
                helpers.append(group.create_task(self._knock(impostors)))
                helpers.append(group.create_task(self._refresh(impostors)))
                doors = [(world.ip(marble), world.ports[marble]) for marble in world.marbles[1:]]
                helpers += [group.create_task(impostors.hold(*door)) for door in doors]
                await self._fail()
                await self._recover()
                assert client.stdin is not None
                client.stdin.close()
                await self._ended(client)
                for helper in helpers[1:]:
                    helper.cancel()
        finally:
            server.close()
            if client.returncode is None:
                client.kill()
                await client.wait()
        for marble in world.marbles:
            self.result.after[marble] = await self._left_of(marble, self.result.before[marble])
        self._judge(impostors)

    # ---- what happens

    async def _fail(self) -> None:
        async with asyncio.TaskGroup() as group:
            for event in self._events:
                group.create_task(self._happen(event))

    async def _happen(self, event: Event) -> None:
        await asyncio.sleep(max(0.0, self._began + event.at - time.monotonic()))
        self._done.append(f"{time.monotonic() - self._began:7.2f}  {event}")
        self.result.faults[str(event.fault)] += 1
        world, target = self._world, event.target
        match event.fault:
            case Fault.COORDINATOR_KILLED:
                async with self._coordinator:
                    await world.mesh.kill_coordinator()
                    await asyncio.sleep(event.lasts)
                    await world.mesh.start_coordinator(env={"EDG_DEBUG_LOGGING": "0"})
            case Fault.MANIFEST_UPDATED:
                async with self._coordinator:  # one type of Marbles goes with one update, and comes back with the next
                    world.outcast_allowed = not world.outcast_allowed
                    await world.update()
            case Fault.WORKER_KILLED:
                self._died(target)
                await world.workers[target].kill()
                await asyncio.sleep(event.lasts)
                await world.start_worker(target)
            case Fault.APP_KILLED:
                self._died(target)
                world.signal_app(target, signal.SIGKILL)
            case Fault.APP_HANGS:
                world.signal_app(target, signal.SIGSTOP)
                await asyncio.sleep(event.lasts)
                world.signal_app(target, signal.SIGCONT)
            case Fault.LINK_DOWN:
                await asyncio.to_thread(world.cable, target, "down")
                await asyncio.sleep(event.lasts)
                await asyncio.to_thread(world.cable, target, "up")
            case Fault.PACKETS_DROPPED:
                await asyncio.to_thread(world.drop_packets, target, drop=True)
                await asyncio.sleep(event.lasts)
                await asyncio.to_thread(world.drop_packets, target, drop=False)
            case _:
                await self._on_the_way(event)

    async def _on_the_way(self, event: Event) -> None:
        elsewhere, fault = None, str(event.fault)
        if event.fault is Fault.HIJACKED:
            elsewhere = self._middle
        elif event.fault is Fault.SWAPPED:  # to a Marble that is attested, and of another type
            other = next((m for m in self._world.marbles[1:] if m != event.target), None)
            elsewhere = (self._world.ip(other), self._world.ports[other]) if other else self._middle
            fault = str(Fault.HIJACKED)
        for way in ("xds", "mesh") if event.target == CONTROL else (event.target,):
            await self._world.order(way, fault, event.lasts, elsewhere)
        await asyncio.sleep(event.lasts)

    def _died(self, target: str) -> None:
        self._deaths[target].append(time.time())

    async def _refresh(self, impostors: Impostors) -> None:
        """Certificates of the newest root for those who may have one."""
        while True:
            await asyncio.sleep(min(15.0, self._size.seconds / 10))
            with suppress(OSError, TimeoutError, GRPCError, StreamTerminatedError):  # the Coordinator is not there
                impostors.stranger = await self._world.activated(STRANGER)
                if self._world.outcast_allowed:
                    impostors.outcast = await self._world.activated(OUTCAST)

    async def _knock(self, impostors: Impostors) -> None:
        """At every Marble's own port, one after the other."""
        self.result.knocks = impostors.knocks
        while True:
            contexts = impostors.contexts()
            for marble in self._world.marbles[1:]:
                for kind, context in contexts.items():
                    await asyncio.sleep(self._size.seconds / 1200 + 0.2)
                    await impostors.knock(kind, context, self._world.ip(marble), self._world.ports[marble])

    # ---- what is seen

    async def _collect(self, client: asyncio.subprocess.Process) -> None:
        assert client.stdout is not None
        async for line in client.stdout:
            self._records.append(json.loads(line))

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(10)
            clean = sum(is_clean(record) for record in self._records)
            text = f"{len(self._records)} connections, {clean} clean, {len(self._done)} of {len(self._events)} faults"
            print(f"{time.monotonic() - self._began:6.0f} s  {text}", file=sys.stderr, flush=True)

    async def _recover(self) -> None:
        """Until each target has served somebody from beginning to end."""
        over, since = time.monotonic(), time.time()
        targets = set(self._world.marbles[1:])
        while targets - self.result.recovered.keys() and time.monotonic() - over < RECOVERY:
            await asyncio.sleep(0.2)
            for record in reversed(self._records):
                if record["began"] >= since and is_clean(record):
                    self.result.recovered.setdefault(record["target"], round(time.monotonic() - over, 1))
        for target in sorted(targets - self.result.recovered.keys()):
            self.result.violations.append(f"{target} does not serve {RECOVERY:g} s after the last fault")

    async def _ended(self, client: asyncio.subprocess.Process) -> None:
        try:
            await asyncio.wait_for(client.wait(), ENDING)
        except TimeoutError:
            self.result.violations.append(f"connections of the client do not end within {ENDING:g} s")
            client.kill()
            await client.wait()

    async def _left_of(self, marble: str, before: dict[str, float] | None) -> dict[str, float]:
        """What a worker without connections has: as `before`, or else what remains so for a second."""
        deadline, seen = time.monotonic() + SETTLE, before
        worker = self._world.workers[marble]
        while True:
            metrics = await self._world.metrics(marble)
            self._suspicious[marble] = {n: v for n, v in metrics.items() if n.startswith(NEVER) and v}
            now_names = ("connections_active{", "handshakes_active{")
            open_now = sum(value for name, value in metrics.items() if name.startswith(now_names))
            await asyncio.sleep(0.2)  # asking is a connection, too
            state = {
                "descriptors": float(measure.descriptors(worker.pid)),
                "tasks": metrics["tasks"],
                "connections": open_now,
            }
            if state == seen:
                return state
            if before is None:
                seen = state
            elif time.monotonic() > deadline:
                links = dict(measure.kinds_of_descriptors(worker.pid))
                self.result.violations.append(f"{marble} has {state}, had {before}: {links}")
                return state
            await asyncio.sleep(0.8)

    # ---- the verdict

    def _judge(self, impostors: Impostors) -> None:
        result, world = self.result, self._world
        apps = {marble: list(_lines(world.records(marble))) for marble in world.marbles[1:]}
        result.connections = len(self._records)
        result.verdict = judge(self._records, apps, self._deaths)
        ended = [r["seconds"] for r in self._records if r["mode"] in ("SILENT", "HALF")]
        result.longest = max(ended, default=0.0)
        result.hijacked, result.slowest_handshake = impostors.hijacked, round(impostors.slowest, 1)
        result.violations += [*result.verdict.violations, *impostors.violations]
        coordinators = [running for running in world.mesh.running if running.name == "coordinator"]
        for running in (*coordinators, *world.dead, *world.workers.values()):
            result.violations += [f"{running.name} logged {line}" for line in _faults(running)][:5]
        if text := world.box_log.read_text():
            result.violations.append(f"the middlebox failed: {text[-3000:]}")
        for marble, worker in world.workers.items():
            result.violations += [f"{marble} counts {name}" for name in self._suspicious[marble]]
            if worker.process.returncode is not None:
                result.violations.append(f"{marble} ended by itself: {worker.text()[-2000:]}")

    def story(self) -> str:
        """For whoever wants to see it again."""
        return "\n".join([f"seed {self._size.seed}, done so far (seconds, then the schedule's):", *self._done])


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except ValueError:  # it was killed in the middle of it
            continue


def _faults(running: Running) -> Iterator[dict[str, Any]]:
    for line in running.lines:
        if "exception" in line or "Traceback" in str(line.get("event")) or "unexpected" in str(line.get("event")):
            yield line


async def run(size: Size, pods: dict[str, Namespace]) -> Result:
    """All of it, in the namespace of this process; what was wrong is in the result."""
    with TemporaryDirectory(prefix="mm-") as directory:  # short: sockets lie in it
        world = World(Path(directory), tuple(pods), pods)
        async with world.mesh:
            chaos = Chaos(world, size)
            try:
                await chaos.run()
            except BaseException:
                print(chaos.story(), file=sys.stderr, flush=True)
                raise
            finally:
                await world.stop()
            if chaos.result.violations:
                print(chaos.story(), file=sys.stderr, flush=True)
            return chaos.result


def show(result: Result) -> None:
    verdict = result.verdict
    clean, broken = sum(verdict.clean.values()), sum(verdict.broken.values())
    faults = ", ".join(f"{count} {fault}" for fault, count in sorted(result.faults.items()))
    print(f"seed {result.seed}: {sum(result.faults.values())} faults: {faults}")
    print(f"{result.connections} connections, {clean} clean, {sum(verdict.ended.values())} ended by the worker (open "
          f"{result.longest:.1f} s at most), {broken} broken, {verdict.unknown} whose app was killed")  # fmt: skip
    print(f"broken: {dict(verdict.broken)}")
    print(f"impostors: {dict(result.knocks)}, {result.hijacked} dials led elsewhere")
    print(f"who went on with no handshake was thrown out within {result.slowest_handshake} s")
    print(f"served again after {result.recovered} s; left: {result.after}")
    for text in result.violations or ["nothing was wrong"]:
        print(text[:2000])


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, required=True, help="of faults and traffic")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long things fail (default 600)")
    parser.add_argument("--marbles", type=int, choices=(2, 3), default=3, help="default 3")
    parser.add_argument("--connections", type=int, default=6, help="at a time, to each target (default 6)")
    parser.add_argument("--mean", type=float, default=3.0, help="seconds between faults (default 3)")
    parser.add_argument("-o", dest="output", choices=("text", "json"), default="text")
    parser.add_argument(INSIDE, action="store_true", help=argparse.SUPPRESS)
    arguments = vars(parser.parse_args())
    if os.geteuid() != 0:
        raise SystemExit("network namespaces take root: run this as root")
    if not arguments.pop("inside"):  # a network of our own, which goes when we do
        command = ["unshare", "--net", sys.executable, "-m", "tests.soak.chaos", *sys.argv[1:], INSIDE]
        os.execvp("unshare", command)
    output = arguments.pop("output")
    kit.PATIENCE = PATIENCE
    size = Size(**arguments)
    with ExitStack() as stack:
        pods = {marble: stack.enter_context(Namespace(marble)) for marble in MARBLES[: size.marbles]}
        result = asyncio.run(run(size, pods))
    if output == "json":
        print(json.dumps(result, default=vars, indent=2))
    else:
        show(result)
    sys.exit(1 if result.violations else 0)


if __name__ == "__main__":
    main()
