# SPDX-License-Identifier: Apache-2.0
"""Certificates change under live traffic, and nobody notices: real Coordinator, real workers, real sockets."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.kit.mesh import ECHO, MeshHarness, RunningWorker, free_port

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]
ROTATIONS = 100
CONNECTIONS = 50


@pytest.fixture
async def mesh() -> AsyncIterator[MeshHarness]:
    with TemporaryDirectory(prefix="mm-") as directory:  # short: sockets lie in it
        async with MeshHarness(Path(directory)) as harness:
            yield harness


@dataclass
class Traffic:
    """Requests without a pause until told to stop: on connections that stay, and on a new one each time."""

    socket: Path
    stop: asyncio.Event
    requests: int = 0
    fresh: int = 0

    async def stay(self, number: int) -> None:
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        while not self.stop.is_set():
            await self._request(reader, writer, f"{number}-{self.requests}".encode())
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def come_and_go(self) -> None:
        while not self.stop.is_set():
            reader, writer = await asyncio.open_unix_connection(str(self.socket))
            await self._request(reader, writer, b"new")
            self.fresh += 1
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, payload: bytes) -> None:
        writer.write(payload)
        async with asyncio.timeout(30):
            assert await reader.readexactly(len(payload) + 7) == b"server:" + payload
        self.requests += 1
        await asyncio.sleep(0.02)  # 50 connections at full speed would only measure this machine's two cores


def identities(worker: RunningWorker) -> int:
    return sum("new identity" in str(line.get("event")) for line in worker.lines)


async def serial(worker: RunningWorker) -> str:
    return str(json.loads((await worker.admin("/certs"))[1])["identity"][0]["serial"])


async def rotate(mesh: MeshHarness, workers: list[RunningWorker]) -> None:
    """Have the Coordinator renew every identity, and wait until each worker has put its own to use."""
    assert mesh.coordinator is not None
    wanted = [identities(worker) + 1 for worker in workers]
    mesh.coordinator.send(signal.SIGHUP)
    async with asyncio.timeout(30):
        while any(identities(worker) < number for worker, number in zip(workers, wanted, strict=True)):
            await asyncio.sleep(0.01)


async def test_a_hundred_rotations_drop_no_connection_and_fail_no_request(mesh: MeshHarness) -> None:
    """50 connections stay open from the first to the last rotation; others come and go all the while."""
    await mesh.start_coordinator()
    port = str(free_port())
    tls = {
        "server": {"Incoming": [{"Port": port, "Peers": ["client"]}]},
        "client": {"Outgoing": [{"Addr": "server", "Port": port}]},
    }
    await mesh.set_manifest(mesh.manifest({"server": {}, "client": {}}, tls))
    server = await mesh.start_worker("server", *ECHO, "server", f"{port}.sock")
    client = await mesh.start_worker("client", *ECHO, "client", "unused.sock")
    await server.logged("app listening")
    await client.ready()

    first = {worker.name: await serial(worker) for worker in (server, client)}
    traffic = Traffic(client.run_dir / f"server-{port}.sock", asyncio.Event())
    async with asyncio.TaskGroup() as group:
        for number in range(CONNECTIONS):
            group.create_task(traffic.stay(number))
        group.create_task(traffic.come_and_go())
        for _ in range(ROTATIONS):
            before = traffic.fresh
            await rotate(mesh, [server, client])
            async with asyncio.timeout(30):
                while traffic.fresh == before:  # at least one handshake with each generation of certificates
                    await asyncio.sleep(0.005)
        traffic.stop.set()

    assert traffic.fresh >= ROTATIONS
    assert traffic.requests > ROTATIONS * CONNECTIONS
    for worker in (server, client):
        assert await serial(worker) != first[worker.name]
        metrics = (await worker.admin("/metrics"))[1]
        refused = [line for line in metrics.splitlines() if "refused_total{" in line]
        assert refused == []
        assert "marblemesh_worker_connection_bugs_total 0.0" in metrics
