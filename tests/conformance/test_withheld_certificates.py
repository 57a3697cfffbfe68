# SPDX-License-Identifier: Apache-2.0
"""A certificate that a user uploads and that is not fit to be shown: it never reaches a Marble, the last good one
stays, and the operator is told by name.

The upload goes over the client API with curl, the Marble listens with a foreign gRPC client on the real xDS port, and
the answers are those of `xds/status` and of the metrics.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sds.discovery_client import DeltaClient
from sds.identity import COORDINATOR_DNS_NAME
from sds.material import Identity
from sds.resources import SECRET, read_secret
from sds.wire.discovery_pb2 import Node
from tests.kit.coordinator import Bench
from tests.kit.deployment import b64
from tests.kit.marble_deployment import CHAIN, PRIVATE_KEY, MarbleDeployment, deployed, owned
from tests.kit.pki import HOUR, now
from tests.kit.secrets import self_signed
from tests.kit.users import user
from tests.kit.xds_port import ADS, Wire, xds_server

FRONT = "front"
ALICE = user("alice")
MANIFEST = owned(
    Marbles={"web": {"Package": "app", "TLS": ["t"]}},
    TLS={"t": {"Incoming": [{"Port": "8443", "Cert": FRONT, "DisableClientAuth": True}]}},
    Secrets={FRONT: {"Type": "cert-ecdsa", "UserDefined": True}},
)
# Of all instances of this kind, whatever is wrong with a secret.
WITHHELD = 'marblemesh_xds_secrets_withheld{part="%s"}'
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass
class Shop:
    """The deployment, and what its one Marble hears."""

    town: MarbleDeployment
    wire: Wire

    async def given(self) -> x509.Certificate:
        """The next certificate that the Marble is sent for its port."""
        while True:
            for resource in (await self.wire.hear()).resources:
                _, secret = read_secret(resource.body)
                assert isinstance(secret, Identity)
                return secret.leaf

    async def asked(self) -> x509.Certificate:
        """What it is sent when it asks again."""
        self.wire.client.subscribe(SECRET, [FRONT])
        return await self.given()

    async def withheld(self) -> Any:
        answer = await self.town.get("/api/v2/xds/status", ALICE)
        assert answer.status == 200, answer.body
        return answer.data["withheld"]

    async def told(self) -> Any:
        """The one secret that the operator is told of, as soon as the push was due."""
        async with asyncio.timeout(10):
            while not (rows := await self.withheld()):
                await asyncio.sleep(0.01)
        (row,) = rows
        return row


async def upload(town: MarbleDeployment, certificate: x509.Certificate, key: Key) -> None:
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    values = {FRONT: {"Cert": b64(certificate.public_bytes(Encoding.DER)), "Private": b64(der)}}
    assert (await town.post("/secrets", values, ALICE)).status == 200


def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


KEY = key()
GOOD = self_signed(KEY, ca=False)


@asynccontextmanager
async def listening(port: int, root: bytes, env: Mapping[str, bytes]) -> AsyncIterator[Wire]:
    """The stream of an instance with the identity that it got."""
    credentials = grpc.ssl_channel_credentials(root, env[PRIVATE_KEY], env[CHAIN])
    options = (("grpc.ssl_target_name_override", COORDINATOR_DNS_NAME), ("grpc.use_local_subchannel_pool", 1))
    client = DeltaClient(Node())
    client.connected()
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        yield Wire(channel, client, f"/{ADS}/DeltaAggregatedResources")


@pytest.fixture
async def shop(machine: Path, tmp_path: Path) -> AsyncIterator[Shop]:
    """A running Marble whose port shows a good certificate of alice's."""
    bench = Bench.make(machine)
    xds = xds_server(bench.mesh, bench.metrics.registry)
    async with deployed(bench, tmp_path, xds) as town:
        try:
            port = await xds.start("127.0.0.1", 0, bench.coordinator.ca)
            await town.set_manifest(MANIFEST)
            await upload(town, GOOD, KEY)
            async with listening(port, town.root, (await town.activate()).env) as wire:
                made = Shop(town, wire)
                assert await made.asked() == GOOD
                yield made
        finally:
            await xds.stop()


EXPIRED = self_signed(KEY, ca=False, not_before=now() - 2 * HOUR, not_after=now() - HOUR)
WEAK_KEY = rsa.generate_private_key(65537, 1024)
WEAK = self_signed(WEAK_KEY, ca=False)
TOMORROW = self_signed(KEY, ca=False, not_before=now() + 23 * HOUR, not_after=now() + 48 * HOUR)


@pytest.mark.parametrize(
    ("certificate", "private", "part", "reason"),
    [
        (EXPIRED, KEY, "chain", "expired at"),
        (TOMORROW, KEY, "chain", "not valid before"),
        (GOOD, key(), "unusable", "private key does not belong to the first certificate of the chain"),
        (WEAK, WEAK_KEY, "unusable", "RSA key of 1024 bits"),
    ],
    ids=["expired", "of tomorrow", "with another key", "RSA of 1024 bits"],
)
async def test_a_bad_upload_never_leaves_and_the_last_good_one_stays(
    shop: Shop, certificate: x509.Certificate, private: Key, part: str, reason: str
) -> None:
    await upload(shop.town, certificate, private)
    row = await shop.told()
    assert (row["type"], row["secret"], row["lastGoodStays"], row["owners"]) == ("web", FRONT, True, 1)
    assert reason in row["reason"]
    assert await shop.town.metric(WITHHELD % part) == 1
    assert await shop.asked() == GOOD

    better = self_signed(KEY, ca=False)
    await upload(shop.town, better, KEY)
    assert await shop.given() == better, "and nothing in between"
    assert await shop.withheld() == []
    assert await shop.town.metric(WITHHELD % part) == 0


async def test_what_is_said_of_a_bad_upload_holds_nothing_of_it(shop: Shop) -> None:
    secret = key()
    await upload(shop.town, self_signed(secret, ca=False, not_before=now() - 2 * HOUR, not_after=now() - HOUR), secret)
    await shop.told()
    answers = [await shop.town.get(f"/api/v2/xds/{what}", ALICE) for what in ("status", "dump")]
    number = secret.private_numbers().private_value
    said = b"".join(answer.body for answer in answers).lower()
    for form in (f"{number:x}", str(number), b64(number.to_bytes(32, "big")).lower(), "private key-"):
        assert form.encode() not in said
