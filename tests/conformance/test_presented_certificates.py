# SPDX-License-Identifier: Apache-2.0
"""Ports with `Incoming.Cert`: from the manifest over activation and xDS to a handshake with a client of no mesh.

No sockets between Coordinator and worker here: what the mesh shows an instance is built into a real relay.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from enclave_proxy.relay_config import RelayConfig
from enclave_proxy.route_parts import Local
from enclave_proxy.routes import Pushed, build
from sds.ca import pem_of
from sds.discovery import View
from sds.material import Identity, TrustBundle
from sds.resources import CLUSTER, LISTENER, SECRET, read_secret
from sds.secret_certificates import issue
from sds.secret_template import SecretTemplate
from sds.secrets import SecretKind
from sds.tls import client_context
from tests.kit.coordinator import PACKAGE, Bench, manifest
from tests.kit.manifests import certificate
from tests.kit.mesh_relay import LOOPBACK, App, port, relay, try_to_ask
from tests.kit.programs import program
from xds_server.activation import TTLS_CONFIG, Grant
from xds_server.errors import ActivationRefused, ManifestRefused
from xds_server.mesh import Client, Role

UUID = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
ECDSA = {"Type": "cert-ecdsa", "Size": 256, "Cert": {"DNSNames": ["shop.example"]}}
USER_CERTIFICATE = certificate(uri=None)
USER_DER = x509.load_pem_x509_certificate(USER_CERTIFICATE.encode()).public_bytes(Encoding.DER)


def with_port(secret: Mapping[str, object], name: str = "web-cert", **members: object) -> bytes:
    incoming = [{"Port": "8443", "Cert": name, "DisableClientAuth": True}, {"Port": "9000"}]
    return manifest(
        Marbles={"web": {"Package": "app", "TLS": ["t"]}},
        TLS={"t": {"Incoming": incoming}},
        Secrets={name: secret},
        Users={"alice": {"Certificate": USER_CERTIFICATE, "Roles": ["all"]}},
        Roles={"all": {"ResourceType": "Manifest", "Actions": ["UpdateManifest"]}},
        Packages={"app": PACKAGE},
        **members,
    )


@pytest.fixture
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    made = Bench.make(tmp_path_factory.getbasetemp() / "platform")
    yield made
    made.own_quote.stop()


def view(bench: Bench) -> View:
    return bench.mesh.view(Client(Role.MARBLE, "web", UUID))


def relayed(bench: Bench, run_dir: Path) -> RelayConfig:
    """What the worker makes of what it is shown, on free ports."""
    seen = view(bench)
    secrets = dict(read_secret(resource.body) for resource in seen[SECRET].values())
    pushed = Pushed(Local(run_dir)).with_secrets(
        {name: secret for name, secret in secrets.items() if isinstance(secret, Identity | TrustBundle)}
    )
    for kind in (CLUSTER, LISTENER):
        pushed = pushed.with_resources(kind, {name: r.body for name, r in seen[kind].items()}, ())
    assert "web-cert" in pushed.wanted_secrets()
    config = build(pushed)
    return RelayConfig(tuple(replace(inbound, bind=LOOPBACK) for inbound in config.inbound), ())


def chain(bench: Bench) -> tuple[x509.Certificate, ...]:
    _, secret = read_secret(view(bench)[SECRET]["web-cert"].body)
    assert isinstance(secret, Identity)
    return secret.certificates


def presented(bench: Bench) -> x509.Certificate:
    return chain(bench)[0]


async def activated(bench: Bench, raw: bytes) -> Grant:
    await bench.coordinator.set_manifest(raw)
    return await bench.activate(uuid=UUID)


@pytest.mark.parametrize(
    "secret",
    [
        {**ECDSA, "Shared": True},
        ECDSA,
        {"Type": "cert-rsa", "Size": 2048},
        {"Type": "cert-ed25519"},
        {"Type": "cert-ecdsa", "Size": 521},
    ],
    ids=["shared", "per marble", "rsa", "ed25519", "p521"],
)
async def test_a_client_without_certificate_is_served_with_the_secret(
    bench: Bench, tmp_path: Path, secret: dict[str, object]
) -> None:
    await activated(bench, with_port(secret))
    ca = bench.coordinator.ca
    async with App(tmp_path / "8443.sock"), relay() as made:
        await made.apply(relayed(bench, tmp_path))
        address = port(made, "inbound|8443")
        for anchor in (ca.marble_root, ca.intermediate, ca.root):
            assert await try_to_ask(address, client_context(None, TrustBundle(pem_of(anchor)))) == b"ping"
        other = port(made, "inbound|9000")
        assert await try_to_ask(other, client_context(None, ca.bundle)) == b""


async def test_the_host_name_of_the_template_is_verified_by_a_strict_client(bench: Bench, tmp_path: Path) -> None:
    """OpenSSL with all of RFC 5280's rules, as Python 3.13 has them by default."""
    await activated(bench, with_port(ECDSA))
    ca = bench.coordinator.ca
    (tmp_path / "root.pem").write_bytes(pem_of(ca.marble_root))
    (tmp_path / "leaf.pem").write_bytes(pem_of(presented(bench)))
    purpose = ("-purpose", "sslserver", "-verify_hostname", "shop.example")
    command = (
        program("openssl"),
        "verify",
        "-x509_strict",
        *purpose,
        "-partial_chain",
        "-CAfile",
        "root.pem",
        "leaf.pem",
    )
    process = await asyncio.create_subprocess_exec(*command, cwd=tmp_path)
    assert await process.wait() == 0


