# SPDX-License-Identifier: Apache-2.0
"""Monotonic counters: a Marble shows the certificate that it was given at its activation, and numbers only rise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from cryptography.x509.oid import NameOID

from tests.kit.client_api import Answer
from tests.kit.coordinator import PACKAGE, manifest
from tests.kit.deployment import ERROR, JSON, whole
from tests.kit.outside import CHAIN, KEY, UUID, Outside, Who
from tests.kit.sealed import unseal
from tests.kit.site import INSECURE, Site, site
from tests.kit.users import User

TWO_TYPES = {"Marbles": {"web": {"Package": "app"}, "api": {"Package": "app"}}}
COUNTING = whole(**TWO_TYPES)
OTHER = "0a1b2c3d-4e5f-4a5b-8c7d-8e9fa0b1c2d4"
PATH = "/api/v2/monotonic-counter"
MAX = 2**64 - 1


async def was(outside: Outside, env: Mapping[str, bytes], name: str, value: int) -> int:
    answer: dict[str, int] = (await outside.count(env, name, value)).data
    assert list(answer) == ["value"]
    return answer["value"]


async def test_the_answer_is_the_value_before_and_the_greater_one_is_kept(tmp_path: Path) -> None:
    async with site(tmp_path, COUNTING) as running:
        env = await running.outside.activate()
        answers = [await was(running.outside, env, "foo", value) for value in (3, 2, 7, MAX, 0, 0)]
        assert answers == [0, 3, 3, 7, MAX, MAX]


async def test_each_name_instance_and_type_counts_for_itself(tmp_path: Path) -> None:
    async with site(tmp_path, COUNTING) as running:
        outside = running.outside
        first = await outside.activate()
        assert await was(outside, first, "foo", 5) == 0
        assert await was(outside, first, "FOO", 5) == 0
        assert await was(outside, await outside.activate(uuid=OTHER), "foo", 5) == 0
        assert await was(outside, await outside.activate("api"), "foo", 5) == 0
        assert await was(outside, await outside.activate(), "foo", 6) == 5, "the same instance, activated again"


async def test_name_and_value_have_defaults_as_all_members(tmp_path: Path) -> None:
    async with site(tmp_path, COUNTING) as running:
        env = await running.outside.activate()
        marble = User(env[CHAIN], env[KEY], b"")
        assert (await running.outside.post(PATH, b"{}", marble)).data == {"value": 0}
        assert (await running.outside.post(PATH, b'{"NAME":"x","Value":4}', marble)).data == {"value": 0}
        assert await was(running.outside, env, "x", 0) == 4


# --- who may count


@pytest.mark.parametrize("update", ["package", "full"])
async def test_after_any_update_a_marble_counts_again_when_it_was_activated_again(tmp_path: Path, update: str) -> None:
    async with site(tmp_path, COUNTING) as running:
        outside, env = running.outside, await running.outside.activate()
        assert await was(outside, env, "foo", 5) == 0
        if update == "package":
            raw = json.dumps({"Packages": {"app": {"SecurityVersion": PACKAGE["SecurityVersion"]}}}).encode()
            assert (await outside.update(raw)).status == 200
        else:
            new = whole(**TWO_TYPES, TLS={})
            await outside.update(new)
            assert (await outside.acknowledge(new, "bob")).data["missingAcknowledgments"] == 0
        assert_stranger(await outside.count(env, "foo", 6))
        assert await was(outside, await outside.activate(), "foo", 6) == 5


def assert_stranger(answer: Answer) -> None:
    assert (answer.status, answer.kind, answer.json["status"]) == (401, JSON, "fail")
    assert answer.message.startswith("unauthorized marble: ")


@pytest.mark.parametrize("who", [None, "alice", "mallory"])
async def test_who_is_no_marble_has_no_counters(tmp_path: Path, who: Who) -> None:
    async with site(tmp_path, COUNTING) as running:
        assert_stranger(await running.outside.post(PATH, {"name": "foo", "value": 1}, who))


async def test_a_marble_of_another_deployment_has_none(tmp_path: Path) -> None:
    async with site(tmp_path / "one", COUNTING) as one, site(tmp_path / "other", COUNTING) as other:
        assert_stranger(await one.outside.count(await other.outside.activate(), "foo", 1))


def leaf(running: Site, common_name: str, marble_type: bytes | None) -> User:
    """Signed by the CA itself: without attestation its key lies on disk, in clear but for the data key beside it."""
    entries = unseal(running.file(), running.file("sealed_key"))
    ca = load_der_private_key(entries["privateKey:coordinatorIntermediateKey"], None)
    issuer = x509.load_der_x509_certificate(entries["certificate:marbleRootCert"])
    assert isinstance(ca, ec.EllipticCurvePrivateKey)
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    builder = (
        x509.CertificateBuilder(issuer.subject, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
    )
    if marble_type is not None:
        oid = x509.ObjectIdentifier("1.3.9903.2.1")
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, marble_type), critical=False)
    pem = builder.sign(ca, SHA384()).public_bytes(Encoding.PEM)
    return User(pem, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), b"")


@pytest.mark.parametrize(("name", "marble_type"), [("somebody", b"web"), (UUID, None), (UUID, b"\xff")])
async def test_a_certificate_of_this_ca_that_names_no_instance_has_none(
    tmp_path: Path, name: str, marble_type: bytes | None
) -> None:
    """The common name must be a UUID, and the extension says the type."""
    async with site(tmp_path, COUNTING, **INSECURE) as running:
        who = leaf(running, name, marble_type)
        assert_stranger(await running.outside.post(PATH, {"name": "foo", "value": 1}, who))


async def test_an_instance_certified_by_marblerun_before_its_state_came_here_goes_on_counting(tmp_path: Path) -> None:
    async with site(tmp_path, COUNTING, **INSECURE) as running:
        assert await was(running.outside, await running.outside.activate(), "foo", 5) == 0
        answer = await running.outside.post(PATH, {"name": "foo", "value": 6}, leaf(running, UUID, b"web"))
        assert answer.data == {"value": 5}


# --- in which order it is checked


async def test_without_its_gate_it_is_forbidden_to_everybody(tmp_path: Path) -> None:
    async with site(tmp_path) as running:
        for raw in (None, manifest(Config={"FeatureGates": ["SignQuoteEndpoint"]})):
            if raw is not None:
                await running.outside.set_manifest(raw)
            answer = await running.outside.post(PATH, b"{")
            assert (answer.status, answer.kind) == (403, ERROR)
            assert answer.message == "MonotonicCounter feature is not enabled in the manifest"


async def test_the_certificate_is_looked_at_before_the_body(tmp_path: Path) -> None:
    async with site(tmp_path, COUNTING) as running:
        assert_stranger(await running.outside.post(PATH, b"{", "alice"))


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"value":1.0}', b'{"value":"1"}', b'{"value":-1}', b'{"value":18446744073709551616}',
     b'{"value":1e3}', b'{"name":1}'],
)  # fmt: skip
async def test_a_malformed_request_is_a_fail(tmp_path: Path, body: bytes) -> None:
    async with site(tmp_path, COUNTING) as running:
        env = await running.outside.activate()
        answer = await running.outside.post(PATH, body, User(env[CHAIN], env[KEY], b""))
        assert (answer.status, answer.kind, answer.json["status"]) == (400, JSON, "fail")


async def test_a_name_longer_than_1_kib_is_an_error(tmp_path: Path) -> None:
    async with site(tmp_path, COUNTING) as running:
        answer = await running.outside.count(await running.outside.activate(), "x" * 1025, 1)
        assert (answer.status, answer.kind) == (500, ERROR)


# --- how long it is remembered


async def test_a_counter_outlives_a_restart(tmp_path: Path) -> None:
    async with site(tmp_path, COUNTING) as running:
        env = await running.outside.activate()
        assert await was(running.outside, env, "foo", 5) == 0
        outside = await running.restart()
        assert await was(outside, env, "foo", 6) == 5


async def test_a_counter_that_could_not_be_written_has_not_risen(tmp_path: Path) -> None:
    async with site(tmp_path, COUNTING) as running:
        env = await running.outside.activate()
        elsewhere = running.state.rename(tmp_path / "elsewhere")
        failed = await running.outside.count(env, "foo", 3)
        assert (failed.status, failed.kind) == (500, ERROR)
        elsewhere.rename(running.state)
        assert await was(running.outside, env, "foo", 1) == 0
