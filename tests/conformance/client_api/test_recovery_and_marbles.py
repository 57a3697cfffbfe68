# SPDX-License-Identifier: Apache-2.0
"""The client API in recovery, and for Marbles: signed quotes and monotonic counters."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from sds.attestation.evidence import Evidence
from sds.attestation.simulated import SimulatedEnclave
from tests.kit import pki
from tests.kit.client_api import curl, shown
from tests.kit.coordinator import PACKAGE, Bench, manifest
from tests.kit.deployment import ERROR, Api, World, b64, whole
from tests.kit.marble_client import MarbleCredentials
from tests.kit.users import public_pem, recovery_key, user

# --- 3.7 recovery


@pytest.fixture
async def locked(world: World) -> tuple[Api, bytes]:
    """A Coordinator in recovery, and the ciphertext that its one owner got."""
    first = Bench.make(world.platform)
    key = public_pem(recovery_key().public_key()).decode()
    secrets = await first.coordinator.set_manifest(manifest(RecoveryKeys={"owner": key}))
    second = Bench.make(world.platform, store=first.store, locked=first.store.recovery_data)
    return await world.serve(second), secrets["owner"]


def signed(secret: bytes) -> dict[str, object]:
    signature = recovery_key().sign(secret, padding.PKCS1v15(), SHA256())
    return {"recoverySecret": b64(secret), "recoverySecretSignature": b64(signature)}


OAEP = padding.OAEP(padding.MGF1(SHA256()), SHA256(), None)


async def test_one_owner_recovers(locked: tuple[Api, bytes]) -> None:
    api, ciphertext = locked
    assert (await api.get("/api/v2/status")).data["code"] == 1
    assert (await api.get("/quote")).status == 200
    answer = await api.post("/api/v2/recover", signed(recovery_key().decrypt(ciphertext, OAEP)))
    assert answer.body == b'{"status":"success","data":{"remaining":0,"message":"Recovery successful."}}\n'
    assert (await api.get("/api/v2/status")).data["code"] == 3


async def test_a_secret_may_be_encrypted_to_the_ephemeral_key(locked: tuple[Api, bytes]) -> None:
    api, ciphertext = locked
    secret = recovery_key().decrypt(ciphertext, OAEP)
    key = (await api.get("/api/v2/recover/public-key")).data
    assert (list(key), key["algorithm"]) == (["algorithm", "ephemeralPublicKey"], "RSA")
    public = load_der_public_key(base64.b64decode(key["ephemeralPublicKey"]))
    body = signed(secret) | {"recoverySecret": b64(public.encrypt(secret, OAEP))}  # type: ignore[union-attr]
    assert (await api.post("/api/v2/recover", body)).data["remaining"] == 0


async def test_what_cannot_be_decrypted_is_a_fail(locked: tuple[Api, bytes]) -> None:
    answer = await locked[0].post("/api/v2/recover", signed(bytes(99)))
    assert (answer.status, answer.json["status"]) == (400, "fail")
    assert answer.message == "failed to decrypt recovery secret: ephemeral secret key not set"


async def test_a_wrong_secret_is_an_error_of_its_step(locked: tuple[Api, bytes]) -> None:
    answer = await locked[0].post("/api/v2/recover", signed(bytes(32)))
    assert (answer.status, answer.kind) == (500, ERROR)
    assert answer.message.startswith("setting recovery key: ")


@pytest.mark.parametrize("body", [b"{", b'{"recoverySecret":"?"}', b'{"recoverySecret":"' + b"A" * 20_480])
async def test_a_malformed_or_longer_recovery_request_is_a_fail(locked: tuple[Api, bytes], body: bytes) -> None:
    answer = await locked[0].post("/api/v2/recover", body)
    assert (answer.status, answer.json["status"]) == (400, "fail")


async def test_outside_recovery_there_is_nothing_to_recover(plain: Api) -> None:
    answer = await plain.get("/api/v2/recover/public-key")
    assert (answer.status, answer.message) == (500, "server is not in expected state")
    assert (await plain.post("/api/v2/recover", signed(bytes(32)))).status == 500


async def test_in_recovery_a_new_manifest_may_be_set_instead(locked: tuple[Api, bytes]) -> None:
    assert (await locked[0].post("/manifest", manifest())).status == 200
    assert (await locked[0].get("/status")).data["StatusCode"] == 3


async def test_recovery_in_v1_is_gone(fresh: Api) -> None:
    answer = await fresh.post("/recover", bytes(16))
    assert (answer.status, answer.kind) == (410, ERROR)
    assert answer.message == (
        "Recovering the Coordinator using the /recover API endpoint has been disabled. "
        "Use the /api/v2/recover endpoint instead."
    )


# --- 3.12 sign quote


async def test_a_quote_is_signed_with_its_tcb_status(api: Api) -> None:
    who = MarbleCredentials.make()
    quote = who.quote(api.bench.platform.issuer(SimulatedEnclave.default("any")))
    for sent in (quote, Evidence.parse(quote).quote):
        signed_quote = (await api.post("/api/v2/sign-quote", {"sgxQuote": b64(sent)})).data
        assert (list(signed_quote), signed_quote["tcbStatus"]) == (["tcbStatus", "verificationSignature"], "UpToDate")
        root = api.bench.coordinator.ca.root.public_key()
        assert isinstance(root, ec.EllipticCurvePublicKey)
        data = b64(sent).encode() + b"UpToDate"
        root.verify(base64.b64decode(signed_quote["verificationSignature"]), data, ec.ECDSA(SHA256()))


async def test_sign_quote_says_what_is_wrong(api: Api) -> None:
    malformed = await api.post("/api/v2/sign-quote", b"{")
    assert (malformed.status, malformed.json["status"]) == (400, "fail")
    assert malformed.json["data"] == {"sgxQuote": "failed to parse JSON data"}
    assert malformed.message.startswith("bad request: ")
    empty = await api.post("/api/v2/sign-quote", {})
    assert (empty.status, empty.message) == (400, "quote verification failed")
    assert empty.json["data"] == {"sgxQuote": "quote verification failed: empty report"}


async def test_sign_quote_must_be_enabled(plain: Api) -> None:
    answer = await plain.post("/api/v2/sign-quote", b"{")
    assert (answer.status, answer.kind) == (403, ERROR)
    assert answer.message == "SignQuoteEndpoint feature is not enabled in the manifest"


# --- 3.14 monotonic counter


def marble_flags(api: Api) -> list[str]:
    identity = pki.marble(api.bench.coordinator.ca)
    return shown(api.directory, identity.chain, identity.key.pem)


async def test_a_counter_only_grows_and_answers_with_what_was(api: Api) -> None:
    flags = marble_flags(api)
    url = api.port.url("/api/v2/monotonic-counter")
    answers = [
        (await curl(url, api.version, *flags, body=json.dumps({"name": "foo", "value": value}).encode())).data
        for value in (3, 2, 2**64 - 1, 0)
    ]
    assert answers == [{"value": 0}, {"value": 3}, {"value": 3}, {"value": 2**64 - 1}]


@pytest.mark.parametrize("body", [b"{", b'{"value":1.0}', b'{"value":"1"}', b'{"value":-1}', b'{"name":1}'])
async def test_a_malformed_counter_is_a_fail(api: Api, body: bytes) -> None:
    answer = await curl(api.port.url("/api/v2/monotonic-counter"), api.version, *marble_flags(api), body=body)
    assert (answer.status, answer.json["status"]) == (400, "fail")


async def test_the_counter_checks_feature_then_certificate_then_json(plain: Api, world: World) -> None:
    off = await plain.post("/api/v2/monotonic-counter", b"{")
    assert (off.status, off.kind) == (403, ERROR)
    assert off.message == "MonotonicCounter feature is not enabled in the manifest"
    other = await world.serve(Bench.make(world.platform))
    await other.set_manifest(whole())
    for stranger in (None, user("alice")):
        answer = await other.post("/api/v2/monotonic-counter", b"{", stranger)
        assert (answer.status, answer.json["status"]) == (401, "fail")
        assert answer.message.startswith("unauthorized marble: ")


def test_the_manifest_of_these_tests_has_the_package_of_the_kit() -> None:
    assert json.loads(whole())["Packages"] == {"app": PACKAGE}
