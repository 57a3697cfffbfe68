# SPDX-License-Identifier: Apache-2.0
"""Workers beside Linkerd: real workers and a real Coordinator in pods whose traffic its rules hand to its proxies.

`web` is in pod a, `db` and the Coordinator in pod b. Nothing of ours knows of Linkerd.
"""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import pytest_asyncio

from manifests.parse import parse
from marblemesh.inject.linkerd_ports import (
    COORDINATOR_PORTS,
    SKIP_INBOUND_PORTS,
    SKIP_OUTBOUND_PORTS,
    LinkerdMode,
    mesh_ports,
    pod_annotations,
)
from tests.kit.linkerd_control import Workload
from tests.kit.linkerd_mesh import PORT, PodMesh, captured, pod_mesh, two_marbles
from tests.kit.linkerd_metrics import total
from tests.kit.linkerd_peers import connected, echo, unverified
from tests.kit.linkerd_pod import Pod, meshed
from tests.kit.linkerd_rules import INBOUND, Rules
from tests.kit.mesh import PATIENCE, ask
from tests.kit.netns import namespaces_needed

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]
A, B = "10.77.0.1", "10.77.0.2"
PLAIN = 9000
MARKER, LEFT_BARE = b"marker-in-the-app-data-of-a-marble", b"marker-in-the-app-data-of-a-plain-app"
TIMES = {"INBOUND_DETECT_TIMEOUT": "1s", "OUTBOUND_DETECT_TIMEOUT": "300ms", "IDENTITY_MIN_REFRESH": "1s"}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def mesh() -> AsyncIterator[PodMesh]:
    """With the mesh's ports opaque, and Linkerd's certificates renewed every few seconds."""
    namespaces_needed("iptables-nft-restore")
    pods = Workload("a", A), Workload("b", B, opaque={PORT, *COORDINATOR_PORTS})
    with TemporaryDirectory(prefix="mm-") as directory:  # short: sockets lie in it
        async with meshed(*pods, lifetime=5, environment=TIMES) as town, pod_mesh(Path(directory), town) as made:
            yield made


async def asked(mesh: PodMesh, payload: bytes) -> None:
    await ask(mesh.socket, payload, b"db:" + payload)


