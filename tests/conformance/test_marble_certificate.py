# SPDX-License-Identifier: Apache-2.0
"""What a Marble is given besides its parameters: key, leaf and the certificates around it, as OpenSSL reads them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import pytest_asyncio

from tests.kit.bare_marble import BareMarble, call, entries, field, fields
from tests.kit.coordinator import Bench, manifest
from tests.kit.marble_deployment import (
    CHAIN,
    COORDINATOR_ROOT_CA,
    PRIVATE_KEY,
    ROOT_CA,
    UUID,
    MarbleDeployment,
    deployed,
    web,
)
from tests.kit.openssl_judge import certificates, extension, openssl, public_key, signed, verifies, x509

pytestmark = pytest.mark.asyncio(loop_scope="module")

TYPE = "web server"  # a name that shows where it is written and where it is escaped
NAMES = "subjectAltName=DNS:web.example,DNS:*.web.example,IP:10.1.2.3,IP:fd00::7,email:a@example.com,URI:spiffe://a/b"
SUBJECT = "/C=DE/ST=Berlin/L=Mitte/street=Road 7/postalCode=10115/O=Evil Corp/OU=unit/CN=somebody else/serialNumber=42"
ENV = dict.fromkeys((ROOT_CA, CHAIN, PRIVATE_KEY, COORDINATOR_ROOT_CA), "the manifest's own")
TYPE_OID = "1.3.9903.2.1"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MarbleDeployment]:
    async with deployed(Bench.make(machine, insecure=True), tmp_path_factory.mktemp("town")) as made:
        marbles = {TYPE: {"Package": "app", "Parameters": {"Env": ENV | {"OTHER": "kept"}}}, **web()}
        await made.set_manifest(manifest(Marbles=marbles))
        yield made


@pytest.fixture(scope="module")
def marble(tmp_path_factory: pytest.TempPathFactory) -> BareMarble:
    """Whose request asks for all kinds of things."""
    return BareMarble.make(tmp_path_factory.mktemp("marble"), SUBJECT, NAMES)


async def activated(town: MarbleDeployment, marble: BareMarble, marble_type: str = TYPE) -> Mapping[str, bytes]:
    """The environment."""
    message = field(2, marble.csr) + field(3, marble_type) + field(4, UUID.upper())
    ((_, parameters),) = fields((await call(town.mesh, marble.pem, message)).reply)
    return {name.decode(): value for name, value in entries(parameters, 2).items()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def env(town: MarbleDeployment, marble: BareMarble) -> Mapping[str, bytes]:
    return await activated(town, marble)


@pytest.fixture(scope="module")
def leaf(env: Mapping[str, bytes]) -> bytes:
    return certificates(env[CHAIN])[0]


# --- the predefined variables


async def test_there_are_four_and_they_overwrite_the_manifests(env: Mapping[str, bytes]) -> None:
    assert set(env) == {*ENV, "OTHER"}
    assert env["OTHER"] == b"kept"
    assert b"the manifest's own" not in env.values()


async def test_the_root_ca_is_the_marble_root(town: MarbleDeployment, env: Mapping[str, bytes]) -> None:
    assert env[ROOT_CA] == town.marble_root
    assert len(certificates(env[ROOT_CA])) == 1


async def test_the_chain_is_the_leaf_and_the_intermediate(
    town: MarbleDeployment, env: Mapping[str, bytes], leaf: bytes
) -> None:
    quoted = (await town.get("/api/v2/quote")).data["cert"].encode()
    assert certificates(env[CHAIN]) == [leaf, certificates(quoted)[0]]
    assert verifies(certificates(env[CHAIN])[1], town.root)


async def test_the_coordinators_root_is_the_one_that_the_client_api_shows(
    town: MarbleDeployment, env: Mapping[str, bytes]
) -> None:
    quoted = (await town.get("/api/v2/quote")).data["cert"].encode()
    assert [env[COORDINATOR_ROOT_CA]] == certificates(quoted)[1:]


async def test_the_private_key_is_pkcs8_and_the_leafs(env: Mapping[str, bytes], leaf: bytes) -> None:
    assert env[PRIVATE_KEY].startswith(b"-----BEGIN PRIVATE KEY-----\n")
    assert env[PRIVATE_KEY].endswith(b"-----END PRIVATE KEY-----\n")
    assert public_key(env[PRIVATE_KEY], "pkey") == public_key(leaf)


async def test_there_is_no_seal_key_any_more(env: Mapping[str, bytes]) -> None:
    assert "MARBLE_PREDEFINED_SEAL_KEY" not in env


async def test_there_is_no_ttls_configuration_without_tags(env: Mapping[str, bytes]) -> None:
    assert "MARBLE_TTLS_CONFIG" not in env


# --- the key


async def test_the_key_is_p_384_and_the_coordinators_choice(
    env: Mapping[str, bytes], marble: BareMarble, leaf: bytes
) -> None:
    assert "ASN1 OID: secp384r1" in x509(leaf, "-text")
    request = openssl("req", "-inform", "DER", data=marble.csr)
    assert public_key(request, "req") != public_key(leaf)


async def test_each_activation_has_a_key_of_its_own(
    town: MarbleDeployment, marble: BareMarble, env: Mapping[str, bytes]
) -> None:
    again = await activated(town, marble)
    assert again[PRIVATE_KEY] != env[PRIVATE_KEY]
    assert again[ROOT_CA] == env[ROOT_CA]


# --- the leaf


@pytest.mark.parametrize("anchor", ["root", "intermediate", "Marble root"])
async def test_the_leaf_verifies_under_each_of_the_three(
    town: MarbleDeployment, env: Mapping[str, bytes], leaf: bytes, anchor: str
) -> None:
    """As server and as client, by OpenSSL with all rules of RFC 5280."""
    anchors = {"root": env[COORDINATOR_ROOT_CA], "intermediate": town.intermediate, "Marble root": env[ROOT_CA]}
    untrusted = certificates(env[CHAIN])[1] if anchor == "root" else b""
    for purpose in ("sslserver", "sslclient"):
        flags = ["-x509_strict", "-partial_chain", "-purpose", purpose, "-verify_hostname", "web.example"]
        assert verifies(leaf, anchors[anchor], *flags, untrusted=untrusted)


async def test_the_leaf_does_not_verify_under_the_root_without_the_intermediate(
    env: Mapping[str, bytes], leaf: bytes
) -> None:
    assert not verifies(leaf, env[COORDINATOR_ROOT_CA])


async def test_the_issuer_is_the_marble_root(leaf: bytes) -> None:
    assert x509(leaf, "-issuer") == "issuer=CN = MarbleRun Coordinator - Intermediate CA"


async def test_the_subject_is_the_requests_with_the_uuid_for_name_and_without_organisation(leaf: bytes) -> None:
    subject = x509(leaf, "-subject", "-nameopt", "sep_multiline,sname").splitlines()[1:]
    assert sorted(subject) == sorted(
        [
            "C=DE",
            "OU=unit",
            "L=Mitte",
            "ST=Berlin",
            "street=Road 7",
            "postalCode=10115",
            f"CN={UUID}",
            "serialNumber=42",
        ]
    )


async def test_an_empty_subject_becomes_the_uuid_alone(town: MarbleDeployment, tmp_path: Path) -> None:
    own = await activated(town, BareMarble.make(tmp_path))
    assert x509(own[CHAIN], "-subject") == f"subject=CN = {UUID}"


async def test_dns_and_ip_names_are_copied_from_the_request(leaf: bytes) -> None:
    names = extension(leaf, "subjectAltName").splitlines()[1].split(", ")
    assert names[:4] == ["DNS:web.example", "DNS:*.web.example", "IP Address:10.1.2.3", "IP Address:FD00:0:0:0:0:0:0:7"]


async def test_no_other_name_is(leaf: bytes) -> None:
    """One name is ours: the SPIFFE ID, which follows from type and UUID."""
    (uri,) = extension(leaf, "subjectAltName").splitlines()[1].split(", ")[4:]
    assert uri.startswith("URI:spiffe://")
    assert uri.endswith(f"/marble/web_20server/{UUID}")


async def test_a_request_without_names_gives_a_leaf_without(town: MarbleDeployment, tmp_path: Path) -> None:
    own = await activated(town, BareMarble.make(tmp_path, names=""), "web")
    (name,) = extension(own[CHAIN], "subjectAltName").splitlines()[1].split(", ")
    assert name.startswith("URI:spiffe://")


async def test_the_key_usage_is_digital_signature_and_key_agreement(leaf: bytes) -> None:
    assert extension(leaf, "keyUsage") == "X509v3 Key Usage: critical\nDigital Signature, Key Agreement"


async def test_the_extended_key_usage_is_server_and_client(leaf: bytes) -> None:
    assert extension(leaf, "extendedKeyUsage").splitlines()[1] == (
        "TLS Web Server Authentication, TLS Web Client Authentication"
    )


async def test_the_leaf_is_no_ca(leaf: bytes) -> None:
    assert extension(leaf, "basicConstraints") == "X509v3 Basic Constraints: critical\nCA:FALSE"


async def test_the_authority_key_id_is_the_marble_roots_and_the_intermediates(
    env: Mapping[str, bytes], leaf: bytes
) -> None:
    wanted = extension(leaf, "authorityKeyIdentifier").splitlines()[1]
    for issuer in (env[ROOT_CA], certificates(env[CHAIN])[1]):
        assert extension(issuer, "subjectKeyIdentifier").splitlines()[1] == wanted


async def test_the_leaf_has_no_key_id_of_its_own(leaf: bytes) -> None:
    assert "Subject Key Identifier" not in x509(leaf, "-text")


async def test_the_leaf_lives_as_long_as_its_ca(env: Mapping[str, bytes], leaf: bytes) -> None:
    """292 years, Go's longest duration; one second more would be a second in which nothing verifies."""
    assert x509(leaf, "-enddate") == x509(env[ROOT_CA], "-enddate")
    year = int(x509(leaf, "-enddate").split(" ")[-2])
    assert year - int(x509(env[ROOT_CA], "-startdate").split(" ")[-2]) in (292, 293)


