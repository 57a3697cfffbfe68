# SPDX-License-Identifier: Apache-2.0
"""A manifest update that adds, changes and removes listeners of running workers: each drains its own connections, if it
has to, and all others live on, byte for byte. Real Coordinator, real workers, traffic all the time."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from sds.attestation.simulated import SimulatedPlatform
from tests.kit.mesh import PATIENCE, Json, MeshHarness, RunningWorker, free_port
from tests.kit.outside import Outside
from tests.kit.users import user

pytestmark = pytest.mark.e2e

# Says which of its sockets one has reached, and then echoes.
APP = """
import asyncio, os, sys
async def main(names):
    def serve(name):
        async def echo(reader, writer):
            writer.write(name.encode().ljust(16))
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()
            writer.close()
        return echo
    for name in names:
        await asyncio.start_unix_server(serve(name), f"{os.environ['MARBLEMESH_RUN_DIR']}/{name}.sock")
    print("app listening", file=sys.stderr, flush=True)
    await asyncio.Event().wait()
asyncio.run(main(sys.argv[1:]))
"""
KEPT, REPLUGGED, FORBIDDEN, MOVED, REMOVED, ADDED = PORTS = tuple(str(free_port()) for _ in range(6))


def manifest(mesh: MeshHarness, *, updated: bool) -> Json:
    """The update takes REMOVED away and brings ADDED; REPLUGGED leads to another socket of the app, FORBIDDEN is no
    longer for `web`, and `web` listens for MOVED at another place."""
    incoming: list[Json] = [
        {"Port": KEPT},
        {"Port": REPLUGGED, "Upstream": "unix:after.sock" if updated else "unix:before.sock"},
        {"Port": FORBIDDEN, "Peers": ["db"] if updated else ["web"]},
        {"Port": MOVED},
        {"Port": ADDED if updated else REMOVED},
    ]
    outgoing: list[Json] = [{"Addr": "db", "Port": entry["Port"]} for entry in incoming]
    outgoing[3]["Listen"] = "unix:there.sock" if updated else "unix:here.sock"
    users = {"admin": {"Certificate": user("admin").certificate.decode(), "Roles": ["updater"]}}
    roles = {"updater": {"ResourceType": "Manifest", "Actions": ["UpdateManifest"]}}
    tls = {"web": {"Outgoing": outgoing}, "db": {"Incoming": incoming}}
    return mesh.manifest({"web": {}, "db": {}}, tls, Users=users, Roles=roles)


@dataclass
class Talk:
    """One connection of web's app: blocks of random bytes go and come back until `stop`, or until somebody ends it."""

    path: Path
    seed: int = 0
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    reached: str = ""
    blocks: int = 0

    async def run(self) -> bool:
        """Whether it went on until it was stopped. What came back was what was sent, in either case."""
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        source = random.Random(self.seed)
        try:
            self.reached = (await reader.readexactly(16)).decode().strip()
            while not self.stop.is_set():
                block = source.randbytes(source.randrange(1, 40_000))
                writer.write(block)
                try:
                    back = await reader.readexactly(len(block))
                except asyncio.IncompleteReadError as end:
                    back = end.partial
                assert back == block[: len(back)]
                if len(back) < len(block):
                    return False
                self.blocks += 1
                await asyncio.sleep(0.005)
        except (ConnectionError, asyncio.IncompleteReadError):
            return False
        else:
            return True
        finally:
            writer.transport.abort()

    async def more(self, blocks: int) -> None:
        """Wait until that many have made the way from now on."""
        wanted = self.blocks + blocks
        while self.blocks < wanted:
            await asyncio.sleep(0.01)


async def update(mesh: MeshHarness, *workers: RunningWorker) -> None:
    """Update the manifest; returns when its listeners are in force everywhere."""
    client, marble = (int(addr.rpartition(":")[2]) for addr in (mesh.client_addr, mesh.mesh_addr))
    platform = SimulatedPlatform.open(mesh.platform, datetime.now(UTC))
    outside = Outside(client, marble, mesh.directory, platform)
    answer = await outside.update(json.dumps(manifest(mesh, updated=True)).encode(), "admin")
    assert answer.status == 200, answer.body
    for worker in workers:
        await worker.admin_says(
            "/config_dump", lambda text: ADDED in text and REMOVED not in str(json.loads(text)["relay"])
        )


async def new_connection(path: Path) -> str:
    """Which socket of the app a connection that is made now reaches; "" if none."""
    talk = Talk(path)
    try:
        async with asyncio.timeout(PATIENCE):
            running = asyncio.ensure_future(talk.run())
            while not talk.blocks and not running.done():
                await asyncio.sleep(0.01)
            talk.stop.set()
            await running
    except FileNotFoundError:
        return ""
    return talk.reached


async def test_each_listener_drains_its_own_connections_and_all_others_live_on() -> None:
    with TemporaryDirectory(prefix="mm-") as directory:
        async with MeshHarness(Path(directory)) as mesh:
            await mesh.start_coordinator()
            await mesh.set_manifest(manifest(mesh, updated=False))
            names = ("before", "after", KEPT, FORBIDDEN, MOVED, REMOVED, ADDED)
            flags = ("--app-timeout", "0", "--drain", "1")
            db = await mesh.start_worker("db", sys.executable, "-c", APP, *names, flags=flags)
            web = await mesh.start_worker("web", "sleep", "600", flags=flags)
            await db.logged("app listening")
            await web.ready()
            await changes(mesh, web, db)


async def changes(mesh: MeshHarness, web: RunningWorker, db: RunningWorker) -> None:
    def at(port: str) -> Path:
        return web.run_dir / f"db-{port}.sock"

    paths = (at(KEPT), at(REPLUGGED), at(FORBIDDEN), web.run_dir / "here.sock", at(REMOVED))
    talks = [Talk(path, seed) for seed, path in enumerate(paths * 3)]
    kept = [talk for talk in talks if talk.path in paths[:2]]
    ending = [talk for talk in talks if talk not in kept]
    async with asyncio.timeout(4 * PATIENCE), asyncio.TaskGroup() as group:
        tasks = [group.create_task(talk.run()) for talk in talks]
        await asyncio.gather(*(talk.more(5) for talk in talks))
        assert {talk.reached for talk in talks} == {KEPT, "before", FORBIDDEN, MOVED, REMOVED}

        await update(mesh, web, db)
        ended = [task for talk, task in zip(talks, tasks, strict=True) if talk in ending]
        await asyncio.wait(ended)
        await asyncio.gather(*(talk.more(20) for talk in kept))
        for talk in kept:
            talk.stop.set()
    lived_on = [talk for talk, task in zip(talks, tasks, strict=True) if task.result()]
    assert lived_on == kept

    reached = [await new_connection(path) for path in (at(KEPT), at(REPLUGGED), at(ADDED), web.run_dir / "there.sock")]
    assert reached == [KEPT, "after", ADDED, MOVED]
    assert [await new_connection(path) for path in (at(FORBIDDEN), at(REMOVED), web.run_dir / "here.sock")] == [""] * 3
    metrics = (await db.admin("/metrics"))[1]
    assert f'connections_ended_total{{listener="inbound|{FORBIDDEN}",reason="peer_not_allowed"}} 3.0' in metrics
