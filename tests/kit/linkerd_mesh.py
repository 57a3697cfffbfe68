# SPDX-License-Identifier: Apache-2.0
"""A real Coordinator and real workers in pods with Linkerd: `web` in pod a, the Coordinator and `db` in pod b.

All of a's traffic to b (Activate, xDS, mTLS between the workers) goes through both Linkerd proxies, if the pods say no
otherwise.
"""

from __future__ import annotations

from asyncio.subprocess import PIPE, Process, create_subprocess_exec
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import aiohttp

from marblemesh.inject.linkerd_ports import COORDINATOR_PORTS
from tests.kit.linkerd_pod import Pod, Town, connector_in
from tests.kit.loopback_capture import LoopbackCapture
from tests.kit.mesh import ECHO, Json, MeshHarness, RunningWorker

PORT = 9443
"""Where db's worker terminates mTLS."""


class PodMesh(MeshHarness):
    """`web` and `db` are the workers; web's app reaches db's by `socket`."""

    web: RunningWorker
    db: RunningWorker

    def __init__(self, directory: Path, town: Town) -> None:
        super().__init__(directory)
        self.town = town
        address = town.b.workload.address
        self.mesh_addr, self.client_addr, self.xds_addr = (f"{address}:{port}" for port in COORDINATOR_PORTS)
        self._inside = town.b.namespace

    @property
    def socket(self) -> Path:
        return self.web.run_dir / f"db-{PORT}.sock"

    async def start_pair(self) -> None:
        """Coordinator, manifest and both workers, ready."""
        await self.start_coordinator()
        await self.set_manifest(two_marbles())
        self.db = await self.start_in(self.town.b, "db", *ECHO, "db", f"{PORT}.sock")
        self.web = await self.start_in(self.town.a, "web", *ECHO, "web", "unused.sock")
        await self.db.logged("app listening")
        await self.web.ready()

    async def start_in(self, pod: Pod, marble_type: str, *command: str) -> RunningWorker:
        address = pod.workload.address
        env = {"EDG_MARBLE_DNS_NAMES": f"localhost,{address}", "EDG_MARBLE_ADVERTISE": address}
        self._inside = pod.namespace
        flags = ("--access-log", str(self.access_log(marble_type)))
        return await self.start_worker(marble_type, *command, env=env, flags=flags)

    def access_log(self, marble_type: str) -> Path:
        """Where a worker writes a line for each connection that has ended."""
        return self.directory / f"{marble_type}.access"

    async def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
        url = f"https://{self.client_addr}{path}"
        connector = connector_in(self.town.b.namespace)
        async with (
            aiohttp.ClientSession(connector=connector) as client,
            client.request(method, url, data=body, ssl=False) as reply,
        ):
            return reply.status, await reply.text()

    async def worker_metrics(self, worker: RunningWorker) -> str:
        """What the worker's admin port says, asked from within its pod."""
        pod = self.town.a if worker is self.web else self.town.b
        address = (await worker.logged("admin listening"))["address"]
        return (await pod.get(int(str(address).rpartition(":")[2]), "/metrics"))[1]

    async def _start(self, command: tuple[str, ...], env: Mapping[str, str], cwd: Path) -> Process:
        argv, settings = self.leashed(command, env)
        return await create_subprocess_exec(*self._inside.argv(*argv), env=settings, cwd=cwd, stderr=PIPE)


def two_marbles() -> Json:
    """A manifest by which web may talk to db."""
    outgoing = {"Outgoing": [{"Addr": "db", "Port": str(PORT)}]}
    incoming = {"Incoming": [{"Port": str(PORT), "Peers": ["web"]}]}
    return MeshHarness(Path()).manifest({"web": {}, "db": {}}, {"web": outgoing, "db": incoming})


@asynccontextmanager
async def pod_mesh(directory: Path, town: Town) -> AsyncIterator[PodMesh]:
    """With both workers running."""
    async with PodMesh(directory, town) as mesh:
        await mesh.start_pair()
        yield mesh


@contextmanager
def captured(town: Town, *markers: bytes) -> Iterator[dict[str, LoopbackCapture]]:
    """Captures on the cable between the pods, at both ends, and on each pod's loopback: `a`, `b`, `a lo`, `b lo`."""
    with ExitStack() as stack:
        made = {}
        for name, pod, cable in (("a", town.a, town.links[0][0]), ("b", town.b, town.links[0][1])):
            for label, interface in ((name, cable), (f"{name} lo", "lo")):
                capture = pod.namespace.call(partial(LoopbackCapture, markers, interface))
                made[label] = stack.enter_context(capture)
        yield made
