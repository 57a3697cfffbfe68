# SPDX-License-Identifier: Apache-2.0
"""Who is not allowed gets no byte, and the app never learns that somebody knocked: real worker, real app."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from cryptography import x509

from sds.ca import CertificateAuthority, LeafTemplate
from sds.csr import CertificateRequest
from sds.keys import PrivateKey
from sds.material import Identity, TrustBundle
from sds.tls import client_context
from tests.kit.mesh import MeshHarness, RunningWorker, free_port

pytestmark = pytest.mark.e2e

# Speaks first, so that a byte would come even to a client that sends nothing; notes every connection that it sees.
GREETER = """
import os, socketserver, sys
class Greeter(socketserver.BaseRequestHandler):
    def handle(self):
        with open("seen", "a") as seen: seen.write("x")
        self.request.sendall(b"the secret")
server = socketserver.ThreadingUnixStreamServer(os.environ["MARBLEMESH_RUN_DIR"] + "/" + sys.argv[1], Greeter)
print("app listening", file=sys.stderr, flush=True)
server.serve_forever()
"""
# Hands its own identity to the test: what a Marble of another type could do with the certificate that it rightly has.
TELLTALE = """
import json, os, time
with open("identity.tmp", "w") as out: json.dump({k: v for k, v in os.environ.items() if k.startswith("MARBLE_P")}, out)
os.rename("identity.tmp", "identity.json")
time.sleep(60)
"""


@dataclass(frozen=True)
class Scene:
    """`server` lets `client` in and nobody else; `other` is attested too. What each of the two could present."""

    server: RunningWorker
    port: int
    client: Identity
    other: Identity
    bundle: TrustBundle

    @property
    def seen(self) -> int:
        """How many connections the app has seen."""
        file = self.server.run_dir.parent / "seen"
        return len(file.read_text()) if file.exists() else 0

    async def knock(self, tls: ssl.SSLContext | None, payload: bytes = b"") -> bytes:
        """Connect, send, and give every byte that comes back."""
        try:
            name = {"server_hostname": "localhost"} if tls else {}
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=tls, **name)
        except (ConnectionError, ssl.SSLError):
            return b""
        try:
            writer.write(payload)
            async with asyncio.timeout(20):
                return await reader.read(100)
        except (ConnectionError, ssl.SSLError):
            return b""
        finally:
            writer.close()
            with suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()

    async def refused(self, reason: str) -> int:
        metrics = (await self.server.admin("/metrics"))[1]
        wanted = f'connections_refused_total{{listener="inbound|{self.port}",reason="{reason}"}} '
        return sum(int(float(line.rpartition(" ")[2])) for line in metrics.splitlines() if wanted in line)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    with TemporaryDirectory(prefix="mm-") as directory:
        async with MeshHarness(Path(directory)) as mesh:
            await mesh.start_coordinator()
            port = free_port()
            tls = {"server": {"Incoming": [{"Port": str(port), "Peers": ["client"]}]}}
            await mesh.set_manifest(mesh.manifest({"server": {}, "client": {}, "other": {}}, tls))
            # The worker's own look at the app's socket would be a connection that the app sees.
            greeter = (sys.executable, "-c", GREETER, f"{port}.sock")
            server = await mesh.start_worker("server", *greeter, flags=("--app-timeout", "0"))
            workers = {n: await mesh.start_worker(n, sys.executable, "-c", TELLTALE) for n in ("client", "other")}
            await server.logged("app listening")
            shown = {name: await told(worker) for name, worker in workers.items()}
            identities = {
                name: Identity(
                    env["MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"].encode(),
                    PrivateKey(env["MARBLE_PREDEFINED_PRIVATE_KEY"].encode()),
                )
                for name, env in shown.items()
            }
            bundle = TrustBundle(shown["client"]["MARBLE_PREDEFINED_ROOT_CA"].encode())
            yield Scene(server, port, identities["client"], identities["other"], bundle)


async def told(worker: RunningWorker) -> dict[str, str]:
    await worker.ready()
    path = worker.run_dir.parent / "identity.json"
    async with asyncio.timeout(30):
        while not path.exists():
            await asyncio.sleep(0.05)
    return dict(json.loads(path.read_text()))


def foreign_identity(scene: Scene) -> Identity:
    """The allowed type and UUID, from a CA that is made like ours, with keys of its own."""
    now = datetime.now(UTC)
    request = CertificateRequest(dns_names=("localhost",), ip_addresses=(), subject=x509.Name([]))
    template = LeafTemplate("client", scene.client.spiffe_id.path[-1], request, None, timedelta(hours=1))
    return CertificateAuthority.create(["localhost"], [], now).issue_marble(template, now)


async def test_only_the_named_peer_gets_a_byte_and_the_app_sees_nobody_else(scene: Scene) -> None:
    no_certificate = client_context(None, scene.bundle)

    assert await scene.knock(None, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") == b""
    assert await scene.knock(None, bytes(range(256))) == b""
    assert await scene.knock(no_certificate, b"hello") == b""
    assert await scene.knock(client_context(foreign_identity(scene), scene.bundle), b"hello") == b""
    assert await scene.knock(client_context(scene.other, scene.bundle), b"hello") == b""
    assert scene.seen == 0

    # The control: the same knock by the peer that the manifest names.
    assert await scene.knock(client_context(scene.client, scene.bundle)) == b"the secret"
    assert scene.seen == 1

    for reason, least in {"plaintext": 1, "no_certificate": 1, "untrusted": 1, "peer_not_allowed": 1}.items():
        assert await scene.refused(reason) >= least, reason


async def test_a_client_of_an_older_tls_gets_no_byte(scene: Scene) -> None:
    old = client_context(scene.client, scene.bundle)
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert await scene.knock(old, b"hello") == b""
    assert scene.seen == 0
