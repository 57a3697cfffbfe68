# SPDX-License-Identifier: Apache-2.0
"""The types of secrets: which sizes there are, what is generated, and what a user's own value must look like.

Marbles ask over the Marble API, users upload by curl; keys and certificates are judged by OpenSSL.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.kit.coordinator import Bench, manifest
from tests.kit.deployment import b64
from tests.kit.marble_deployment import MarbleDeployment, deployed, owned, waiting, web
from tests.kit.openssl_judge import openssl, public_key, verifies, x509
from tests.kit.users import user

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALICE = user("alice")


def symmetric(bits: int, **members: object) -> dict[str, object]:
    return {"Type": "symmetric-key", "Size": bits} | members


# --- what is generated


TYPED: dict[str, tuple[dict[str, object], str]] = {
    "rsa-1024": ({"Type": "cert-rsa", "Size": 1024}, "Public-Key: (1024 bit)"),
    "rsa-2048": ({"Type": "cert-rsa", "Size": 2048}, "Public-Key: (2048 bit)"),
    "ecdsa-224": ({"Type": "cert-ecdsa", "Size": 224}, "ASN1 OID: secp224r1"),
    "ecdsa-256": ({"Type": "cert-ecdsa", "Size": 256}, "ASN1 OID: prime256v1"),
    "ecdsa-384": ({"Type": "cert-ecdsa", "Size": 384}, "ASN1 OID: secp384r1"),
    "ecdsa-521": ({"Type": "cert-ecdsa", "Size": 521}, "ASN1 OID: secp521r1"),
    "ed25519": ({"Type": "cert-ed25519"}, "ED25519 Public-Key:"),
    "ed25519-0": ({"Type": "cert-ed25519", "Size": 0}, "ED25519 Public-Key:"),
}
PARTS = ("Cert", "Private", "Public")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def typed(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, bytes]]:
    """The parts of a certificate secret of each type, PEM, as a Marble gets them; and the Marble root."""
    secrets = {name: secret | {"Private": "QUJD", "Public": "QUJD"} for name, (secret, _) in TYPED.items()}
    env = {f"{n} {part}": f'{{{{ pem (index .Secrets "{n}").{part} }}}}' for n in secrets for part in PARTS}
    async with deployed(Bench.make(machine), tmp_path_factory.mktemp("typed")) as made:
        await made.set_manifest(manifest(Secrets=secrets, Marbles=web(Env=env)))
        yield dict((await made.activate()).env) | {"root": made.marble_root}


@pytest.mark.parametrize("name", TYPED)
async def test_each_type_has_its_kind_of_key(typed: dict[str, bytes], name: str) -> None:
    assert TYPED[name][1] in x509(typed[f"{name} Cert"], "-text")


@pytest.mark.parametrize("name", TYPED)
async def test_the_certificate_verifies_under_the_marble_root(typed: dict[str, bytes], name: str) -> None:
    flags = ["-auth_level", "0"] if name == "rsa-1024" else []  # OpenSSL calls such a key too short
    assert verifies(typed[f"{name} Cert"], typed["root"], *flags)


@pytest.mark.parametrize("name", TYPED)
async def test_private_is_the_pkcs8_key_of_the_certificate(typed: dict[str, bytes], name: str) -> None:
    """Whatever the manifest says under Private."""
    private = typed[f"{name} Private"]
    assert private.startswith(b"-----BEGIN PRIVATE KEY-----\n")
    assert public_key(private, "pkey") == public_key(typed[f"{name} Cert"])


@pytest.mark.parametrize("name", TYPED)
async def test_public_is_the_pkix_key_of_the_certificate(typed: dict[str, bytes], name: str) -> None:
    public = openssl("pkey", "-pubin", "-outform", "DER", data=typed[f"{name} Public"])
    assert public == public_key(typed[f"{name} Cert"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def refusing(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MarbleDeployment]:
    async with waiting(machine, tmp_path_factory.mktemp("refusing")) as made:
        yield made


@pytest.mark.parametrize(
    ("secret", "text"),
    [
        (symmetric(0), "invalid secret size: s"),
        (symmetric(12), "invalid secret size: s"),
        (symmetric(0, Shared=True), "invalid secret size: s"),
        (symmetric(65288), "invalid secret size: s"),
        ({"Type": "cert-rsa", "Size": 512}, "invalid secret size for cert-rsa secret s"),
        ({"Type": "cert-rsa"}, "invalid secret size for cert-rsa secret s"),
        (
            {"Type": "cert-ecdsa", "Size": 192},
            "invalid secret size for cert-ecdsa secret s: unsupported size 192: does not map to a supported curve",
        ),
        (
            {"Type": "cert-ecdsa"},
            "invalid secret size for cert-ecdsa secret s: unsupported size 0: does not map to a supported curve",
        ),
        (
            {"Type": "cert-ed25519", "Size": 256},
            "invalid secret size for cert-ed25519 secret s: none is expected, got: 256",
        ),
        ({"Type": "plain"}, "secret s is invalid: unsupported secret of type plain"),
        ({"Type": "other"}, "unknown type: other for secret: s"),
        ({"Type": "Plain", "UserDefined": True}, "unknown type: Plain for secret: s"),
        ({}, "unknown type:  for secret: s"),
        (
            {"Type": "cert-ecdsa", "Size": 256, "ValidFor": 7, "Cert": {"NotAfter": "2099-01-01T00:00:00Z"}},
            "ambiguous certificate validity duration for secret: s, both NotAfter and ValidFor are specified",
        ),
        (
            {"Type": "cert-ecdsa", "Size": 256, "Cert": {"IPAddresses": ["10.0.0.256"]}},
            "invalid IP address: 10.0.0.256",
        ),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
async def test_a_definition_that_cannot_be_met_is_refused_with_the_manifest(
    refusing: MarbleDeployment, secret: dict[str, object], text: str
) -> None:
    assert text in await refusing.manifest_refused(manifest(Secrets={"s": secret}))


# --- secrets of users


UPLOADED: dict[str, dict[str, object]] = {
    "plain": {"Type": "plain", "UserDefined": True},
    "sized-plain": {"Type": "plain", "UserDefined": True, "Size": 3},
    "key": symmetric(128, UserDefined=True),
    "odd-key": symmetric(12, UserDefined=True),
    "sizeless-key": symmetric(0, UserDefined=True),
    "cert": {"Type": "cert-ecdsa", "UserDefined": True},
    "bare-cert": {"Type": "cert-rsa", "UserDefined": True},
}
UPLOAD_ENV = {
    "plain": "{{ hex .Secrets.plain }}",
    "key": "{{ hex .Secrets.key }}",
    "cert": "{{ pem .Secrets.cert.Cert }}",
    "cert Public": "{{ pem .Secrets.cert.Public }}",
    "cert Private": "{{ pem .Secrets.cert.Private }}",
    "bare-cert": '{{ pem (index .Secrets "bare-cert").Cert }}',
}
MADE = {"made": symmetric(128, Shared=True)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def uploading(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MarbleDeployment]:
    marbles = {name: {"Package": "app", "Parameters": {"Env": {name: text}}} for name, text in UPLOAD_ENV.items()}
    async with deployed(Bench.make(machine), tmp_path_factory.mktemp("uploading")) as made:
        await made.set_manifest(owned(Secrets=UPLOADED | MADE, Marbles=marbles))
        yield made


async def test_before_it_is_uploaded_a_users_secret_is_empty(uploading: MarbleDeployment) -> None:
    shown = (await uploading.get("/secrets?s=plain", ALICE)).body
    assert shown == (
        b'{"status":"success","data":{"plain":{"Type":"plain","Size":0,"Shared":false,"UserDefined":true,'
        b'"Cert":null,"ValidFor":0,"Private":null,"Public":null}}}\n'
    )
    assert (await uploading.refusal("plain")).message.endswith("tried to parse secret with empty value")


@pytest.mark.parametrize("value", [b"any text", bytes(range(256)), b"x" * 100_000], ids=["text", "bytes", "long"])
async def test_a_plain_secret_of_any_size_reaches_the_marble(uploading: MarbleDeployment, value: bytes) -> None:
    assert (await uploading.post("/secrets", {"plain": {"Key": b64(value)}}, ALICE)).status == 200
    assert (await uploading.activate("plain")).env["plain"] == value.hex().encode()


async def test_a_symmetric_key_of_a_user_reaches_the_marble(uploading: MarbleDeployment) -> None:
    assert (await uploading.post("/secrets", {"key": {"Key": b64(bytes(range(16)))}}, ALICE)).status == 200
    assert (await uploading.activate("key")).env["key"] == bytes(range(16)).hex().encode()


async def test_a_certificate_of_a_user_reaches_the_marble_in_parts(uploading: MarbleDeployment) -> None:
    values = {
        "Cert": b64(ALICE.der),
        "Private": b64(openssl("pkcs8", "-topk8", "-nocrypt", "-outform", "DER", data=ALICE.key)),
    }
    assert (await uploading.post("/secrets", {"cert": values}, ALICE)).status == 200
    parts = {name: (await uploading.activate(name)).env[name] for name in ("cert", "cert Public", "cert Private")}
    assert parts["cert"] == ALICE.certificate
    assert parts["cert Private"] == ALICE.key
    assert openssl("pkey", "-pubin", "-outform", "DER", data=parts["cert Public"]) == public_key(ALICE.certificate)


async def test_the_private_key_of_a_certificate_may_be_missing(uploading: MarbleDeployment) -> None:
    assert (await uploading.post("/secrets", {"bare-cert": {"Cert": b64(ALICE.der)}}, ALICE)).status == 200
    assert (await uploading.activate("bare-cert")).env["bare-cert"] == ALICE.certificate
    shown: Any = (await uploading.get("/secrets?s=bare-cert", ALICE)).data
    assert (shown["bare-cert"]["Private"], shown["bare-cert"]["Cert"]) == (None, b64(ALICE.der))


async def test_the_size_of_a_plain_secret_means_nothing(uploading: MarbleDeployment) -> None:
    for value in (b"x", b"longer than it says"):
        assert (await uploading.post("/secrets", {"sized-plain": {"Key": b64(value)}}, ALICE)).status == 200


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("key", {"Key": b64(bytes(15))}, "declared size and actual size don't match: key"),
        ("odd-key", {"Key": b64(bytes(2))}, "invalid secret size: odd-key"),
        ("sizeless-key", {"Key": b64(bytes(2))}, "invalid secret size: sizeless-key"),
        ("made", {"Key": b64(bytes(16))}, "secret made is not writeable"),
        ("cert", {"Cert": b64(b"no certificate")}, "secret cert: x509: malformed certificate"),
        ("cert", {"Cert": "?"}, "x509: unsupported public key type: <nil>"),
    ],
)
async def test_the_size_of_a_users_key_is_checked_when_it_is_uploaded(
    uploading: MarbleDeployment, name: str, value: dict[str, str], text: str
) -> None:
    answer = await uploading.post("/api/v2/secrets", {"secrets": {name: value}}, ALICE)
    assert answer.status == 500
    assert answer.message.startswith(f"parsing new secrets: {text}")