async def test_the_serial_number_is_random_and_positive_with_at_most_128_bits(
    town: MarbleDeployment, marble: BareMarble, leaf: bytes
) -> None:
    serials = [
        int(x509(pem, "-serial").removeprefix("serial="), 16) for pem in (leaf, (await activated(town, marble))[CHAIN])
    ]
    assert serials[0] != serials[1]
    assert all(0 < serial < 2**128 for serial in serials)


async def test_the_signature_is_ecdsa_with_sha384(leaf: bytes) -> None:
    assert "Signature Algorithm: ecdsa-with-SHA384" in x509(leaf, "-text")


async def test_the_type_stands_raw_in_an_extension_that_is_not_critical(leaf: bytes) -> None:
    """Not wrapped in an ASN.1 string: the value's bytes are the name's."""
    parsed = openssl("asn1parse", data=leaf).decode().splitlines()
    (at,) = [number for number, line in enumerate(parsed) if line.endswith(f":{TYPE_OID}")]
    value = parsed[at + 1].partition("OCTET STRING")[2].strip()  # and no BOOLEAN, which would say "critical", before it
    assert value in (f"[HEX DUMP]:{TYPE.encode().hex().upper()}", f":{TYPE}")


# --- what the root key signs


async def test_the_manifests_signature_is_by_the_p_384_root_over_sha256(
    town: MarbleDeployment, env: Mapping[str, bytes]
) -> None:
    answer = (await town.get("/api/v2/manifest")).data
    raw, signature = (
        openssl("base64", "-d", "-A", data=answer[name].encode()) for name in ("manifest", "manifestSignatureRootECDSA")
    )
    assert json.loads(raw)["Packages"]
    key = openssl("x509", "-noout", "-pubkey", data=env[COORDINATOR_ROOT_CA])
    assert signed(key, signature, raw, "sha256")
    assert not signed(key, signature, raw, "sha384")
