# SPDX-License-Identifier: Apache-2.0
"""The mesh of the chaos test: each Marble in a network namespace of its own, and a box on every way between them.

    web (10.77.1.2) ──cable──┐                        the hub, where this process lives:
    api (10.77.2.2) ──cable──┼── middlebox ── Coordinator on 127.0.0.1
    db  (10.77.3.2) ──cable──┘   10.77.100.1 is the Coordinator, .2 api, .3 db: where others find them

`web` dials the two others; between worker and app are UNIX sockets. All timeouts are short.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from enclave_proxy.bootstrap import Credentials
from sds.attestation.simulated import SimulatedEnclave, SimulatedPlatform
from tests.kit.mesh import Json, MeshHarness, RunningWorker, free_port
from tests.kit.netns import Namespace, link
from tests.kit.outside import Outside
from tests.kit.users import user
from tests.soak import measure

ROOT = Path(__file__).resolve().parents[2]
MARBLES = ("web", "api", "db")
STRANGER, OUTCAST = "stranger", "outcast"
COORDINATOR_IP = "10.77.100.1"
LIMITS = (
    "handshake-timeout=3,connect-timeout=2,endpoint-wait=2,linger=3,idle-timeout=6,half-closed-timeout=5,lifetime=60"
)
ADMIN_PORT = 15090


def leashed(*command: str) -> list[str]:
    """The command line of a process that ends with this one, however this one ends."""
    leash = ROOT / "enclave_proxy" / "exec_app.py"
    return [sys.executable, "-I", "-S", str(leash), str(os.getpid()), shutil.which(command[0]) or "", *command]


class Hub(Namespace):
    """The namespace that this process lives in."""

    def __init__(self) -> None:
        super().__init__("hub")

    @property
    def pid(self) -> int:
        return os.getpid()


class NetworkMesh(MeshHarness):
    """Workers start in the namespaces of their Marbles."""

    def __init__(self, directory: Path, pods: Mapping[str, Namespace]) -> None:
        super().__init__(directory)
        self._pods = pods

    async def _start(self, command: tuple[str, ...], env: Mapping[str, str], cwd: Path) -> Process:
        pod = self._pods.get(env.get("EDG_MARBLE_TYPE", ""))
        if pod is None:
            return await super()._start(command, env, cwd)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("EDG_", "MARBLE"))}  # noqa: TID251
        return await asyncio.create_subprocess_exec(
            *leashed(*pod.argv(sys.executable, "-m", "marblemesh", *command)),
            env={**inherited, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), **env},
            cwd=cwd,
            stderr=PIPE,
        )


@dataclass
class World:
    """Everything that runs. `marbles`: those that take part, `web` first."""

    directory: Path
    marbles: tuple[str, ...]
    pods: dict[str, Namespace]
    mesh: NetworkMesh = field(init=False)
    ports: dict[str, int] = field(default_factory=dict)
    workers: dict[str, RunningWorker] = field(default_factory=dict)
    dead: list[RunningWorker] = field(default_factory=list)
    cables: dict[str, str] = field(default_factory=dict)
    """the pod's end"""
    revision: int = 0
    outcast_allowed: bool = True
    box: Process | None = None
    _orders: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    _ordering: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.mesh = NetworkMesh(self.directory, self.pods)

    # ---- addresses

    def ip(self, marble: str) -> str:
        return f"10.77.{MARBLES.index(marble) + 1}.2"

    def gateway(self, marble: str) -> str:
        return f"10.77.{MARBLES.index(marble) + 1}.1"

    def found_at(self, marble: str) -> str:
        """Where the Coordinator tells others to dial."""
        return f"10.77.100.{MARBLES.index(marble) + 1}"

    def records(self, marble: str) -> Path:
        return self.directory / f"records-{marble}"

    @property
    def box_log(self) -> Path:
        return self.directory / "box.log"

    # ---- beginning

    def lay_cables(self) -> None:
        hub = Hub()
        hub.run("ip", "link", "set", "lo", "up")
        for address in (COORDINATOR_IP, *(self.found_at(marble) for marble in self.marbles[1:])):
            hub.run("ip", "address", "add", f"{address}/32", "dev", "lo")
        for marble in self.marbles:
            pod = self.pods[marble]
            _, self.cables[marble] = link(hub, pod, [f"{self.gateway(marble)}/24"], [f"{self.ip(marble)}/24"])
            pod.run("ip", "route", "add", "default", "via", self.gateway(marble))

    async def start(self) -> None:
        self.lay_cables()
        self.ports = {marble: free_port() for marble in self.marbles}
        await self.mesh.start_coordinator(env={"EDG_DEBUG_LOGGING": "0"})
        await self.mesh.set_manifest(self.manifest())
        await self._start_box()
        async with asyncio.TaskGroup() as group:
            for marble in self.marbles:
                group.create_task(self.start_worker(marble))

    def manifest(self) -> Json:
        users = {"admin": {"Certificate": user("admin").certificate.decode(), "Roles": ["updater"]}}
        roles = {"updater": {"ResourceType": "Manifest", "Actions": ["UpdateManifest"]}}
        ports = {marble: str(self.ports[marble]) for marble in self.marbles}
        dialled = self.marbles[1:]
        tls = {marble: {"Incoming": [{"Port": ports[marble], "Peers": ["web"]}]} for marble in dialled}
        tls["web"] = {"Outgoing": [{"Addr": marble, "Port": ports[marble]} for marble in dialled]}
        types = [*self.marbles, STRANGER, *([OUTCAST] if self.outcast_allowed else [])]
        made = self.mesh.manifest({name: {} for name in types}, tls, Users=users, Roles=roles)
        # Some difference, as an update has one.
        made["Marbles"]["web"]["Parameters"] = {"Env": {"REVISION": str(self.revision)}}
        made["Mesh"] = {"CertificateLifetime": "2m"}
        return made

    async def _start_box(self) -> None:
        coordinator = [("mesh", self.mesh.mesh_addr), ("xds", self.mesh.xds_addr)]
        ways = [f"{name}={COORDINATOR_IP}:{addr.rpartition(':')[2]}>{addr}" for name, addr in coordinator]
        for marble in self.marbles[1:]:
            port = self.ports[marble]
            ways.append(f"{marble}={self.found_at(marble)}:{port}>{self.ip(marble)}:{port}")
        control = self.directory / "box.sock"
        with self.box_log.open("wb") as log:
            command = leashed(sys.executable, "-m", "tests.soak.middlebox", str(control), *ways)
            self.box = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stderr=log)
        async with asyncio.timeout(30):
            while not control.exists():
                await asyncio.sleep(0.05)
        self._orders = await asyncio.open_unix_connection(str(control))

    async def order(self, way: str, fault: str, seconds: float = 0.0, to: tuple[str, int] | None = None) -> None:
        """Have the middlebox do something to a way."""
        assert self._orders is not None
        reader, writer = self._orders
        async with self._ordering:
            writer.write(json.dumps({"way": way, "fault": fault, "seconds": seconds, "to": to}).encode() + b"\n")
            assert await asyncio.wait_for(reader.readline(), 20) == b"ok\n"

    async def start_worker(self, marble: str) -> None:
        """Its first start, or another one of the same instance."""
        if (old := self.workers.get(marble)) is not None:
            self.dead.append(old)
        app = (sys.executable, "-m", "tests.soak.chaos_app", str(self.records(marble)), f"{self.ports[marble]}.sock")
        command = ("sleep", "infinity") if marble == "web" else app
        host, port = COORDINATOR_IP, self.mesh.mesh_addr.rpartition(":")[2]
        env = {
            "EDG_MARBLE_COORDINATOR_ADDR": f"{host}:{port}",
            "EDG_MARBLE_XDS_ADDR": f"{host}:{self.mesh.xds_addr.rpartition(':')[2]}",
            "EDG_MARBLE_DNS_NAMES": f"localhost,{self.found_at(marble)}",
            "EDG_MARBLE_ADVERTISE": self.found_at(marble),
            "EDG_MARBLE_ADMIN_ADDR": f"{self.ip(marble)}:{ADMIN_PORT}",
        }
        flags = ("--limits", LIMITS, "--restart", "always", "--drain", "2", "--app-grace", "2")
        self.workers[marble] = await self.mesh.start_worker(marble, *command, flags=flags, env=env)

    # ---- what others do

    def outside(self) -> Outside:
        client, marble = (int(addr.rpartition(":")[2]) for addr in (self.mesh.client_addr, self.mesh.mesh_addr))
        platform = SimulatedPlatform.open(self.mesh.platform, datetime.now(UTC))
        return Outside(client, marble, self.directory, platform)

    async def activated(self, marble_type: str) -> Credentials:
        """A Marble without our worker: what it got, to do with as it likes."""
        env = await self.outside().activate(marble_type, enclave=SimulatedEnclave.default(marble_type))
        return Credentials.from_env(dict(env), datetime.now(UTC))

    async def update(self) -> None:
        self.revision += 1
        answer = await self.outside().update(json.dumps(self.manifest()).encode(), "admin")
        assert answer.status == 200, answer.body

    def app_of(self, marble: str) -> int | None:
        """Its process; None while it does not run."""
        with suppress(OSError):
            for pid in measure.children(self.workers[marble].pid):
                if "chaos_app" in measure.command(pid):
                    return pid
        return None

    def signal_app(self, marble: str, number: signal.Signals) -> None:
        if (pid := self.app_of(marble)) is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def cable(self, marble: str, state: str) -> None:
        self.pods[marble].run("ip", "link", "set", self.cables[marble], state)
        if state == "up":  # which has taken the route along
            self.pods[marble].run("ip", "route", "replace", "default", "via", self.gateway(marble))

    def drop_packets(self, marble: str, *, drop: bool) -> None:
        rules = "add table inet chaos; add chain inet chaos in { type filter hook input priority 0; }; "
        rules += f'add rule inet chaos in iifname "{self.cables[marble]}" drop'
        self.pods[marble].run("nft", rules if drop else "delete table inet chaos")

    async def metrics(self, marble: str) -> dict[str, float]:
        """Asked over the cable, which must be whole."""
        reader, writer = await asyncio.open_connection(self.ip(marble), ADMIN_PORT)
        try:
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            text = (await asyncio.wait_for(reader.read(), 10)).decode()
        finally:
            writer.close()
        lines = (line.rpartition(" ") for line in text.splitlines() if line.startswith("marblemesh_worker_"))
        return {name.removeprefix("marblemesh_worker_"): float(value) for name, _, value in lines}

    async def client(self, seed: int, connections: int) -> Process:
        """The traffic, in the pod of `web`."""
        run_dir = self.workers["web"].run_dir
        targets = [f"{marble}={run_dir}/{marble}-{self.ports[marble]}.sock" for marble in self.marbles[1:]]
        argv = self.pods["web"].argv(
            sys.executable, "-m", "tests.soak.chaos_client", str(seed), str(connections), *targets
        )
        return await asyncio.create_subprocess_exec(*leashed(*argv), stdin=PIPE, stdout=PIPE, cwd=ROOT, limit=1 << 20)

    async def stop(self) -> None:
        if self._orders is not None:
            self._orders[1].close()
        if self.box is not None:
            self.box.kill()
            await self.box.wait()
