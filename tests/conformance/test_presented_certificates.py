# SPDX-License-Identifier: Apache-2.0
"""Ports with `Incoming.Cert`, for clients of no mesh: from the manifest over activation and SDS to their handshake.

The manifest is set by curl, the Marble activates by a foreign gRPC client and asks for its secrets with another one,
over the Coordinator's real ports; a relay is built of what it is given; and `openssl s_client` is the client.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf.struct_pb2 import Struct

from enclave_proxy.relay_config import RelayConfig
from enclave_proxy.route_parts import Local
from enclave_proxy.routes import Pushed, build
from sds.ca import pem_of
from sds.discovery_client import DeltaClient
from sds.identity import COORDINATOR_DNS_NAME
from sds.material import Identity, TrustBundle
from sds.resources import CLUSTER, LISTENER, SECRET, read_secret
from sds.wire.discovery_pb2 import Node
from sds.wire.marble_pb2 import Parameters
from tests.kit.coordinator import Bench
from tests.kit.deployment import b64
from tests.kit.marble_deployment import CHAIN, PRIVATE_KEY, MarbleDeployment, deployed, owned
from tests.kit.mesh_relay import LOOPBACK, App, port, relay
from tests.kit.openssl_judge import openssl, s_client, x509
from tests.kit.users import User, user
from tests.kit.xds_port import ADS, Wire, xds_server

SECRET_NAME = "web-cert"
NAMES = {"Cert": {"DNSNames": ["shop.example"]}}
ECDSA: dict[str, object] = {"Type": "cert-ecdsa", "Size": 256} | NAMES
UPLOADED: dict[str, object] = {"Type": "cert-ecdsa", "UserDefined": True}
ALICE = user("alice")


def with_port(secret: Mapping[str, object], name: str = SECRET_NAME, **members: object) -> bytes:
    """A Marble with one port for everybody, which shows a secret, and one for the mesh."""
    incoming = [{"Port": "8443", "Cert": name, "DisableClientAuth": True}, {"Port": "9000"}]
    marbles = {"web": {"Package": "app", "TLS": ["t"]}}
    return owned(Marbles=marbles, TLS={"t": {"Incoming": incoming}}, Secrets={name: secret}, **members)


@dataclass
class Shop:
    """A deployment with an xDS port."""

    town: MarbleDeployment
    xds: int

    @asynccontextmanager
    async def connected(self, env: Mapping[str, bytes]) -> AsyncIterator[Instance]:
        """The stream of an instance with the identity that it got."""
        credentials = grpc.ssl_channel_credentials(self.town.root, env[PRIVATE_KEY], env[CHAIN])
        options = (("grpc.ssl_target_name_override", COORDINATOR_DNS_NAME), ("grpc.use_local_subchannel_pool", 1))
        client = DeltaClient(Node(metadata=Struct()))
        client.connected()
        async with grpc.aio.secure_channel(f"127.0.0.1:{self.xds}", credentials, options) as channel:
            yield Instance(Wire(channel, client, f"/{ADS}/DeltaAggregatedResources"))


@dataclass
class Instance:
    """What one instance was given over xDS so far."""

    wire: Wire
    resources: dict[str, dict[str, bytes]] = field(default_factory=dict)
    secrets: dict[str, Identity | TrustBundle] = field(default_factory=dict)

    async def hear(self) -> None:
        update = await self.wire.hear()
        bodies = {resource.name: resource.body for resource in update.resources}
        if update.type_url == SECRET:
            read = dict(read_secret(body) for body in bodies.values())
            self.secrets |= {name: value for name, value in read.items() if isinstance(value, Identity | TrustBundle)}
        else:
            self.resources.setdefault(update.type_url, {}).update(bodies)

    async def shown(self, *others: bytes) -> bytes:
        """What the port shows, PEM: the first that is none of these."""
        self.wire.client.subscribe(SECRET, [SECRET_NAME])
        while (chain := self._chain()) == b"" or chain in others:
            await self.hear()
        return chain

    async def relayed(self, run_dir: Path) -> RelayConfig:
        """What a worker makes of it, on free ports."""
        for kind in (CLUSTER, LISTENER):
            self.wire.client.subscribe(kind, ["*"])
        while {CLUSTER, LISTENER} - self.resources.keys():
            await self.hear()
        pushed = Pushed(Local(run_dir))
        for kind in (CLUSTER, LISTENER):
            pushed = pushed.with_resources(kind, self.resources[kind], ())
        assert SECRET_NAME in pushed.wanted_secrets()
        self.wire.client.subscribe(SECRET, pushed.wanted_secrets())
        while pushed.wanted_secrets() - self.secrets.keys():
            await self.hear()
        config = build(pushed.with_secrets(self.secrets))
        return RelayConfig(tuple(replace(inbound, bind=LOOPBACK) for inbound in config.inbound), ())

    def _chain(self) -> bytes:
        secret = self.secrets.get(SECRET_NAME)
        return secret.chain if isinstance(secret, Identity) else b""


@pytest.fixture
async def shop(machine: Path, tmp_path: Path) -> AsyncIterator[Shop]:
    bench = Bench.make(machine)
    async with deployed(bench, tmp_path) as town:
        xds = xds_server(bench.mesh)
        try:
            yield Shop(town, await xds.start("127.0.0.1", 0, bench.coordinator.ca))
        finally:
            await xds.stop()


async def opened(shop: Shop, raw: bytes) -> Parameters:
    await shop.town.set_manifest(raw)
    return await shop.town.activate()


# --- the handshake of a stranger


@pytest.mark.parametrize(
    "secret",
    [
        {**ECDSA, "Shared": True},
        ECDSA,
        {"Type": "cert-rsa", "Size": 2048} | NAMES,
        {"Type": "cert-ed25519"} | NAMES,
        {"Type": "cert-ecdsa", "Size": 521} | NAMES,
    ],
    ids=["shared", "per Marble", "RSA", "Ed25519", "P-521"],
)
async def test_a_strict_client_without_certificate_is_served_with_the_secret(
    shop: Shop, tmp_path: Path, secret: dict[str, object]
) -> None:
    """By any of the three certificates that may be its anchor; the mesh's own port keeps asking for a certificate."""
    granted = await opened(shop, with_port(secret))
    ca = shop.town.bench.coordinator.ca
    async with shop.connected(granted.env) as instance, App(tmp_path / "8443.sock"), relay() as made:
        await made.apply(await instance.relayed(tmp_path))

        for anchor in (ca.marble_root, ca.intermediate, ca.root):
            (tmp_path / "anchor.pem").write_bytes(pem_of(anchor))
            flags = ["-CAfile", str(tmp_path / "anchor.pem"), "-partial_chain", "-verify_return_error", "-x509_strict"]
            who = ["-purpose", "sslserver", "-verify_hostname", "shop.example"]
            answered = await s_client(port(made, "inbound|8443").port, *flags, *who, say=b"echo this\n")
            assert answered.ok
            assert "echo this" in answered.text
        async with App(tmp_path / "9000.sock") as mesh_app:
            refused = await s_client(port(made, "inbound|9000").port, say=b"echo this\n")
        assert "echo this" not in refused.text
        assert mesh_app.accepted == 0


