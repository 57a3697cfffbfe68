# SPDX-License-Identifier: Apache-2.0
"""Activation: what a Marble receives, in which order it is checked, and what counts."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from sds.identity import MARBLE_TYPE_OID, marble_identity
from tests.kit.coordinator import Bench, manifest
from tests.kit.marble_client import MarbleCredentials
from tests.kit.users import user
from xds_server.activation import Grant
from xds_server.errors import ActivationRefused, NotIssued
from xds_server.mesh import AccessDenied

UUID = "0a1b2c3d-4e5f-4a5b-8c7d-8e9fa0b1c2d3"
CHAIN = "MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"


def web(**members: object) -> dict[str, object]:
    return {"web": {"Package": "app"} | members}


async def configured(bench: Bench, secrets: dict[str, object], env: dict[str, str], **members: object) -> None:
    marbles = web(Parameters={"Env": env}, **members) | {"api": {"Package": "app", "Parameters": {"Env": env}}}
    await bench.coordinator.set_manifest(manifest(Secrets=secrets, Marbles=marbles))


def leaf(grant: Grant) -> x509.Certificate:
    return x509.load_pem_x509_certificates(grant.env[CHAIN])[0]


# --- certificate (4.4, 6)


async def test_the_coordinator_makes_the_key_and_names_the_marble(bench: Bench) -> None:
    await bench.coordinator.set_manifest(manifest())
    who = MarbleCredentials.make(("web.example",), ("10.1.2.3",))
    grant = await bench.activate(credentials=who, uuid=UUID.upper().replace("-", ""))
    certificate, intermediate = x509.load_pem_x509_certificates(grant.env[CHAIN])
    assert intermediate == bench.coordinator.ca.intermediate
    key = load_pem_private_key(grant.env["MARBLE_PREDEFINED_PRIVATE_KEY"], None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp384r1"
    assert key.public_key() == certificate.public_key()
    assert key.public_key() != who.key.public_key()
    assert [a.value for a in certificate.subject] == [UUID]
    assert certificate.issuer == bench.coordinator.ca.marble_root.subject
    assert certificate.extensions.get_extension_for_oid(MARBLE_TYPE_OID).value.public_bytes() == b"web"
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["web.example"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["10.1.2.3"]
    for anchor in (intermediate, bench.coordinator.ca.marble_root):
        certificate.verify_directly_issued_by(anchor)


async def test_predefined_variables_overwrite_the_manifests(bench: Bench) -> None:
    env = {"MARBLE_PREDEFINED_ROOT_CA": "mine", "OTHER": "kept"}
    await bench.coordinator.set_manifest(manifest(Marbles=web(Parameters={"Env": env})))
    grant = await bench.activate()
    ca = bench.coordinator.ca
    assert grant.env["OTHER"] == b"kept"
    assert grant.env["MARBLE_PREDEFINED_ROOT_CA"] == ca.marble_root.public_bytes(Encoding.PEM)
    assert grant.env["MARBLE_PREDEFINED_COORDINATOR_ROOT_CA"] == ca.root.public_bytes(Encoding.PEM)
    assert "MARBLE_TTLS_CONFIG" not in grant.env


# --- secrets in parameters (4.6, 6.5)


async def test_a_per_marble_key_is_derived_from_root_secret_uuid_name_and_type(bench: Bench) -> None:
    secrets: dict[str, object] = {"k": {"Type": "symmetric-key", "Size": 256}}
    await configured(bench, secrets, {"K": "{{ hex .Secrets.k }}"})
    root = bench.store.committed[-1].root_secret
    for kind in ("web", "api"):
        wanted = HKDF(SHA256(), 32, UUID.encode() + b"k", kind.encode()).derive(root)
        for _ in range(2):
            grant = await bench.activate(marble_type=kind, uuid=UUID.upper())
            assert grant.env["K"] == wanted.hex().encode()


async def test_disable_secret_binding_leaves_the_type_out(bench: Bench) -> None:
    secrets: dict[str, object] = {"k": {"Type": "symmetric-key", "Size": 256}}
    await configured(bench, secrets, {"K": "{{ hex .Secrets.k }}"}, DisableSecretBinding=True)
    root = bench.store.committed[-1].root_secret
    wanted = HKDF(SHA256(), 32, UUID.encode() + b"k", b"").derive(root)
    assert (await bench.activate(uuid=UUID)).env["K"] == wanted.hex().encode()
    assert (await bench.activate(marble_type="api", uuid=UUID)).env["K"] != wanted.hex().encode()


async def test_shared_secrets_are_shared_and_per_marble_certificates_are_new_each_time(bench: Bench) -> None:
    secrets: dict[str, object] = {
        "shared": {"Type": "symmetric-key", "Size": 128, "Shared": True},
        "tls": {"Type": "cert-ecdsa", "Size": 256},
        "one": {"Type": "cert-ed25519", "Shared": True},
    }
    env = {"S": "{{ hex .Secrets.shared }}", "T": "{{ pem .Secrets.tls.Cert }}", "O": "{{ pem .Secrets.one.Cert }}"}
    await configured(bench, secrets, env)
    first, second = (await bench.activate(uuid=UUID)).env, (await bench.activate(uuid=UUID)).env
    assert (first["S"], first["O"]) == (second["S"], second["O"])
    assert first["T"] != second["T"]
    for text in (first["T"], first["O"]):
        x509.load_pem_x509_certificate(text).verify_directly_issued_by(bench.coordinator.ca.marble_root)


async def test_an_unset_user_defined_secret_fails_the_activation_with_its_place(bench: Bench) -> None:
    secrets: dict[str, object] = {"x": {"Type": "plain", "UserDefined": True}}
    parameters = {"Files": {"f": "{{ raw .Secrets.x }}"}}
    await bench.coordinator.set_manifest(manifest(Secrets=secrets, Marbles=web(Parameters=parameters)))
    with pytest.raises(NotIssued) as caught:
        await bench.activate()
    assert caught.value.grpc_status.name == "INTERNAL"
    assert str(caught.value) == (
        'customizing marble parameters: parsing secrets for file "f": template: data:1:3: executing "data" at '
        "<raw .Secrets.x>: error calling raw: tried to parse secret with empty value"
    )
    assert not bench.mesh._marbles


async def test_a_secret_that_was_set_arrives(bench: Bench) -> None:
    document = {
        "Secrets": {"x": {"Type": "plain", "UserDefined": True}},
        "Users": {"alice": {"Certificate": user().certificate.decode(), "Roles": ["w"]}},
        "Roles": {"w": {"ResourceType": "Secrets", "ResourceNames": ["x"], "Actions": ["WriteSecret"]}},
        "Marbles": web(Parameters={"Files": {"f": "{{ raw .Secrets.x }}"}}),
    }
    await bench.coordinator.set_manifest(manifest(**document))
    await bench.coordinator.secrets_set({"x": {"Key": "AAEC"}}, [user().der])
    assert (await bench.activate()).files["f"] == b"\0\1\2"


# --- budget (4.4, 11)


async def test_a_limited_activation_is_committed_before_the_answer(bench: Bench) -> None:
    await bench.coordinator.set_manifest(manifest(Marbles=web(MaxActivations=2)))
    await bench.activate(uuid=UUID)
    assert bench.store.committed[-1].activations == {"web": 1}
    bench.store.failing = True
    with pytest.raises(NotIssued, match=r"^committing store transaction: disk full$"):
        await bench.activate(uuid=UUID)
    assert len(bench.events.to_json() or []) == 1
    bench.store.failing = False
    await bench.activate(uuid=UUID)  # a restart of the same instance takes another unit
    with pytest.raises(ActivationRefused, match=r"reached max activations count \(2\) for marble type \"web\"$"):
        await bench.activate(uuid=UUID)


async def test_two_at_once_do_not_overdraw(bench: Bench) -> None:
    await bench.coordinator.set_manifest(manifest(Marbles=web(MaxActivations=3)))
    outcomes = await asyncio.gather(*(bench.activate() for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(outcome, Grant) for outcome in outcomes) == 3
    assert bench.store.committed[-1].activations == {"web": 3}


async def test_an_unlimited_type_costs_no_commit(bench: Bench) -> None:
    await bench.coordinator.set_manifest(manifest())
    await bench.activate()
    assert len(bench.store.committed) == 1


# --- after a restart


async def test_a_restarted_coordinator_readmits_by_what_the_certificate_says(bench: Bench, machine: Path) -> None:
    await bench.coordinator.set_manifest(manifest())
    certificate = leaf(await bench.activate(uuid=UUID))
    again = bench.restarted(machine)
    assert again.coordinator.manifest() == bench.coordinator.manifest()
    client = again.mesh.authenticate(certificate)
    assert (client.name, client.uuid) == ("web", UUID)
    served = again.mesh._marbles["web", UUID]
    assert marble_identity(served.identity.leaf).claims == marble_identity(certificate).claims
    assert served.ip_addresses
    again.own_quote.stop()


async def test_it_does_not_readmit_what_the_manifest_no_longer_allows(bench: Bench, machine: Path) -> None:
    users = {"dave": {"Certificate": user("dave").certificate.decode(), "Roles": ["r"]}}
    role = {"ResourceType": "Packages", "ResourceNames": ["app"], "Actions": ["UpdateSecurityVersion"]}
    await bench.coordinator.set_manifest(manifest(Users=users, Roles={"r": role}))
    certificate = leaf(await bench.activate(uuid=UUID))
    records = replace(bench.store.committed[-1], security_versions={"app": 9})
    again = Bench.make(machine, store=bench.store, records=records)
    with pytest.raises(AccessDenied, match="is not activated: activate it again"):
        again.mesh.authenticate(certificate)
    again.own_quote.stop()


async def test_without_attestation_a_marble_needs_no_quote_and_its_certificate_says_so(machine: Path) -> None:
    bench = Bench.make(machine, insecure=True)
    await bench.coordinator.set_manifest(manifest())
    certificate = leaf(await bench.activate(quote=b""))
    claims = marble_identity(certificate).claims or {}
    assert claims["insecure"] is True
    assert (await bench.coordinator.quote(b"nonce")).quote is None
    attesting = bench.restarted(machine)  # the same CA, but now only what was attested counts
    with pytest.raises(AccessDenied):
        attesting.mesh.authenticate(certificate)
    for made in (bench, attesting):
        made.own_quote.stop()


async def test_instances_that_never_come_back_are_forgotten(bench: Bench) -> None:
    await bench.coordinator.set_manifest(manifest(Mesh={"CertificateLifetime": "1h"}))
    for _ in range(3):
        await bench.activate()
    bench.clock.forward(timedelta(minutes=45))
    assert await bench.coordinator.renewer.step() == 3
    bench.clock.forward(timedelta(minutes=45))
    await bench.coordinator.renewer.step()
    assert not bench.mesh._marbles
    bench.clock.forward(timedelta(hours=2))
    assert await bench.coordinator.renewer.step() == 0
