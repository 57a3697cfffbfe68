# SPDX-License-Identifier: Apache-2.0
"""The worker as people run it: real processes, a real Coordinator, tiny apps on UNIX sockets, in simulation."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from sds.attestation.simulated import SIMULATED_SIGNER, SimulatedEnclave
from tests.kit.mesh import ECHO, Json, MeshHarness, RunningWorker, ask, free_port

pytestmark = pytest.mark.e2e

SLEEP = ("sleep", "60")


@pytest.fixture
async def mesh() -> AsyncIterator[MeshHarness]:
    # Not tmp_path: its name is as long as the test's, and a socket's path is at most 107 bytes.
    with TemporaryDirectory(prefix="mm-") as directory:
        async with MeshHarness(Path(directory)) as harness:
            yield harness


def pair(mesh: MeshHarness, port: int, **web: Json) -> Json:
    """`web` may talk to `db`; `other` may not."""
    outgoing = {"Outgoing": [{"Addr": "db", "Port": str(port)}]}
    incoming = {"Incoming": [{"Port": str(port), "Peers": ["web"]}]}
    return mesh.manifest({"web": web, "db": {}, "other": {}}, {"web": outgoing, "db": incoming, "other": outgoing})


async def both(mesh: MeshHarness, port: int, *flags: str) -> tuple[RunningWorker, RunningWorker]:
    web = await mesh.start_worker("web", *SLEEP, flags=flags)
    db = await mesh.start_worker("db", *ECHO, "db", f"{port}.sock", "9", flags=flags)
    await db.logged("app listening")
    await web.ready()
    return web, db


def era_config(path: Path, **changes: object) -> str:
    path.write_text(json.dumps({"SignerID": SIMULATED_SIGNER.hex(), "ProductID": 3, "SecurityVersion": 3} | changes))
    return str(path)


async def test_traffic_flows_between_attested_workers_and_only_as_the_manifest_says(mesh: MeshHarness) -> None:
    port = free_port()
    await mesh.start_coordinator()
    await mesh.set_manifest(pair(mesh, port))
    web, db = await both(mesh, port)
    other = await mesh.start_worker("other", *SLEEP)
    await other.ready()

    await ask(web.run_dir / f"db-{port}.sock", b"hello", b"db:hello")
    await ask(other.run_dir / f"db-{port}.sock", b"hello", b"")
    assert (await web.admin("/readyz"))[0] == 200
    metrics = (await db.admin("/metrics"))[1]
    assert f'connections_refused_total{{listener="inbound|{port}",reason="peer_not_allowed"}}' in metrics
    dump = (await db.admin("/config_dump"))[1]
    assert f"unix:{db.run_dir}/{port}.sock" in dump
    assert "PRIVATE KEY" not in dump

    db.send(signal.SIGTERM)
    assert await db.wait() == 9  # the app's own status


async def test_files_environment_and_arguments_come_from_the_manifest(mesh: MeshHarness) -> None:
    code = (
        "import os, sys; print(open('conf/a.txt').read(), os.environ['GREETING'], sys.argv[1:],"
        " os.environ.get('EDG_MARBLE_SIMULATION'), os.environ['MARBLEMESH_SDS_SOCKET'].endswith('/sds.sock'),"
        " 'MARBLE_PREDEFINED_PRIVATE_KEY' in os.environ, file=sys.stderr); sys.exit(3)"
    )
    parameters = {
        "Files": {"conf/a.txt": "from the manifest"},
        "Env": {"GREETING": "hi"},
        "Argv": [sys.executable, "-c", code, "x y"],
    }
    await mesh.start_coordinator()
    await mesh.set_manifest(mesh.manifest({"job": {"Parameters": parameters}}, {}))
    job = await mesh.start_worker("job")
    assert await job.wait() == 3
    await job.logged("from the manifest hi ['x y'] None True True")
    assert (mesh.directory / "job/conf/a.txt").stat().st_mode & 0o777 == 0o600

    contradiction = await mesh.start_worker("job", "sleep", "1")
    assert await contradiction.wait() == 127
    reason = (await contradiction.logged("cannot go on"))["reason"]
    assert "the command line starts 'sleep' but the manifest's Argv starts" in reason


async def test_a_worker_waits_for_its_coordinator_and_for_the_manifest(mesh: MeshHarness) -> None:
    mesh.mesh_addr, mesh.client_addr = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    mesh.xds_addr = f"127.0.0.1:{free_port()}"
    early = await mesh.start_worker("web", "true")
    assert "no Coordinator at" in (await early.logged("waiting for the coordinator"))["reason"]
    assert (await early.admin("/readyz"))[0] == 503
    assert (await early.admin("/livez"))[0] == 200

    await mesh.start_coordinator()
    unset = await mesh.start_worker("web", "true", name="w2")
    assert "FAILED_PRECONDITION" in (await unset.logged("waiting for the coordinator"))["reason"]
    told = await mesh.start_worker("web", "true", name="w3")
    await told.logged("waiting for the coordinator")
    told.send(signal.SIGTERM)
    assert await told.wait() == 128 + signal.SIGTERM

    await mesh.set_manifest(pair(mesh, free_port()))
    assert [await early.wait(), await unset.wait()] == [0, 0]


@pytest.mark.parametrize(
    ("marble_type", "enclave", "reason"),
    [
        ("nobody", None, "PERMISSION_DENIED: marble verification failed: unknown marble type requested"),
        ("web", json.dumps({"UniqueID": "ab" * 32}), "PERMISSION_DENIED: marble verification failed: invalid quote"),
    ],
)
async def test_a_denied_marble_ends_with_the_reason(
    mesh: MeshHarness, marble_type: str, enclave: str | None, reason: str
) -> None:
    await mesh.start_coordinator()
    await mesh.set_manifest(pair(mesh, free_port()))
    env = {} if enclave is None else {"EDG_SIMULATED_ENCLAVE": enclave}
    denied = await mesh.start_worker(marble_type, *SLEEP, env=env)
    assert await denied.wait() == 1
    assert reason in (await denied.logged("cannot go on"))["reason"]
    assert not any("app started" in str(line["event"]) for line in denied.lines)


async def test_a_lost_coordinator_stops_no_traffic_and_is_not_followed_without_a_pin(mesh: MeshHarness) -> None:
    port = free_port()
    await mesh.start_coordinator()
    await mesh.set_manifest(pair(mesh, port))
    web, db = await both(mesh, port)
    served, wanted = 0, sys.maxsize
    stop, enough = asyncio.Event(), asyncio.Event()

    async def traffic() -> None:
        nonlocal served
        served = 0
        reader, writer = await asyncio.open_unix_connection(str(web.run_dir / f"db-{port}.sock"))
        while not stop.is_set():
            writer.write(b"x")
            assert await reader.readexactly(4) == b"db:x"
            await ask(web.run_dir / f"db-{port}.sock", b"new", b"db:new")
            served += 1
            if served >= wanted:
                enough.set()
        writer.close()
        await writer.wait_closed()

    async with asyncio.TaskGroup() as group:
        group.create_task(traffic())
        await mesh.kill_coordinator()
        await web.logged("control plane lost")
        mesh.lose_state()
        await mesh.start_coordinator()
        await mesh.set_manifest(pair(mesh, port))
        await db.logged("control plane lost", reason="TLS: unable to get local issuer certificate")
        wanted = served + 20
        await enough.wait()
        stop.set()
    assert (await web.admin("/readyz"))[0] == 200
    assert "marblemesh_worker_control_plane_connected 0.0" in (await web.admin("/metrics"))[1]
    assert "marblemesh_worker_reactivations_total 0.0" in (await web.admin("/metrics"))[1]


async def test_with_a_pin_workers_go_over_to_a_coordinator_that_has_lost_its_state(mesh: MeshHarness) -> None:
    port = free_port()
    era = era_config(mesh.directory / "era.json")
    await mesh.start_coordinator()
    raw = await mesh.set_manifest(pair(mesh, port))
    pins = ("--era-config", era, "--manifest-fingerprint", hashlib.sha256(raw).hexdigest())
    web, db = await both(mesh, port, *pins)
    assert not any("not attested" in str(line["event"]) for line in web.lines)

    await mesh.kill_coordinator()
    await web.logged("control plane lost")
    mesh.lose_state()
    await mesh.start_coordinator()
    await mesh.set_manifest(pair(mesh, port))
    for worker in (web, db):
        await worker.logged("activated again with an attested coordinator")
        await worker.admin_says("/metrics", lambda text: "marblemesh_worker_control_plane_connected 1.0" in text)
    await ask(web.run_dir / f"db-{port}.sock", b"hello", b"db:hello")


@pytest.mark.parametrize(
    ("era", "fingerprint", "reason"),
    [
        ({"SignerID": "ab" * 32}, None, "does not match the era config"),
        ({}, "ab" * 32, "it runs another manifest than the one pinned"),
    ],
)
async def test_a_coordinator_that_does_not_match_the_pin_gets_no_quote(
    mesh: MeshHarness, era: Json, fingerprint: str | None, reason: str
) -> None:
    await mesh.start_coordinator()
    await mesh.set_manifest(pair(mesh, free_port()))
    pins = ["--era-config", era_config(mesh.directory / "era.json", **era)]
    pins += ["--manifest-fingerprint", fingerprint] if fingerprint else []
    worker = await mesh.start_worker("web", *SLEEP, flags=tuple(pins))
    assert await worker.wait() == 1
    assert reason in (await worker.logged("cannot go on"))["reason"]
    assert mesh.coordinator is not None
    assert not any("activated new Marble" in str(line["event"]) for line in mesh.coordinator.lines)


async def test_a_run_directory_has_one_worker(mesh: MeshHarness) -> None:
    await mesh.start_coordinator()
    await mesh.set_manifest(pair(mesh, free_port()))
    first = await mesh.start_worker("web", *SLEEP)
    await first.ready()
    second = await mesh.start_worker("web", *SLEEP)
    assert await second.wait() == 1
    assert f"another worker (process {first.pid}) uses run directory" in (await second.logged("cannot go on"))["reason"]
    first.send(signal.SIGTERM)
    assert await first.wait() == 128 + signal.SIGTERM
    third = await mesh.start_worker("web", "true")
    assert await third.wait() == 0


async def test_an_app_that_will_not_end_is_killed_after_the_drain(mesh: MeshHarness) -> None:
    await mesh.start_coordinator()
    await mesh.set_manifest(pair(mesh, free_port()))
    stubborn = ("sh", "-c", "trap 'echo told >&2' TERM; echo armed >&2; while :; do sleep 0.1; done")
    worker = await mesh.start_worker("other", *stubborn, flags=("--app-grace", "0.2"))
    await worker.ready()
    await worker.logged("armed")
    worker.send(signal.SIGTERM)
    assert await worker.wait() == 128 + signal.SIGKILL
    await worker.logged("told")


async def test_without_relay_only_identities_are_kept_fresh(mesh: MeshHarness) -> None:
    port = free_port()
    await mesh.start_coordinator()
    await mesh.set_manifest(pair(mesh, port))
    web = await mesh.start_worker("web", *SLEEP, flags=("--relay", "off"))
    await web.ready()
    await web.logged("new identity")
    assert sorted(p.name for p in web.run_dir.iterdir() if p.is_socket()) == ["sds.sock", "workload.sock"]
    assert "worker_connections_accepted" not in (await web.admin("/metrics"))[1]


async def test_without_a_tee_and_without_simulation_nothing_starts(mesh: MeshHarness) -> None:
    worker = await mesh.start_worker(
        "web",
        *SLEEP,
        env={
            "EDG_MARBLE_SIMULATION": "",
            "EDG_SIMULATED_PLATFORM_DIR": "",
            "EDG_MARBLE_XDS_ADDR": "",
            "EDG_COORDINATOR_CLIENT_ADDR": "",
            "EDG_MARBLE_COORDINATOR_ADDR": "",
        },
    )
    assert await worker.wait() == 1
    assert "start with --simulation" in (await worker.logged("cannot go on"))["reason"]


async def test_wrong_settings_are_one_line_and_status_2(mesh: MeshHarness) -> None:
    worker = await mesh.start_worker("web", *SLEEP, env={"EDG_MARBLE_RELAY": "perhaps"})
    assert await worker.wait() == 2
    line, _ = worker.lines
    assert "EDG_MARBLE_RELAY (--relay): 'perhaps' is neither on nor off" in line["event"]


def test_the_default_enclave_of_a_type_is_what_the_harness_allows(tmp_path: Path) -> None:
    allowed = MeshHarness(tmp_path).manifest({"web": {}}, {})["Packages"]["web"]
    assert allowed["UniqueID"] == SimulatedEnclave.default("web").unique_id.hex()
