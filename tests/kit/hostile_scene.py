# SPDX-License-Identifier: Apache-2.0
"""Real workers among attackers that hold the mesh's CA: `server` lets `client` in, `caller` dials `db`."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from sds.attestation.simulated import SimulatedPlatform
from sds.ca import CertificateAuthority
from tests.kit.coordinator_keys import ca_of
from tests.kit.mesh import Json, MeshHarness, RunningWorker
from tests.kit.outside import Outside
from tests.kit.pki import make_ca
from tests.kit.users import user

# Seconds: long enough for 60 handshakes at once on a busy machine, short enough to wait for the silent ones.
HANDSHAKE_TIMEOUT = 4
# Handshakes at once: more than all flights together need, so that it is a flood that fills them.
PLACES = 64
SECRET = b"the secret"
# Speaks first, so that a byte would come even to a peer that sends nothing, and then echoes; notes who has come.
GREETER = f"""
import os, socketserver, sys, threading
class Greeter(socketserver.BaseRequestHandler):
    def handle(self):
        with open("seen", "a") as seen: seen.write(os.path.basename(self.server.server_address) + " ")
        try:
            self.request.sendall({SECRET!r})
            while chunk := self.request.recv(4096): self.request.sendall(chunk)
        except OSError: pass
socketserver.ThreadingUnixStreamServer.request_queue_size = 64
for name in sys.argv[1:]:
    server = socketserver.ThreadingUnixStreamServer(os.environ["MARBLEMESH_RUN_DIR"] + "/" + name, Greeter)
    threading.Thread(target=server.serve_forever).start()
print("app listening", file=sys.stderr, flush=True)
"""


@dataclass(frozen=True)
class Scene:
    """The workers; the mesh's CA in the attackers' hands, the one before the last rotation, and one of another mesh."""

    server: RunningWorker
    caller: RunningWorker
    ca: CertificateAuthority
    former: CertificateAuthority
    foreign: CertificateAuthority

    @property
    def seen(self) -> list[str]:
        """The ports behind which the app has seen a connection, one by one."""
        file = self.server.run_dir.parent / "seen"
        return [name.removesuffix(".sock") for name in file.read_text().split()] if file.exists() else []

    async def counted(self, worker: RunningWorker, listeners: Iterable[str]) -> Mapping[str, list[str]]:
        """What became of the connections to each listener, as soon as there is something to say of each."""
        wanted = tuple(listeners)
        line = re.compile(r'connections_(refused|established)_total\{listener="(.*?)"(?:,reason="(.*?)")?\} (\S+)')

        def read(text: str) -> dict[str, list[str]]:
            found: dict[str, list[str]] = {name: [] for name in wanted}
            for kind, listener, reason, value in line.findall(text):
                if listener in found:
                    found[listener] += [reason or kind] * int(float(value))
            return found

        return read(await worker.admin_says("/metrics", lambda text: all(read(text).values())))


@asynccontextmanager
async def hostile_scene(incoming: list[Json], outgoing: list[Json]) -> AsyncIterator[Scene]:
    """With these ports and peers; the CA has been rotated once."""
    with TemporaryDirectory(prefix="mm-") as directory:
        async with MeshHarness(Path(directory)) as mesh:
            await mesh.start_coordinator()
            await mesh.set_manifest(_manifest(mesh, incoming, outgoing, 0))
            sockets = [f"{entry['Port']}.sock" for entry in incoming]
            # The worker's own look at the app's sockets would be connections that the app sees.
            limits = f"handshake-timeout={HANDSHAKE_TIMEOUT},handshakes={PLACES},log-lines=1000"
            flags = ("--limits", limits, "--app-timeout", "0")
            server = await mesh.start_worker("server", sys.executable, "-c", GREETER, *sockets, flags=flags)
            caller = await mesh.start_worker("caller", "sleep", "600", flags=flags)
            await server.logged("app listening")
            await caller.ready()
            former = await asyncio.to_thread(ca_of, mesh.state, mesh.platform)
            await _rotate(mesh, (server, caller), former, _manifest(mesh, incoming, outgoing, 1))
            yield Scene(server, caller, await asyncio.to_thread(ca_of, mesh.state, mesh.platform), former, make_ca())


def _manifest(mesh: MeshHarness, incoming: list[Json], outgoing: list[Json], revision: int) -> Json:
    users = {"admin": {"Certificate": user("admin").certificate.decode(), "Roles": ["updater"]}}
    roles = {"updater": {"ResourceType": "Manifest", "Actions": ["UpdateManifest"]}}
    changing = {"Parameters": {"Env": {"REVISION": str(revision)}}}
    marbles: dict[str, Json] = {"server": {}, "caller": {}, "client": changing, "other": {}, "db": {}}
    tls = {"server": {"Incoming": incoming}, "caller": {"Outgoing": outgoing}}
    return mesh.manifest(marbles, tls, Users=users, Roles=roles)


async def _rotate(
    mesh: MeshHarness, workers: Iterable[RunningWorker], former: CertificateAuthority, updated: Json
) -> None:
    """Update the manifest, which brings a new root, and wait until the workers believe the old one no more."""
    client, marble = (int(addr.rpartition(":")[2]) for addr in (mesh.client_addr, mesh.mesh_addr))
    platform = SimulatedPlatform.open(mesh.platform, datetime.now(UTC))
    outside = Outside(client, marble, mesh.directory, platform)
    answer = await outside.update(json.dumps(updated).encode(), "admin")
    assert answer.status == 200, answer.body
    gone = f"{former.marble_root.serial_number:x}"
    for worker in workers:
        await worker.admin_says("/certs", lambda text: gone not in str(json.loads(text)["bundle"]))