# --- which certificate it is


async def test_a_secret_of_the_marble_is_another_after_each_activation(shop: Shop) -> None:
    granted = await opened(shop, with_port(ECDSA))
    async with shop.connected(granted.env) as instance:
        before = await instance.shown()
        await shop.town.activate()
        assert await instance.shown(before) != before


async def test_an_uploaded_certificate_is_shown_alone_and_the_next_upload_replaces_it(shop: Shop) -> None:
    await shop.town.set_manifest(with_port(UPLOADED))
    await upload(shop, ALICE)
    granted = await shop.town.activate()
    async with shop.connected(granted.env) as instance:
        assert await instance.shown() == ALICE.certificate
        await upload(shop, user("bob"))
        assert await instance.shown(ALICE.certificate) == user("bob").certificate


async def upload(shop: Shop, who: User) -> None:
    key = openssl("pkcs8", "-topk8", "-nocrypt", "-outform", "DER", data=who.key)
    values = {SECRET_NAME: {"Cert": b64(who.der), "Private": b64(key)}}
    assert (await shop.town.post("/secrets", values, ALICE)).status == 200


async def test_an_update_changes_a_shared_secret_of_running_marbles(shop: Shop) -> None:
    secret = {**ECDSA, "Shared": True}
    granted = await opened(shop, with_port(secret))
    async with shop.connected(granted.env) as instance:
        before = await instance.shown()
        await shop.town.update(with_port(secret, Config={}), ALICE)
        after = await instance.shown(before)
    assert x509(after, "-subject") == x509(before, "-subject") == "subject=CN = shop.example"


async def test_an_update_leaves_a_marble_its_own_one(shop: Shop) -> None:
    granted = await opened(shop, with_port(ECDSA))
    async with shop.connected(granted.env) as instance:
        before = await instance.shown()
    await shop.town.update(with_port(ECDSA, Config={}), ALICE)
    await shop.town.bench.coordinator.close()
    async with shop.connected(granted.env) as instance:
        assert await instance.shown() == before


async def test_a_running_marble_is_given_what_a_port_that_came_with_an_update_shows(shop: Shop) -> None:
    without = json.loads(with_port(ECDSA))
    without["TLS"]["t"]["Incoming"] = [{"Port": "9000"}]
    granted = await opened(shop, json.dumps(without).encode())
    await shop.town.update(with_port(ECDSA), ALICE)
    async with shop.connected(granted.env) as instance:
        shown = await instance.shown()
    assert x509(shown, "-subject") == "subject=CN = shop.example"


# --- what no port can show


@pytest.mark.parametrize(
    ("secret", "name", "expected"),
    [
        ({"Type": "symmetric-key", "Size": 128}, SECRET_NAME, "a secret of type symmetric-key is not a certificate"),
        ({"Type": "cert-rsa", "Size": 1024}, SECRET_NAME, "RSA keys of 1024 bits are too short for TLS"),
        ({"Type": "cert-ecdsa", "Size": 224}, SECRET_NAME, "ECDSA keys of 224 bits cannot be used with TLS 1.3"),
        (ECDSA, "default", "has a name that stands for the Marble's own identity or trust"),
        (ECDSA, "ROOTCA", "has a name that stands for the Marble's own identity or trust"),
        (ECDSA, "spiffe://x", "has a name that stands for the Marble's own identity or trust"),
    ],
)
async def test_what_no_port_can_show_is_refused_with_the_manifest(
    shop: Shop, secret: dict[str, object], name: str, expected: str
) -> None:
    message = await shop.town.manifest_refused(with_port(secret, name))
    assert message.startswith("checking manifest: TLS.t.Incoming.8443: ")
    assert expected in message
