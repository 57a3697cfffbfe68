# SPDX-License-Identifier: Apache-2.0
"""How a Marble starts, ends, starts again and lives through its Coordinator's absence, with real processes."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from sds.attestation.simulated import SimulatedPlatform
from tests.kit.mesh import ECHO, PATIENCE, Json, MeshHarness, RunningWorker, ask, free_port
from tests.kit.outside import Outside
from tests.kit.users import user

pytestmark = pytest.mark.e2e

SLEEP = ("sleep", "60")
# Serves as the echo app does; when it is told to end, it says goodbye to `web` and ends with 9.
POLITE = """
import asyncio, os, signal, sys
async def main(port, peer):
    run = os.environ["MARBLEMESH_RUN_DIR"]
    async def serve(reader, writer):
        while chunk := await reader.read(65536):
            writer.write(b"db:" + chunk)
        writer.close()
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    await asyncio.start_unix_server(serve, f"{run}/{port}.sock")
    print("app listening", file=sys.stderr, flush=True)
    await told.wait()
    reader, writer = await asyncio.open_unix_connection(f"{run}/web-{peer}.sock")
    writer.write(b"goodbye")
    print("told, and heard", (await reader.readexactly(11)).decode(), file=sys.stderr, flush=True)
    sys.exit(9)
asyncio.run(main(*sys.argv[1:]))
"""
# Fails at its first start; at its second one it listens once it is let.
SLOW = """
import os, pathlib, sys, time
run = pathlib.Path(os.environ["MARBLEMESH_RUN_DIR"]).parent
if not (run / "failed").exists():
    (run / "failed").touch()
    sys.exit(3)
while not (run / "go").exists():
    time.sleep(0.01)
