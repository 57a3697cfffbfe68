# SPDX-License-Identifier: Apache-2.0
"""The Workload API of real workers, used by clients that are not ours: py-spiffe and its mTLS, spiffe-tls."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.kit.mesh import ECHO, MeshHarness, RunningWorker, free_port

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]
SPIFFE = (sys.executable, str(Path(__file__).parents[1] / "kit" / "spiffe_app.py"))
STRANGER = "23456"


@pytest.fixture
async def mesh() -> AsyncIterator[MeshHarness]:
    with TemporaryDirectory(prefix="mm-") as directory:  # short: sockets lie in it
        async with MeshHarness(Path(directory)) as harness:
            await harness.start_coordinator()
            yield harness


async def spiffe_id(worker: RunningWorker) -> str:
    return str(json.loads((await worker.admin("/certs"))[1])["identity"][0]["uris"][0])


async def metric(worker: RunningWorker, name: str, **labels: str) -> float:
    text = (await worker.admin("/metrics"))[1]
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return sum(s.value for s in samples if s.name == f"marblemesh_worker_local_{name}" and s.labels == labels)


async def test_an_app_that_only_knows_py_spiffe_gets_its_identity_and_follows_it(mesh: MeshHarness) -> None:
    await mesh.set_manifest(mesh.manifest({"web": {}}, {}))
    web = await mesh.start_worker("web", *SPIFFE, "watch")
    first = await web.logged("svid")
    assert first["id"] == await spiffe_id(web)
    domain = first["id"].split("/")[2]
    assert (await web.logged("bundles"))["trust_domains"] == [domain]
    assert (first["chain"], first["authorities"]) == (2, 1)
    assert "signs no JWT-SVIDs" in (await web.logged("jwt"))["error"]
    seen = {first["serial"]}
    for _ in range(3):
        after = len(web.lines)
        assert mesh.coordinator is not None
        mesh.coordinator.send(signal.SIGHUP)
        renewed = await web.logged("svid", after)
        assert renewed["id"] == first["id"]
        assert renewed["serial"] not in seen
        seen.add(renewed["serial"])
    assert not [line for line in web.lines if line["event"] == "lost"]
    assert await metric(web, "calls_active", socket="workload", method="FetchX509SVID") == 1
    assert await metric(web, "messages_sent_total", socket="workload", method="FetchX509SVID") == len(seen)


async def test_an_app_on_spiffe_tls_and_a_marble_behind_a_worker_accept_each_other_both_ways(mesh: MeshHarness) -> None:
    """py-spiffe dials a Marble's port; then a Marble's worker dials a port on which py-spiffe listens."""
    inbound, outbound = str(free_port()), str(free_port())
    tls = {
        "marble": {
            "Incoming": [{"Port": inbound, "Peers": ["app"]}],
            "Outgoing": [{"Addr": "localhost", "Port": outbound, "Peer": "listener"}],
        }
    }
    await mesh.set_manifest(mesh.manifest({"marble": {}, "app": {}, "listener": {}, "stranger": {}}, tls))
    marble = await mesh.start_worker("marble", *ECHO, "marble", f"{inbound}.sock")
    await marble.logged("app listening")
    there = await spiffe_id(marble)

    app = await mesh.start_worker("app", *SPIFFE, "dial", f"127.0.0.1:{inbound}", there)
    assert (await app.logged("answer"))["text"] == "marble:hello"
    assert await app.wait() == 0

    stranger = await mesh.start_worker("stranger", *SPIFFE, "dial", f"127.0.0.1:{inbound}", there)
    assert await stranger.wait() != 0
    assert not [line for line in stranger.lines if line["event"] == "answer"]

    listener = await mesh.start_worker("listener", *SPIFFE, "listen", outbound)
    await listener.logged("spiffe-tls accepts")
    reader, writer = await asyncio.open_unix_connection(str(marble.run_dir / f"localhost-{outbound}.sock"))
    async with asyncio.timeout(20):
        assert (await reader.readexactly(len(there))).decode() == there
    writer.close()
    await writer.wait_closed()


async def test_a_second_worker_cannot_take_the_socket_of_a_living_one(mesh: MeshHarness) -> None:
    await mesh.set_manifest(mesh.manifest({"web": {}, "thief": {}}, {}))
    web = await mesh.start_worker("web", *SPIFFE, "watch")
    await web.logged("svid")
    path = web.run_dir / "workload.sock"
    before = path.stat().st_ino
    thief = await mesh.start_worker("thief", *SPIFFE, "watch", flags=("--workload-socket", str(path)))
    assert "served by another process" in (await thief.logged("cannot go on"))["reason"]
    assert await thief.wait() == 1
    assert path.stat().st_ino == before
    await web.kill()
    again = await mesh.start_worker("thief", *SPIFFE, "watch", flags=("--workload-socket", str(path)))
    assert "thief" in (await again.logged("svid"))["id"]


async def test_another_user_gets_nothing_unless_it_is_allowed(mesh: MeshHarness) -> None:
    if os.geteuid() != 0:
        if os.environ.get("CI") == "true":  # noqa: TID251 - a test's own environment
            pytest.fail("only root can become another user, and this is not root")
        pytest.skip("only root can become another user")
    mesh.directory.chmod(0o711)
    await mesh.set_manifest(mesh.manifest({"web": {}}, {}))
    path = mesh.directory / "w.sock"
    place = ("--workload-socket", str(path), "--socket-mode", "0666")
    web = await mesh.start_worker("web", *SPIFFE, "watch", STRANGER, flags=place)
    refused = await web.logged("local client refused")
    assert (refused["socket"], refused["reason"]) == ("workload", "not_allowed")
    assert f"uid {STRANGER}, gid {STRANGER}" in refused["client"]
    assert not [line for line in web.lines if line["event"] in ("svid", "bundles")]
    assert await metric(web, "connections_refused_total", socket="workload", reason="not_allowed") >= 1
    assert await metric(web, "connections_accepted_total", socket="workload") == 0
    await web.kill()

    allowed = await mesh.start_worker(
        "web", *SPIFFE, "watch", STRANGER, flags=(*place, "--socket-allow-uids", STRANGER)
    )
    assert "web" in (await allowed.logged("svid"))["id"]
