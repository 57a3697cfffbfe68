# SPDX-License-Identifier: Apache-2.0
"""Manifest updates under traffic: a ring of real Marbles, each talking to the next, while the CA is rotated again and
again; then one of them is no longer allowed.

`python -m tests.soak.updates` runs the full size (10 Marbles, 50 connections each, 20 updates) and prints what it saw;
tests/e2e/test_update_rotation.py runs the same with less of everything. `--marbles 4 --connections 10 --updates 5`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp

from tests.kit.mesh import ECHO, Json, MeshHarness, RunningWorker, free_port
from tests.kit.users import user

PATIENCE = 30.0
# What the design promises for a Marble that an update no longer allows.
CUT_OFF_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    marbles: int = 10
    connections: int = 50
    updates: int = 20
    pause: float = 0.02
    """seconds between two requests on a connection: at full speed this would only measure the machine's cores"""


@dataclass
class Result:
    requests: int = 0
    fresh: int = 0
    begun: int = 0
    rotations: list[float] = field(default_factory=list)
    """seconds from the update to the last phase's end"""
    cut_off: float = 0.0
    """seconds from the update to the end of the last connection of the Marble that was turned out"""
    exited: float = 0.0

    def __str__(self) -> str:
        slowest = max(self.rotations, default=0.0)
        return (
            f"{self.requests} requests, {self.fresh} of them on new connections, none failed; "
            f"{len(self.rotations)} rotations, slowest {slowest:.2f} s; "
            f"cut off after {self.cut_off:.2f} s, ended after {self.exited:.2f} s"
        )


@dataclass
class Edge:
    """One Marble's way to the next: the socket that its app would use, and what the other app answers with."""

    socket: Path
    answer: bytes
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(str(self.socket))


class Ring:
    """Marbles m0 → m1 → … → m0; every connection goes out through one worker and in through the next."""

    def __init__(self, mesh: MeshHarness, size: Size) -> None:
        self.mesh = mesh
        self.size = size
        self.result = Result()
        self.names = [f"m{number}" for number in range(size.marbles)]
        self.ports = [str(free_port()) for _ in self.names]
        self.workers: list[RunningWorker] = []
        self.edges: list[Edge] = []
        self.revision = 0
        self.refused: set[str] = set()
        self._admin = _client_tls(mesh.directory)

    # ---- the manifest

    def manifest(self) -> Json:
        tls = {}
        for number, name in enumerate(self.names):
            after = (number + 1) % len(self.names)
            tls[name] = {
                "Incoming": [{"Port": self.ports[number]}],
                "Outgoing": [{"Addr": self.names[after], "Port": self.ports[after]}],
            }
        users = {"admin": {"Certificate": user("admin").certificate.decode(), "Roles": ["updater"]}}
        roles = {"updater": {"ResourceType": "Manifest", "Actions": ["UpdateManifest"]}}
        made = self.mesh.manifest({name: {} for name in self.names}, tls, Users=users, Roles=roles)
        for name in self.refused:
            made["Packages"][name] = {"UniqueID": "ab" * 32, "Debug": False}
        # Some difference, as an update has one.
        made["Marbles"]["m0"]["Parameters"] = {"Env": {"REVISION": str(self.revision)}}
        return made

    async def update(self) -> None:
        """Submit the manifest as its one user, which puts it in force."""
        self.revision += 1
        raw = json.dumps(self.manifest()).encode()
        url = f"https://{self.mesh.client_addr}/api/v2/update"
        body = {"manifest": base64.b64encode(raw).decode()}
        async with aiohttp.ClientSession() as client, client.post(url, json=body, ssl=self._admin) as reply:
            assert reply.status == 200, await reply.text()

    async def rotate(self) -> None:
        """An update, and everything that follows from it."""
        assert self.mesh.coordinator is not None
        before, started = len(self.mesh.coordinator.lines), time.monotonic()
        await self.update()
        await self.mesh.coordinator.logged("rotation of the marble root goes on", before, done="retire")
        self.result.rotations.append(time.monotonic() - started)

    # ---- the Marbles

    async def start(self) -> None:
        await self.mesh.start_coordinator()
        await self.mesh.set_manifest(self.manifest())
        async with asyncio.TaskGroup() as group:
            starting = [group.create_task(self._start(number)) for number in range(len(self.names))]
        self.workers = [task.result() for task in starting]
        for number, worker in enumerate(self.workers):
            after = (number + 1) % len(self.names)
            socket = worker.run_dir / f"{self.names[after]}-{self.ports[after]}.sock"
            self.edges.append(Edge(socket, self.names[after].encode() + b":"))

    async def _start(self, number: int) -> RunningWorker:
        name = self.names[number]
        worker = await self.mesh.start_worker(name, *ECHO, name, f"{self.ports[number]}.sock")
        await worker.logged("app listening")
        return worker

    # ---- traffic

    async def stay(self, edge: Edge, number: int) -> None:
        """Requests on one connection until the edge is told to stop; none may fail."""
        reader, writer = await edge.open()
        await self._request(edge, reader, writer, b"first")
        self.result.begun += 1
        while not edge.stop.is_set():
            await self._request(edge, reader, writer, f"{number}-{self.result.requests}".encode())
        await _hang_up(writer)

    async def come_and_go(self, edge: Edge) -> None:
        """One connection per request."""
        while not edge.stop.is_set():
            reader, writer = await edge.open()
            await self._request(edge, reader, writer, b"new")
            self.result.fresh += 1
            await _hang_up(writer)

    async def _request(
        self, edge: Edge, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, payload: bytes
    ) -> None:
        writer.write(payload)
        async with asyncio.timeout(PATIENCE):
            wanted = edge.answer + payload
            got = await reader.readexactly(len(wanted))
        assert got == wanted
        self.result.requests += 1
        await asyncio.sleep(self.size.pause)

    @contextmanager
    def traffic(self, group: asyncio.TaskGroup) -> Iterator[None]:
        """Traffic over every edge inside the block; a request that fails ends the group."""
        for edge in self.edges:
            for number in range(self.size.connections):
                group.create_task(self.stay(edge, number))
            group.create_task(self.come_and_go(edge))
        yield
        for edge in self.edges:
            edge.stop.set()

    # ---- the end of one of them

    async def turn_out(self, number: int) -> None:
        """An update that no longer allows what one Marble was attested to be. Its connections, in both directions, must
        end in time, and nobody else's."""
        victim, into, out = self.workers[number], self.edges[number - 1], self.edges[number]
        into.stop.set()
        out.stop.set()
        idle = []
        for edge in (into, out) * self.size.connections:
            idle.append(await edge.open())
            await self._request(edge, *idle[-1], b"idle")
        self.refused.add(self.names[number])
        started = time.monotonic()
        await self.update()
        async with asyncio.timeout(PATIENCE):
            for reader, _ in idle:
                with suppress(ConnectionError):
                    assert await reader.read(1) == b""
            self.result.cut_off = time.monotonic() - started
        assert await victim.wait() == 1
        self.result.exited = time.monotonic() - started
        for _, writer in idle:
            await _hang_up(writer)
        assert not victim.run_dir.joinpath("sds.sock").exists()
        reason = (await victim.logged("turned out of the mesh"))["reason"]
        assert reason.startswith("revoked: the manifest no longer allows")

    def reasons(self) -> str:
        """What was said about phases, and about connections that were not served, for failure messages."""
        said = [(process.name, line) for process in self.mesh.running for line in process.lines]
        told = ("connection refused", "connection ended", "rotation of", "push refused", "control plane")
        return "\n".join(f"{name} {json.dumps(line)}" for name, line in said if str(line.get("event")).startswith(told))

    async def metrics_are_clean(self) -> None:
        """No worker refused or ended a connection, rejected a push, or met a bug."""
        for worker in self.workers:
            lines = (await worker.admin("/metrics"))[1].splitlines()
            bad = ("connections_refused_total{", "connections_ended_total{", "xds_nacks_total{")
            # An aborted handshake is one that the other worker began again, with the newer root.
            found = [line for line in lines if any(name in line for name in bad) and 'reason="aborted"' not in line]
            assert found == [], f"{worker.name}: {found}"
            assert "marblemesh_worker_connection_bugs_total 0.0" in lines

    async def certificates_are_of_the_newest_root(self) -> None:
        bundles = set()
        for worker in self.workers:
            certificates = json.loads((await worker.admin("/certs"))[1])
            assert len(certificates["bundle"]) == 1
            bundles.add(certificates["bundle"][0]["sha256"])
        assert len(bundles) == 1