os.execv(sys.executable, [sys.executable, "-I", *sys.argv[1:]])
"""


@pytest.fixture
async def mesh() -> AsyncIterator[MeshHarness]:
    with TemporaryDirectory(prefix="mm-") as directory:  # a socket's path is at most 107 bytes
        async with MeshHarness(Path(directory)) as harness:
            yield harness


def town(mesh: MeshHarness, web: int, db: int, *types: str, **settings: object) -> Json:
    """`web` and `db` may call each other."""
    tls = {
        "web": {"Incoming": [{"Port": str(web)}], "Outgoing": [{"Addr": "db", "Port": str(db)}]},
        "db": {"Incoming": [{"Port": str(db)}], "Outgoing": [{"Addr": "web", "Port": str(web)}]},
    }
    users = {"admin": {"Certificate": user("admin").certificate.decode(), "Roles": ["updater"]}}
    roles = {"updater": {"ResourceType": "Manifest", "Actions": ["UpdateManifest"]}}
    names = types or ("web", "db")
    used = {name: tls[name] for name in names}
    return mesh.manifest({name: {} for name in names}, used, Users=users, Roles=roles, Mesh=settings)


async def update(mesh: MeshHarness, manifest: Json) -> None:
    client, marble = (int(addr.rpartition(":")[2]) for addr in (mesh.client_addr, mesh.mesh_addr))
    platform = SimulatedPlatform.open(mesh.platform, datetime.now(UTC))
    answer = await Outside(client, marble, mesh.directory, platform).update(json.dumps(manifest).encode(), "admin")
    assert answer.status == 200, answer.body


async def echo(mesh: MeshHarness, name: str, port: int, *flags: str) -> RunningWorker:
    worker = await mesh.start_worker(name, *ECHO, name, f"{port}.sock", flags=flags)
    await worker.logged("app listening")
    return worker


async def refused(path: Path) -> bool:
    """Whether the app behind an outbound socket gets no connection to its peer."""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"x")
        try:
            return await reader.read(1) == b""
        except ConnectionError:
            return True
        finally:
            writer.close()


async def test_peers_drain_then_the_app_is_told_and_still_reaches_others_while_it_ends(mesh: MeshHarness) -> None:
    web_port, db_port = free_port(), free_port()
    await mesh.start_coordinator()
    await mesh.set_manifest(town(mesh, web_port, db_port))
    web = await echo(mesh, "web", web_port)
    db = await mesh.start_worker(
        "db", sys.executable, "-c", POLITE, str(db_port), str(web_port), flags=("--drain", "3600")
    )
    await db.logged("app listening")
    to_db = web.run_dir / f"db-{db_port}.sock"
    reader, writer = await asyncio.open_unix_connection(str(to_db))
    writer.write(b"one")
    assert await reader.readexactly(6) == b"db:one"

    db.send(signal.SIGTERM)
    await db.logged("ending")
    assert await db.admin("/readyz") == (503, "ending\n")
    assert await refused(to_db)
    writer.write(b"two")
    assert await reader.readexactly(6) == b"db:two"
    assert not any("told" in str(line["event"]) for line in db.lines)
    writer.close()

    await db.logged("told, and heard web:goodbye")
    assert await db.wait() == 9


async def test_a_failing_app_is_started_again_and_readiness_waits_until_it_listens(mesh: MeshHarness) -> None:
    web_port, db_port = free_port(), free_port()
    await mesh.start_coordinator()
    await mesh.set_manifest(town(mesh, web_port, db_port))
    app = (sys.executable, "-I", "-c", SLOW, ECHO[-1], "db", f"{db_port}.sock")
    db = await mesh.start_worker("db", *app, flags=("--restart", "on-failure"))
    await db.logged("app ended", status=3)
    await db.logged("app is started again", status=3)
    await db.logged("app started", starts=2)
    waiting = f"the app does not listen yet: unix:{db.run_dir}/{db_port}.sock\n"
    assert await db.admin("/readyz") == (503, waiting)
    (mesh.directory / "db" / "go").touch()
    await db.admin_says("/readyz", lambda text: text == "ok\n")
    db.send(signal.SIGTERM)
    assert await db.wait() == 0
    assert not (mesh.directory / "db" / "uuid.offline").exists()  # the manifest allows nothing of that kind


async def test_workers_start_from_what_they_have_sealed_and_obey_the_coordinator_when_it_is_back(
    mesh: MeshHarness,
) -> None:
    web_port, db_port = free_port(), free_port()
    await mesh.start_coordinator()
    await mesh.set_manifest(town(mesh, web_port, db_port, OfflineStart="1h"))
    flags = ("--offline-after", "0.1")
    workers = [await echo(mesh, "web", web_port, *flags), await echo(mesh, "db", db_port, *flags)]
    for worker in workers:
        await worker.logged("kept sealed for a start without the coordinator", allowed_seconds=3600)
    await workers[0].admin_says("/config_dump", lambda text: f'"127.0.0.1:{db_port}"' in text)
    await asyncio.sleep(1.5)  # what came last is kept, too
    for worker in workers:
        await worker.kill()
    await update(mesh, town(mesh, web_port, db_port, "web"))  # while they are away: there is no db any more
    await mesh.kill_coordinator()
    sealed = mesh.directory / "db" / "uuid.offline"
    assert b"PRIVATE KEY" not in sealed.read_bytes()

    web, db = await echo(mesh, "web", web_port, *flags), await echo(mesh, "db", db_port, *flags)
    await db.logged("starting without the coordinator")
    await db.admin_says("/readyz", lambda text: text == "ok\n")
    await ask(web.run_dir / f"db-{db_port}.sock", b"hello", b"db:hello")

    await mesh.start_coordinator()
    assert await db.wait() == 1
    assert (await db.logged("cannot go on"))["reason"].startswith("revoked: ")
    assert not sealed.exists()
    await web.admin_says("/metrics", lambda text: "marblemesh_worker_control_plane_connected 1.0" in text)
    assert '"started_offline": "20' in (await web.admin("/config_dump"))[1]


async def test_a_spoiled_file_starts_nothing(mesh: MeshHarness) -> None:
    mesh.mesh_addr = mesh.client_addr = mesh.xds_addr = f"127.0.0.1:{free_port()}"
    (mesh.directory / "db").mkdir()
    (mesh.directory / "db" / "uuid.offline").write_bytes(b"\x20\0\0\0" + b"{}" * 400)
    db = await mesh.start_worker("db", *SLEEP, flags=("--offline-after", "0.1"))
    assert "no sealed configuration" in (await db.logged("the sealed configuration is not used"))["reason"]
    await db.logged("waiting for the coordinator")
    assert (await db.admin("/readyz"))[0] == 503


async def test_several_relay_processes_are_one_marble_and_a_second_signal_waits_for_none_of_them(
    mesh: MeshHarness,
) -> None:
    web_port, db_port = free_port(), free_port()
    await mesh.start_coordinator()
    await mesh.set_manifest(town(mesh, web_port, db_port))
    web = await mesh.start_worker("web", *SLEEP, flags=("--concurrency", "2"))
    db = await echo(mesh, "db", db_port, "--concurrency", "2", "--drain", "3600")
    await web.ready()
    joined = await db.logged("relay process joined")
    open_ones = [await asyncio.open_unix_connection(str(web.run_dir / f"db-{db_port}.sock")) for _ in range(30)]
    for reader, writer in open_ones:
        writer.write(b"x")
        assert await reader.readexactly(4) == b"db:x"
    accepted = f'marblemesh_worker_connections_accepted_total{{listener="inbound|{db_port}"}} 30.0'
    await db.admin_says("/metrics", lambda text: accepted in text)
    os.kill(joined["pid"], 0)

    db.send(signal.SIGTERM)
    await db.logged("ending")
    db.send(signal.SIGINT)
    await db.logged("told again: connections are cut off")
    for reader, writer in open_ones:
        assert await reader.read() == b""
        writer.close()
    assert await db.wait() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(joined["pid"], 0)


async def test_a_worker_takes_all_descriptors_that_it_may_have_and_leaves_its_app_what_was_set(
    mesh: MeshHarness,
) -> None:
    await mesh.start_coordinator()
    await mesh.set_manifest(mesh.manifest({"web": {}}, {}))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
    try:
        worker = await mesh.start_worker("web", "sh", "-c", "echo app has $(ulimit -Sn) >&2; exec sleep 60")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await worker.logged("app has 300")
    assert resource.prlimit(worker.pid, resource.RLIMIT_NOFILE) == (hard, hard)