async def test_the_ttls_configuration_holds_the_secret_and_asks_for_no_certificate(bench: Bench) -> None:
    grant = await activated(bench, with_port(ECDSA))
    entries = json.loads(grant.env[TTLS_CONFIG])["tls"]["Incoming"]
    web, mesh = entries["*:8443"], entries["*:9000"]
    assert list(web) == ["cacrt", "clicrt", "clientAuth", "clikey"]
    assert (web["clientAuth"], mesh["clientAuth"]) == (False, True)
    assert x509.load_pem_x509_certificate(web["clicrt"].encode()) == presented(bench)
    assert web["clikey"].startswith("-----BEGIN PRIVATE KEY-----\n")
    assert web["cacrt"] == mesh["cacrt"]
    assert web["clicrt"] != mesh["clicrt"]


async def test_a_secret_of_the_marble_is_new_at_activation_and_a_shared_one_is_not(bench: Bench) -> None:
    await activated(bench, with_port(ECDSA))
    first = presented(bench)
    await bench.activate(uuid=UUID)
    assert presented(bench) != first


async def test_a_port_whose_secret_is_not_uploaded_has_nothing_to_present(bench: Bench) -> None:
    await bench.coordinator.set_manifest(with_port({"Type": "cert-ecdsa", "UserDefined": True}))
    with pytest.raises(ActivationRefused, match=r"^creating TTLS config: secret web-cert is not set"):
        await bench.activate(uuid=UUID)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def settled(bench: Bench) -> None:
    await bench.coordinator.close()


async def test_an_uploaded_certificate_is_presented_alone_and_replaced_by_the_next_upload(bench: Bench) -> None:
    secret = {"Type": "cert-ecdsa", "UserDefined": True}
    roles = {"all": {"ResourceType": "Secrets", "ResourceNames": ["web-cert"], "Actions": ["WriteSecret"]}}
    raw = json.loads(with_port(secret)) | {"Roles": roles}
    await bench.coordinator.set_manifest(json.dumps(raw).encode())
    for activate in (True, False):
        made = issue(SecretTemplate(), SecretKind.CERT_ECDSA, 256, bench.coordinator.ca, bench.clock())
        certificate_der = made.certificate or b""
        values = {
            "Cert": base64.b64encode(certificate_der).decode(),
            "Private": base64.b64encode(made.private).decode(),
        }
        await bench.coordinator.secrets_set({"web-cert": values}, [USER_DER])
        await settled(bench)
        if activate:
            await bench.activate(uuid=UUID)
        assert [c.public_bytes(Encoding.DER) for c in chain(bench)] == [certificate_der]


@pytest.mark.parametrize("shared", [True, False])
async def test_an_update_changes_shared_secrets_of_running_marbles_and_keeps_their_own(
    bench: Bench, shared: bool
) -> None:
    secret = {**ECDSA, "Shared": shared}
    await activated(bench, with_port(secret))
    before = presented(bench)
    await bench.coordinator.update_apply(with_port(secret, Config={}), [USER_DER])
    await settled(bench)
    assert (presented(bench) != before) is shared


async def test_a_running_marble_gets_what_a_port_that_came_with_an_update_presents(bench: Bench) -> None:
    without = json.loads(with_port(ECDSA))
    without["TLS"]["t"]["Incoming"] = [{"Port": "9000"}]
    await activated(bench, json.dumps(without).encode())
    assert "web-cert" not in view(bench)[SECRET]
    await bench.coordinator.update_apply(with_port(ECDSA), [USER_DER])
    await settled(bench)
    assert "shop.example" in presented(bench).subject.rfc4514_string()


@pytest.mark.parametrize(
    ("secret", "name", "expected"),
    [
        ({"Type": "symmetric-key", "Size": 128}, "web-cert", "a secret of type symmetric-key is not a certificate"),
        ({"Type": "cert-rsa", "Size": 1024}, "web-cert", "RSA keys of 1024 bits are too short for TLS"),
        ({"Type": "cert-ecdsa", "Size": 224}, "web-cert", "ECDSA keys of 224 bits cannot be used with TLS 1.3"),
        (ECDSA, "default", "has a name that stands for the Marble's own identity or trust"),
        (ECDSA, "ROOTCA", "has a name that stands for the Marble's own identity or trust"),
        (ECDSA, "spiffe://x", "has a name that stands for the Marble's own identity or trust"),
    ],
)
async def test_what_no_port_can_present_is_refused_with_the_manifest(
    bench: Bench, secret: dict[str, object], name: str, expected: str
) -> None:
    with pytest.raises(ManifestRefused, match=r"^checking manifest: TLS\.t\.Incoming\.8443: ") as caught:
        await bench.coordinator.set_manifest(with_port(secret, name))
    assert expected in str(caught.value)
