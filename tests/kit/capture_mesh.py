# SPDX-License-Identifier: Apache-2.0
"""Two pods with a worker that captures in each: `client` and `server`, and a Coordinator in the client's pod."""

from __future__ import annotations

import shutil
import sys
from asyncio.subprocess import PIPE, Process, create_subprocess_exec
from collections.abc import Mapping
from pathlib import Path

import aiohttp

from tests.kit.linkerd_pod import connector_in
from tests.kit.mesh import Json, MeshHarness, RunningWorker
from tests.kit.netns import Namespace, link

APP = 1000
"""Whom the apps run as."""
CLIENT, SERVER = "10.77.0.1", "10.77.0.2"
CLIENT6, SERVER6 = "fd77::1", "fd77::2"
# The system's, where there is one: the tests' own may lie in a home directory that is closed to other users.
_PYTHON = shutil.which("python3", path="/usr/bin:/bin") or sys.executable
_PLAIN = (_PYTHON, "-I", str(Path(__file__).with_name("plain_tcp.py")))
SLEEP = ("sleep", "600")


class CaptureMesh(MeshHarness):
    """A mesh in two pods that have the addresses above."""

    def __init__(
        self, directory: Path, client: Namespace, server: Namespace, cables: tuple[str, str] | None = None
    ) -> None:
        """Joins the two by a cable, unless they are already: then `cables` are their ends."""
        super().__init__(directory)
        self.pods = {"client": client, "server": server}
        self.mesh_addr, self.client_addr, self.xds_addr = (f"{CLIENT}:{port}" for port in (2001, 4433, 18000))
        ours = [f"{CLIENT}/24", f"{CLIENT6}/64"], [f"{SERVER}/24", f"{SERVER6}/64"]
        self.cables = cables or link(client, server, *ours)
        self._inside = client

    async def start_captured(
        self, name: str, how: str, *command: str, flags: tuple[str, ...] = (), marble_type: str = ""
    ) -> RunningWorker:
        """A worker in the pod of this name that captures by nft or iptables."""
        address = {"client": CLIENT, "server": SERVER}[name]
        env = {"EDG_MARBLE_DNS_NAMES": f"localhost,{address}", "EDG_MARBLE_ADVERTISE": address}
        self._inside = self.pods[name]
        capture = ("--capture", how, "--app-user", str(APP), *flags)
        return await self.start_worker(marble_type or name, *command, name=name, flags=capture, env=env)

    async def start_server(self, how: str, *ports: int, flags: tuple[str, ...] = ()) -> RunningWorker:
        """The server's worker, with an app that listens on these ports."""
        worker = await self.start_captured("server", how, *_PLAIN, "serve", "server", *map(str, ports), flags=flags)
        await worker.logged("app listening")
        return worker

    def app(self, pod: str, address: str, port: int, text: str, uid: int | None = APP) -> str:
        """See `ask_in`."""
        return ask_in(self.pods[pod], address, port, text, uid)

    async def ask_admin(self, worker: RunningWorker, path: str) -> tuple[int, str]:
        """GET from a worker's admin port, in its pod."""
        address = (await worker.logged("admin listening"))["address"]
        connector = connector_in(self.pods[worker.name])
        async with aiohttp.ClientSession(connector=connector) as http, http.get(f"http://{address}{path}") as reply:
            return reply.status, await reply.text()

    async def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
        connector = connector_in(self.pods["client"])
        async with (
            aiohttp.ClientSession(connector=connector) as http,
            http.request(method, f"https://{self.client_addr}{path}", data=body, ssl=False) as reply,
        ):
            return reply.status, await reply.text()

    async def _start(self, command: tuple[str, ...], env: Mapping[str, str], cwd: Path) -> Process:
        argv, settings = self.leashed(command, env)
        inside = self.pods["client"] if command[0] == "coordinator" else self._inside
        return await create_subprocess_exec(*inside.argv(*argv), env=settings, cwd=cwd, stderr=PIPE)


def ask_in(pod: Namespace, address: str, port: int, text: str, uid: int | None = APP) -> str:
    """What an app in a pod gets that connects and says something; `uid` None: root, the worker's user."""
    return pod.run(*_PLAIN, "ask", address, str(port), text, uid=uid).strip()


def plain_manifest(mesh: MeshHarness) -> Json:
    """`client` may call `server`, a type, on 9000, its IPv6 address on 9100; and two addresses that share 9200. On 9300
    it wants somebody else than who is there."""
    entries = [
        {"Addr": "server", "Port": "9000"},
        {"Addr": SERVER6, "Port": "9100", "Peer": "server"},
        {"Addr": SERVER, "Port": "9200", "Peer": "server"},
        {"Addr": SERVER6, "Port": "9200", "Peer": "other"},
        {"Addr": SERVER, "Port": "9300", "Peer": "other"},
    ]
    incoming = [{"Port": port, "Peers": ["client"]} for port in ("9000", "9100", "9200", "9300")]
    return mesh.manifest(
        {"client": {}, "server": {}, "other": {}}, {"client": {"Outgoing": entries}, "server": {"Incoming": incoming}}
    )
