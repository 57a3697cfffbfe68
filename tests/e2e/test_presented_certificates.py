# SPDX-License-Identifier: Apache-2.0
"""Ports for clients of no mesh (`Incoming.Cert`): a real Coordinator, a real worker, users at the command line, and
clients that know nothing of either: openssl, Python's own TLS."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import uuid as uuids
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import pytest_asyncio
from cryptography import x509

from sds.attestation.simulated import SimulatedEnclave, SimulatedPlatform
from tests.kit.mesh import ECHO, PATIENCE, Json, MeshHarness, RunningWorker, free_port
from tests.kit.openssl_judge import openssl, s_client
from tests.kit.outside import Outside
from tests.kit.users import user

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

NAME = "shop.example"
PORTS = ("uploaded", "shared", "mesh")


@dataclass
class Shop:
    """A worker with three ports of one app: one shows what a user uploads, one a shared secret, and one is the mesh's
    own."""

    mesh: MeshHarness
    ports: dict[str, int]
    files: Path
    worker: RunningWorker = field(init=False)
    revision: int = 0

    # ---- what its operator does

    def manifest(self) -> Json:
        def port(name: str, **members: object) -> Json:
            return {"Port": str(self.ports[name]), "Upstream": "unix:app.sock", **members}

        incoming = [
            port("uploaded", Cert="uploaded", DisableClientAuth=True),
            port("shared", Cert="shared", DisableClientAuth=True),
            port("mesh"),
        ]
        secrets = {
            "uploaded": {"Type": "cert-ecdsa", "UserDefined": True},
            "shared": {"Type": "cert-ecdsa", "Size": 256, "Shared": True, "Cert": {"DNSNames": [NAME]}},
        }
        users = {"alice": {"Certificate": user("alice").certificate.decode(), "Roles": ["secrets", "updates"]}}
        roles = {
            "secrets": {"ResourceType": "Secrets", "ResourceNames": ["uploaded"], "Actions": ["WriteSecret"]},
            "updates": {"ResourceType": "Manifest", "Actions": ["UpdateManifest"]},
        }
        marbles: dict[str, Json] = {"shop": {"Parameters": {"Env": {"REVISION": str(self.revision)}}}}
        return self.mesh.manifest(marbles, {"shop": {"Incoming": incoming}}, Secrets=secrets, Users=users, Roles=roles)

    def certificate(self, name: str) -> Path:
        """A self-signed certificate for NAME with its key, by openssl; the same for the same `name`."""
        path, key = self.files / f"{name}.pem", self.files / f"{name}.key"
        if not path.exists():
            new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(key))
            names = ("-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{NAME}")
            path.write_bytes(openssl("req", "-x509", *new, *names, "-days", "2") + key.read_bytes())
        return path

    def write(self, name: str, content: bytes) -> str:
        path = self.mesh.directory / name
        path.write_bytes(content)
        return str(path)

    async def upload(self, certificate: Path) -> None:
        """`marblemesh secret set`, as alice."""
        await self._type("secret", "set", str(certificate), self.mesh.client_addr, "--from-pem", "uploaded")

    async def update(self) -> None:
        """`marblemesh manifest update apply`, as alice: a new CA, and every shared certificate anew."""
        self.revision += 1
        file = self.write("update.json", json.dumps(self.manifest()).encode())
        await self._type("manifest", "update", "apply", file, self.mesh.client_addr)

    async def _type(self, *words: str) -> None:
        alice = user("alice")
        who = ("--cert", self.write("alice.pem", alice.certificate), "--key", self.write("alice.key", alice.key))
        trust = ("--simulation", "--simulated-platform", str(self.mesh.platform))
        command = (sys.executable, "-m", "marblemesh", *words, *who, *trust)
        process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=STDOUT)
        async with asyncio.timeout(PATIENCE):
            out, _ = await process.communicate()
        assert process.returncode == 0, out.decode()

    async def open(self) -> None:
        self.worker = await self.mesh.start_worker("shop", *ECHO, "shop", "app.sock")
        await self.worker.logged("app listening")

    def wrapping(self, entries: Json, name: str, *, server: bool) -> ssl.SSLContext:
        """One entry of a TTLS configuration as a TLS context. Host names are not compared: the runtime knows none."""
        entry = entries[f"*:{self.ports[name]}"]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(cadata=entry["cacrt"])
        context.load_cert_chain(self.write(f"{name}.pem", (entry["clicrt"] + entry["clikey"]).encode()))
        context.verify_mode = ssl.CERT_REQUIRED if entry["clientAuth"] or not server else ssl.CERT_NONE
        return context

    # ---- what a client of no mesh has

    def outside(self) -> Outside:
        client, marble = (int(addr.rpartition(":")[2]) for addr in (self.mesh.client_addr, self.mesh.mesh_addr))
        platform = SimulatedPlatform.open(self.mesh.platform, datetime.now(UTC))
        return Outside(client, marble, self.mesh.directory, platform)

    async def anchors(self) -> dict[str, bytes]:
        root, intermediate, marble_root = await self.outside().ca()
        return {"root": root, "intermediate": intermediate, "marble root": marble_root}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    """Open, with a first certificate of the user's."""
    with TemporaryDirectory(prefix="mm-") as directory:
        async with MeshHarness(Path(directory)) as mesh:
            await mesh.start_coordinator()
            made = Shop(mesh, {name: free_port() for name in PORTS}, tmp_path_factory.mktemp("certificates"))
            await mesh.set_manifest(made.manifest())
            await made.upload(made.certificate("first"))
            await made.open()
            yield made


