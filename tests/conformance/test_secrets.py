# SPDX-License-Identifier: Apache-2.0
"""Secrets as Marbles and users meet them: what is derived and how, what is random, what is shared, what is uploaded.

Marbles ask over the Marble API, users by curl; certificates that secrets hold are judged by OpenSSL.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from sds.wire.marble_pb2 import Parameters
from tests.kit.coordinator import Bench, manifest
from tests.kit.deployment import b64
from tests.kit.marble_deployment import MarbleDeployment, deployed, owned, waiting, web
from tests.kit.openssl_judge import openssl, public_key, verifies, x509
from tests.kit.users import user
from xds_server.coordinator import fresh_records

pytestmark = pytest.mark.asyncio(loop_scope="module")

UUID = "11111111-2222-3333-4444-555555555555"
OTHER = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
ROOT_SECRET = b"\x42" * 32
# Of the protocol's description, computed with another implementation of HKDF.
BOUND = "cd57713164d46ad99f09541e88e64301d0573aeacf0b6f953a08aa29014b7334"
UNBOUND = "43356dced0202b9372a5c94b08d9559e6a80d88c2afae03e618e344a93ceff2f"
ALICE = user("alice")


def symmetric(bits: int, **members: object) -> dict[str, object]:
    return {"Type": "symmetric-key", "Size": bits} | members


def hexed(*names: str) -> dict[str, str]:
    """An environment with these secrets and their previous generation in hexadecimal digits."""
    env = {name: f'{{{{ hex (index .Secrets "{name}") }}}}' for name in names}
    return env | {f"previous {name}": f'{{{{ hex (index .Previous.Secrets "{name}") }}}}' for name in names}


def hkdf(root_secret: bytes, salt: str, info: str, size: int) -> str:
    """HKDF-SHA256 by OpenSSL, hexadecimal."""
    options = {"digest": "SHA256", "hexkey": root_secret.hex(), "hexsalt": salt.encode().hex()}
    if info:
        options["hexinfo"] = info.encode().hex()
    flags = [word for name, value in options.items() for word in ("-kdfopt", f"{name}:{value}")]
    return openssl("kdf", "-keylen", str(size), *flags, "-binary", "HKDF").hex()


# --- keys derived for one Marble


SIZES = {"byte": 8, "mykey": 256, "odd": 136, "long": 4096, "longest": 65280}
DERIVING = {
    "Secrets": {name: symmetric(bits) for name, bits in SIZES.items()} | {"two": symmetric(256)},
    "Marbles": {
        name: {"Package": "app", "Parameters": {"Env": hexed(*SIZES, "two")}, "DisableSecretBinding": unbound}
        for name, unbound in (("backend", False), ("other", False), ("unbound", True), ("unbound too", True))
    },
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MarbleDeployment]:
    """Whose root secret is known."""
    fresh = fresh_records(["localhost"], [], datetime.now(UTC))
    records = replace(fresh, root_secret=ROOT_SECRET, previous_root_secret=ROOT_SECRET)
    async with deployed(Bench.make(machine, records=records), tmp_path_factory.mktemp("town")) as made:
        await made.set_manifest(manifest(**DERIVING))
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(town: MarbleDeployment) -> Parameters:
    return await town.activate("backend", UUID)


async def test_the_vector_with_the_marbles_type_for_info(backend: Parameters) -> None:
    assert backend.env["mykey"].decode() == BOUND == hkdf(ROOT_SECRET, UUID + "mykey", "backend", 32)


async def test_the_vector_without_secret_binding(town: MarbleDeployment) -> None:
    unbound = await town.activate("unbound", UUID)
    assert unbound.env["mykey"].decode() == UNBOUND == hkdf(ROOT_SECRET, UUID + "mykey", "", 32)


@pytest.mark.parametrize(("name", "bits"), SIZES.items())
async def test_a_key_has_the_size_that_is_asked_for(backend: Parameters, name: str, bits: int) -> None:
    assert backend.env[name].decode() == hkdf(ROOT_SECRET, UUID + name, "backend", bits // 8)


async def test_the_same_uuid_type_and_name_give_the_same_key_after_a_restart(
    town: MarbleDeployment, backend: Parameters
) -> None:
    again = await town.activate("backend", UUID)
    assert {name: again.env[name] for name in SIZES} == {name: backend.env[name] for name in SIZES}


@pytest.mark.parametrize("form", [UUID.upper(), UUID.replace("-", ""), "{" + UUID + "}"])
async def test_the_salt_is_the_lower_case_uuid_however_it_is_sent(
    town: MarbleDeployment, backend: Parameters, form: str
) -> None:
    assert (await town.activate("backend", form)).env["mykey"] == backend.env["mykey"]


async def test_another_uuid_gives_another_key(town: MarbleDeployment, backend: Parameters) -> None:
    assert (await town.activate("backend", OTHER)).env["mykey"] != backend.env["mykey"]


async def test_another_name_gives_another_key(backend: Parameters) -> None:
    assert backend.env["two"] != backend.env["mykey"]


async def test_another_type_gives_another_key(town: MarbleDeployment, backend: Parameters) -> None:
    assert (await town.activate("other", UUID)).env["mykey"] != backend.env["mykey"]


async def test_without_binding_another_type_gives_the_same_key(town: MarbleDeployment) -> None:
    one, two = await town.activate("unbound", UUID), await town.activate("unbound too", UUID)
    assert one.env["mykey"] == two.env["mykey"]


async def test_the_first_generation_is_its_own_previous_one(backend: Parameters) -> None:
    assert all(backend.env[f"previous {name}"] == backend.env[name] for name in SIZES)


async def test_a_restarted_coordinator_derives_the_same_keys(machine: Path, tmp_path: Path) -> None:
    first = Bench.make(machine)
    raw = manifest(Secrets={"k": symmetric(256)}, Marbles=web(Env=hexed("k")))
    async with deployed(first, tmp_path) as town:
        await town.set_manifest(raw)
        before = (await town.activate()).env["k"]
    async with deployed(first.restarted(machine), tmp_path) as town:
        assert (await town.activate()).env["k"] == before


@pytest.mark.parametrize("rotate", [True, False])
async def test_the_previous_generation_is_derived_from_the_previous_root_secret(
    machine: Path, tmp_path: Path, rotate: bool
) -> None:
    members: dict[str, object] = {"Secrets": {"k": symmetric(256)}, "Marbles": web(Env=hexed("k"))}
    async with deployed(Bench.make(machine), tmp_path) as town:
        await town.set_manifest(owned(**members))
        before = (await town.activate()).env["k"]
        await town.update(owned(**members, Config={"RotateRootSecret": rotate}), ALICE)
        after = (await town.activate()).env
    assert after["previous k"] == before
    assert (after["k"] == before) is not rotate


# --- what is generated once


SHARED: dict[str, dict[str, object]] = {
    "key": symmetric(128, Shared=True),
    "byte": symmetric(8, Shared=True),
    "kilobyte": symmetric(8192, Shared=True),
    "cert": {"Type": "cert-ecdsa", "Size": 256, "Shared": True},
}
OWN: dict[str, dict[str, object]] = {"own-key": symmetric(128), "own-cert": {"Type": "cert-ecdsa", "Size": 256}}
MAKING: dict[str, object] = {
    "Secrets": SHARED | OWN,
    "Marbles": {name: {"Package": "app", "Parameters": {"Env": hexed(*SHARED, *OWN)}} for name in ("web", "api")},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def making(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MarbleDeployment]:
    async with deployed(Bench.make(machine), tmp_path_factory.mktemp("making")) as made:
        await made.set_manifest(owned(**MAKING))
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def three(making: MarbleDeployment) -> list[Parameters]:
    """An instance, the same again, and one of another type and UUID."""
    return [await making.activate(*who) for who in (("web", UUID), ("web", UUID), ("api", OTHER))]


@pytest.mark.parametrize(("name", "size"), [("key", 16), ("byte", 1), ("kilobyte", 1024)])
async def test_a_shared_key_has_size_over_8_bytes(three: list[Parameters], name: str, size: int) -> None:
    assert len(bytes.fromhex(three[0].env[name].decode())) == size


@pytest.mark.parametrize("name", SHARED)
async def test_a_shared_secret_is_the_same_for_everybody(three: list[Parameters], name: str) -> None:
    assert len({parameters.env[name] for parameters in three}) == 1


async def test_a_shared_key_is_random(machine: Path, tmp_path: Path, three: list[Parameters]) -> None:
    """Another deployment on the same machine with the same manifest has another one."""
    async with deployed(Bench.make(machine), tmp_path) as other:
        await other.set_manifest(owned(**MAKING))
        assert (await other.activate("web", UUID)).env["key"] != three[0].env["key"]


async def test_users_read_the_shared_secrets_that_marbles_get(
    making: MarbleDeployment, three: list[Parameters]
) -> None:
    read = (await making.get("/api/v2/secrets?s=key&s=cert", ALICE)).data["secrets"]
    assert base64.b64decode(read["key"]["Private"]).hex().encode() == three[0].env["key"]
    assert base64.b64decode(read["cert"]["Public"]).hex().encode() == three[0].env["cert"]


async def test_a_key_of_a_marble_is_the_instances_alone(three: list[Parameters]) -> None:
    one, again, other = (parameters.env["own-key"] for parameters in three)
    assert one == again != other


async def test_a_certificate_of_a_marble_is_new_at_every_activation(three: list[Parameters]) -> None:
    assert len({parameters.env["own-cert"] for parameters in three}) == 3


async def test_so_is_the_one_of_the_previous_generation(three: list[Parameters]) -> None:
    made = {parameters.env[name] for parameters in three for name in ("own-cert", "previous own-cert")}
    assert len(made) == 6


async def test_a_shared_certificate_is_new_after_a_package_update(machine: Path, tmp_path: Path) -> None:
    async with deployed(Bench.make(machine), tmp_path) as town:
        await town.set_manifest(owned(**MAKING))
        before = (await town.activate()).env
        await town.update(b'{"Packages":{"app":{"SecurityVersion":3}}}', ALICE)
        after = (await town.activate()).env
    assert (before["cert"] != after["cert"], before["key"] == after["key"]) == (True, True)


async def test_a_shared_certificate_is_new_after_a_whole_update(machine: Path, tmp_path: Path) -> None:
    async with deployed(Bench.make(machine), tmp_path) as town:
        await town.set_manifest(owned(**MAKING))
        before = (await town.activate()).env
        await town.update(owned(**MAKING, Config={"FeatureGates": []}), ALICE)
        after = (await town.activate()).env
    assert (before["cert"] != after["cert"], before["key"] == after["key"]) == (True, True)
    assert after["previous cert"] == before["cert"]


# --- the types


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