async def run(size: Size) -> Result:
    """All of it; raises AssertionError for whatever was not as it must be."""
    with TemporaryDirectory(prefix="mm-") as directory:  # short: sockets lie in it
        async with MeshHarness(Path(directory)) as mesh:
            ring = Ring(mesh, size)
            await ring.start()
            try:
                async with asyncio.TaskGroup() as group:
                    with ring.traffic(group):
                        await _all_of_it(ring)
            except BaseException:
                sys.stderr.write(f"after {ring.result}\n{ring.reasons()}\n")
                raise
            return ring.result


async def _all_of_it(ring: Ring) -> None:
    async with asyncio.timeout(2 * PATIENCE):
        while ring.result.begun < ring.size.connections * len(ring.edges):
            await asyncio.sleep(0.01)
    for turn in range(ring.size.updates):
        if turn % 5 == 4:
            await ring.update()  # and the next one at once, before anybody has followed
        await ring.rotate()
        await _until_fresh(ring)
    await ring.metrics_are_clean()
    await ring.certificates_are_of_the_newest_root()
    await ring.turn_out(len(ring.names) - 1)
    await _until_fresh(ring)


async def _until_fresh(ring: Ring) -> None:
    """At least one handshake on every edge that is still in use."""
    wanted = ring.result.fresh + 2 * len(ring.edges)
    async with asyncio.timeout(PATIENCE):
        while ring.result.fresh < wanted:
            await asyncio.sleep(0.01)


def _client_tls(directory: Path) -> ssl.SSLContext:
    pem = directory / "admin.pem"
    pem.write_bytes(user("admin").key + user("admin").certificate)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(pem)
    return context


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


def main() -> None:
    parser = argparse.ArgumentParser(description="Manifest updates under traffic, with real processes")
    for name in ("marbles", "connections", "updates"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Size(), name))
    result = asyncio.run(run(Size(**vars(parser.parse_args()))))
    sys.stdout.write(f"{result}\n")


if __name__ == "__main__":
    main()