def without_key(file: Path) -> bytes:
    return file.read_bytes().partition(b"-----BEGIN PRIVATE KEY")[0]


def strict(*anchors: bytes) -> ssl.SSLContext:
    """A client that verifies chain and host name under these anchors, and has no certificate itself."""
    context = ssl.create_default_context(cadata=b"".join(anchors).decode())
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def common_name(der: bytes) -> str:
    return str(x509.load_der_x509_certificate(der).subject.rfc4514_string())


async def test_openssl_verifies_the_secret_without_a_certificate_of_its_own_and_the_mesh_port_asks_for_one(
    place: Shop,
) -> None:
    anchors = await place.anchors()
    uploaded = without_key(place.certificate("first"))
    for port, anchor in (("uploaded", uploaded), *(("shared", anchor) for anchor in anchors.values())):
        file = place.write("anchor.pem", anchor)
        flags = ("-CAfile", file, "-partial_chain", "-x509_strict", "-verify_return_error", "-servername", NAME)
        seen = await s_client(place.ports[port], *flags, "-verify_hostname", NAME, say=b"hello\n")
        assert seen.ok, seen.text
        assert "shop:hello" in seen.text
        other = await s_client(place.ports[port], *flags, "-verify_hostname", "other.example")
        assert not other.ok

    stranger = await s_client(place.ports["mesh"], say=b"hello\n")
    assert "shop:hello" not in stranger.text
    alice = place.write("both.pem", user("alice").certificate + user("alice").key)
    unknown = await s_client(place.ports["mesh"], "-cert", alice, say=b"hello\n")
    assert "shop:hello" not in unknown.text
    metrics = (await place.worker.admin("/metrics"))[1]
    refused = f'connections_refused_total{{listener="inbound|{place.ports["mesh"]}",reason='
    assert f'{refused}"no_certificate"}} 1.0' in metrics
    assert f'{refused}"untrusted"}} 1.0' in metrics


@dataclass
class Customers:
    """Clients of one port that never fail: some stay, one comes again and again and notes whom it sees."""

    port: int
    tls: ssl.SSLContext
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    seen: list[bytes] = field(default_factory=list)
    answers: int = 0

    async def stay(self) -> None:
        reader, writer = await self._dial()
        while not self.stop.is_set():
            await self._ask(reader, writer)
        writer.close()

    async def come_and_go(self) -> None:
        while not self.stop.is_set():
            reader, writer = await self._dial()
            self.seen.append(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
            await self._ask(reader, writer)
            writer.close()

    @asynccontextmanager
    async def shopping(self) -> AsyncIterator[asyncio.TaskGroup]:
        """While the block runs; a request that fails ends it."""
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(self.stay())
            group.create_task(self.come_and_go())
            yield group
            self.stop.set()
        assert self.answers > 20

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls, server_hostname=NAME)

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"ping")
        async with asyncio.timeout(PATIENCE):
            assert await reader.readexactly(9) == b"shop:ping"
        self.answers += 1
        await asyncio.sleep(0.01)

    async def see_another(self) -> bytes:
        """Wait until a new connection is shown something else than the newest up to now."""
        async with asyncio.timeout(PATIENCE):
            while not self.seen:
                await asyncio.sleep(0.01)
            before = self.seen[-1]
            while self.seen[-1] == before:
                await asyncio.sleep(0.01)
        return self.seen[-1]