async def unanswered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Whether a connection of the app ends, by error or not, before it brings a byte."""
    async with asyncio.timeout(PATIENCE):
        with suppress(ConnectionError):
            writer.write(b"anybody there?")
            if await reader.read(1):
                return False
        with suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()
    return True


async def test_attested_mtls_goes_through_both_proxies_and_no_interface_sees_plaintext(mesh: PodMesh) -> None:
    town = mesh.town
    with captured(town, MARKER, LEFT_BARE) as captures:
        await asked(mesh, MARKER)
        async with echo(town.b, PLAIN), connected(town.a.namespace, B, PLAIN) as client:
            assert await client.ask(LEFT_BARE) == LEFT_BARE  # what an app without a worker leaves to see
    seen = {name: capture.found[MARKER] for name, capture in captures.items()}
    assert seen == {"a": set(), "b": set(), "a lo": set(), "b lo": set()}
    bare = {name for name, capture in captures.items() if capture.found[LEFT_BARE]}
    assert bare == {"a lo", "b lo"}  # Linkerd's TLS covers the way between the pods, and only that
    assert all(capture.dropped == 0 for capture in captures.values())
    assert captures["a"].ciphertext[INBOUND] > 0
    assert captures["a"].ciphertext[PORT] == 0  # between the pods there is only Linkerd's port
    assert captures["b lo"].ciphertext[PORT] > 0


async def test_the_peers_certificate_is_the_meshs_and_not_linkerds(mesh: PodMesh) -> None:
    """Whoever connects to the port is shown what the worker shows, however many proxies lie between."""
    async with connected(mesh.town.a.namespace, B, PORT, unverified(), "db") as stranger:
        shown = stranger.certificate
        with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
            await stranger.ask(b"hello")
    assert "MarbleRun" in shown.issuer.rfc4514_string()
    metrics = await mesh.worker_metrics(mesh.db)
    assert f'peer_connections_total{{listener="inbound|{PORT}",peer="web"}}' in metrics


async def test_the_worker_knows_the_peer_by_name_and_sees_its_own_pods_address(mesh: PodMesh) -> None:
    await asked(mesh, b"hello")
    log = mesh.access_log("db")
    seen: set[str] = set()
    async with asyncio.timeout(PATIENCE):
        while not seen:
            await asyncio.sleep(0.05)
            ended = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
            seen = {line["address"].rpartition(":")[0] for line in ended if "/web/" in (line["peer"] or "")}
    assert seen == {B}


async def test_activation_and_xds_go_through_linkerd_like_any_tls(mesh: PodMesh) -> None:
    outbound, inbound = await mesh.town.a.metrics(), await mesh.town.b.metrics()
    identities = {"server_id": mesh.town.b.workload.identity, "client_id": mesh.town.a.workload.identity}
    for port in (2001, 18000):
        labels = {"target_port": str(port), "tls": "true"}
        assert total(outbound, "tcp_open_total", peer="dst", server_id=identities["server_id"], **labels) >= 1
        assert total(inbound, "tcp_open_total", peer="src", client_id=identities["client_id"], **labels) >= 1


async def test_an_idle_connection_outlives_every_detection(mesh: PodMesh) -> None:
    """On the opaque port, before its first byte and after; the 30 seconds of a real Linkerd: tests.soak.linkerd."""
    reader, writer = await asyncio.open_unix_connection(str(mesh.socket))
    for payload in (b"first", b"second"):
        await asyncio.sleep(1.5)
        writer.write(payload)
        async with asyncio.timeout(PATIENCE):
            assert await reader.readexactly(len(payload) + 3) == b"db:" + payload
    writer.close()
    await writer.wait_closed()


async def test_a_long_connection_lives_through_new_certificates_of_the_mesh_and_of_linkerd(mesh: PodMesh) -> None:
    reader, writer = await asyncio.open_unix_connection(str(mesh.socket))

    async def request(payload: bytes) -> None:
        writer.write(payload)
        async with asyncio.timeout(PATIENCE):
            assert await reader.readexactly(len(payload) + 3) == b"db:" + payload

    await request(b"before")
    signed = len(mesh.town.control.certified)
    assert mesh.coordinator is not None
    lines = {worker.name: len(worker.lines) for worker in (mesh.web, mesh.db)}
    mesh.coordinator.send(signal.SIGHUP)  # renew every identity now
    for worker in (mesh.web, mesh.db):
        await worker.logged("new identity", after=lines[worker.name])
    async with asyncio.timeout(PATIENCE):
        while len(mesh.town.control.certified) < signed + 2:
            await request(b"meanwhile")
            await asyncio.sleep(0.1)
    await request(b"after")
    await asked(mesh, b"and a new one")
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("end", ["client's", "server's"])
async def test_the_mesh_recovers_when_a_proxy_is_killed_and_comes_back(mesh: PodMesh, end: str) -> None:
    pod: Pod = mesh.town.a if end == "client's" else mesh.town.b
    reader, writer = await asyncio.open_unix_connection(str(mesh.socket))
    writer.write(b"x")
    assert await reader.readexactly(4) == b"db:x"
    lines = len(mesh.web.lines)

    pod.kill_proxy()
    assert await unanswered(reader, writer)  # what was open ends; nothing hangs
    assert await unanswered(*await asyncio.open_unix_connection(str(mesh.socket)))
    await mesh.web.logged("control plane lost", after=lines)

    await pod.start_proxy()
    async with asyncio.timeout(PATIENCE):
        while True:
            with suppress(AssertionError, ConnectionError):
                await asked(mesh, b"back again")
                break
            await asyncio.sleep(0.1)  # the worker's next attempt is yet to come
        while "marblemesh_worker_control_plane_connected 1.0" not in await mesh.worker_metrics(mesh.web):
            await asyncio.sleep(0.1)


async def test_with_the_computed_annotations_linkerd_is_past_and_the_mesh_is_the_same() -> None:
    """`--mode skip`: the annotations become proxy-init's lists, and no byte of the mesh meets a proxy."""
    namespaces_needed("iptables-nft-restore")
    with TemporaryDirectory(prefix="mm-") as directory:
        pods = Workload("a", A), Workload("b", B, skipped={PORT, *COORDINATOR_PORTS})
        async with meshed(*pods, rules=_skipping(), environment=TIMES) as town:
            async with pod_mesh(Path(directory), town) as mesh:
                await asked(mesh, b"hello")
            for pod in (town.a, town.b):
                assert total(await pod.metrics(), "tcp_open_total") == 0
            assert town.control.asked == []


def _skipping() -> Rules:
    """proxy-init's lists from the annotations for web and db. A Coordinator is no Marble: its ports are its own."""
    manifest = parse(json.dumps(two_marbles()).encode())
    web, db = (pod_annotations(mesh_ports(manifest, name), LinkerdMode.SKIP) for name in ("web", "db"))
    inbound = (*db[SKIP_INBOUND_PORTS].split(","), *map(str, COORDINATOR_PORTS))
    return Rules(skip_inbound=inbound, skip_outbound=tuple(web[SKIP_OUTBOUND_PORTS].split(",")))