async def test_a_secret_that_a_user_sets_anew_reaches_new_connections_and_ends_none(place: Shop) -> None:
    files = [place.certificate(name) for name in ("first", "second", "third")]
    customers = Customers(place.ports["uploaded"], strict(*map(without_key, files)))
    async with customers.shopping() as group:
        for following in files[1:]:
            waiting = group.create_task(customers.see_another())
            await asyncio.sleep(0)
            await place.upload(following)
            assert common_name(await waiting) == f"CN={following.stem}"
    assert [common_name(der) for der in dict.fromkeys(customers.seen)] == ["CN=first", "CN=second", "CN=third"]
    await no_connection_was_ended(place, "uploaded")


async def test_an_update_of_the_manifest_shows_new_connections_a_certificate_of_the_new_ca_and_ends_none(
    place: Shop,
) -> None:
    before = await place.anchors()
    customers = Customers(place.ports["shared"], strict(before["root"]))
    async with customers.shopping() as group:
        waiting = group.create_task(customers.see_another())
        await place.update()
        shown = x509.load_der_x509_certificate(await waiting)
    after = await place.anchors()
    assert after["root"] == before["root"]
    assert after["intermediate"] != before["intermediate"]
    shown.verify_directly_issued_by(x509.load_pem_x509_certificate(after["intermediate"]))
    assert len(dict.fromkeys(customers.seen)) == 2
    await no_connection_was_ended(place, "shared")


async def no_connection_was_ended(place: Shop, port: str) -> None:
    """Nor refused; and no push was."""
    metrics = (await place.worker.admin("/metrics"))[1].splitlines()
    listener = f'{{listener="inbound|{place.ports[port]}",'
    bad = (f"connections_ended_total{listener}", f"connections_refused_total{listener}", "xds_nacks_total{")
    # What openssl did not like in the test before is not this one's.
    found = [line for line in metrics if any(name in line for name in bad) and 'reason="refused_by_peer"' not in line]
    assert found == []


# ---- TTLS: a runtime that wraps connections itself


async def test_a_runtime_that_wraps_connections_by_its_ttls_configuration_meets_strangers_and_marbles(
    place: Shop,
) -> None:
    """As Edgeless RT does: what stands in the configuration is all that it has."""
    async with AsyncExitStack() as stack:
        entries = await ttls(place)
        assert {key: entry["clientAuth"] for key, entry in entries.items()} == {
            f"*:{place.ports[name]}": name == "mesh" for name in PORTS
        }
        where = {}
        for name in PORTS:
            server = await asyncio.start_server(_serve, "127.0.0.1", 0, ssl=place.wrapping(entries, name, server=True))
            where[name] = (await stack.enter_async_context(server)).sockets[0].getsockname()[1]
        marble_root = (await place.anchors())["marble root"]
        uploaded = [without_key(place.certificate(name)) for name in ("first", "third")]
        assert await ask(where["uploaded"], strict(*uploaded)) == b"shop:ping"
        assert await ask(where["shared"], strict(marble_root)) == b"shop:ping"
        assert await ask(where["mesh"], place.wrapping(await ttls(place), "mesh", server=False)) == b"shop:ping"
        stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
        assert await ask(where["mesh"], stranger) == b""


async def ttls(place: Shop) -> Json:
    """What a Marble of MarbleRun's own protocol is told about its ports; each time it is another instance."""
    env = await place.outside().activate("shop", str(uuids.uuid4()), SimulatedEnclave.default("shop"))
    config: Json = json.loads(env["MARBLE_TTLS_CONFIG"])["tls"]["Incoming"]
    return config


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        if data := await reader.read(100):
            writer.write(b"shop:" + data)
    writer.close()


async def ask(port: int, tls: ssl.SSLContext) -> bytes:
    """What a client with these credentials is answered; nothing if it is refused."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname=NAME)
        writer.write(b"ping")
        async with asyncio.timeout(PATIENCE):
            answer = await reader.read(100)
        writer.close()
    except (ConnectionError, ssl.SSLError):
        return b""
    return answer
