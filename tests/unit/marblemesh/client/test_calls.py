# SPDX-License-Identifier: Apache-2.0
"""Every call of the client, over version 2 of the API and over version 1."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from marblemesh.client import (
    BadAnswer,
    Client,
    IdentityError,
    NewSecret,
    NoSuchCall,
    NotTrusted,
    PemRecoveryKey,
    RequestRefused,
    SecretKind,
    decrypt_recovery_data,
    encrypt_recovery_secret,
    identity_from_pem,
    parse_public_key,
    verify_signed_quote,
)
from marblemesh.client.answer import encoded
from tests.kit.fake_coordinator import FakeCoordinator
from tests.kit.fake_features import OAEP
from tests.kit.users import key_pem, public_pem, recovery_key, user

MANIFEST = b'{"Packages": {}, "Marbles": {}}'


def client_of(fake: FakeCoordinator, name: str | None = "alice") -> Client:
    who = user(name) if name else None
    return Client(
        fake.address, root=fake.ca.root, identity=identity_from_pem(who.certificate, who.key) if who else None
    )


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeCoordinator]:
    made = FakeCoordinator(tmp_path)
    made.users.certificates = {name: user(name).der for name in ("alice", "bob")}
    async with made.serving():
        yield made


@pytest.fixture(params=["v2", "v1"])
def either(fake: FakeCoordinator, request: pytest.FixtureRequest) -> FakeCoordinator:
    """A Coordinator of either version."""
    fake.v1_only = request.param == "v1"
    return fake


async def test_status_and_manifest(either: FakeCoordinator) -> None:
    client = client_of(either, None)
    assert (await client.status()).code == 2
    with pytest.raises(RequestRefused, match="requested value not set"):
        await client.manifest()
    either.recovery_secrets = {"k": "c2VjcmV0"}
    assert await client.set_manifest(MANIFEST) == {"k": "c2VjcmV0"}
    assert either.posts == [MANIFEST]
    found = await client.manifest()
    assert (found.raw, found.fingerprint) == (MANIFEST, hashlib.sha256(MANIFEST).hexdigest())
    with pytest.raises(RequestRefused, match="server is not in expected state"):
        await client.set_manifest(MANIFEST)


async def test_an_expected_manifest_is_in_force_or_not_trusted(fake: FakeCoordinator) -> None:
    client, fake.manifest = client_of(fake, None), MANIFEST
    assert (await client.verify_manifest(MANIFEST)).raw == MANIFEST
    assert (await client.verify_manifest(hashlib.sha256(MANIFEST).hexdigest().upper())).raw == MANIFEST
    with pytest.raises(NotTrusted, match="another manifest is in force"):
        await client.verify_manifest(MANIFEST + b" ")


async def test_the_log_is_one_text_per_entry(either: FakeCoordinator) -> None:
    either.users.raised("alice", "app", 3)
    either.users.raised("bob", "app", 4)
    assert await client_of(either, None).manifest_log() == tuple(either.users.log)


async def test_an_update_waits_for_all_and_can_be_cancelled(either: FakeCoordinator) -> None:
    alice, bob = client_of(either), client_of(either, "bob")
    either.users.required = 2
    started = await alice.update_apply(MANIFEST)
    # Version 1 does not say how many are missing.
    assert started.missing_acknowledgments == (0 if either.v1_only else 1)
    pending = await bob.update_get()
    assert (pending.raw, pending.missing_users) == (MANIFEST, ("bob",))
    assert pending.message == "1 user still needs to acknowledge the update manifest"
    again = await alice.update_acknowledge(MANIFEST)
    assert (again.missing_acknowledgments, again.missing_users) == (1, ("bob",))
    with pytest.raises(RequestRefused, match="provided manifest does not match the pending manifest"):
        await bob.update_acknowledge(MANIFEST + b" ")
    assert (await bob.update_acknowledge(MANIFEST)).missing_acknowledgments == 0
    assert either.users.applied == [MANIFEST]
    await alice.update_apply(MANIFEST)
    assert await bob.update_cancel() == "Update successfully cancelled"
    with pytest.raises(RequestRefused, match="404 Not Found: error: no update in progress"):
        await bob.update_get()


async def test_an_update_of_the_recovery_keys_gives_out_secrets_once(fake: FakeCoordinator) -> None:
    fake.users.recovery_secrets = {"k": "c2VjcmV0"}
    assert (await client_of(fake).update_apply(MANIFEST)).recovery_secrets == {"k": "c2VjcmV0"}


async def test_secrets_are_read_and_written(either: FakeCoordinator) -> None:
    certificate = {"Type": "cert-ecdsa", "Size": 256, "Shared": True, "UserDefined": False, "ValidFor": 7}
    either.users.secrets = {
        "a b&c": {"Type": "plain", "Size": 0, "Shared": False, "UserDefined": True, "Cert": None, "ValidFor": 0}
        | {"Private": None, "Public": None},
        "cert": certificate | {"Cert": "Y2VydA==", "Private": "cHJpdg==", "Public": "cHVi"},
    }
    client = client_of(either)
    found = await client.secret_get(["a b&c", "cert"])
    assert (found["a b&c"].kind, found["a b&c"].private, found["a b&c"].certificate) == (SecretKind.PLAIN, b"", None)
    cert = found["cert"]
    assert (cert.certificate, cert.private, cert.public, cert.size, cert.valid_for) == (
        b"cert",
        b"priv",
        b"pub",
        256,
        7,
    )
    assert "priv" not in repr(cert)
    await client.secret_set({"a b&c": NewSecret(key=b"new"), "cert": NewSecret(certificate=b"c", private=b"p")})
    assert either.users.uploads == [{"a b&c": {"Key": "bmV3"}, "cert": {"Cert": "Yw==", "Private": "cA=="}}]
    with pytest.raises(RequestRefused, match="which the original manifest does not contain"):
        await client.secret_set({"other": NewSecret(key=b"x")})


@pytest.mark.parametrize("name", [None, "mallory"])
async def test_whoever_is_no_user_is_told_so_in_marblerun_s_words(fake: FakeCoordinator, name: str | None) -> None:
    client = client_of(fake, name)
    text = (
        f"GET https://{fake.address}/api/v2/secrets: authorizing user: "
        "unauthorized user: client certificate did not match any MarbleRun users"
    )
    with pytest.raises(RequestRefused) as caught:
        await client.secret_get(["a"])
    assert (str(caught.value), caught.value.status) == (text, 401)


async def test_recovery_takes_every_owner_s_secret(fake: FakeCoordinator) -> None:
    fake.recovery.needed, fake.recovery.keys = True, [recovery_key(n).public_key() for n in (0, 1)]
    client = client_of(fake, None)
    assert (await client.status()).code == 1
    secrets = [bytes([n]) * 33 for n in (0, 1)]
    encrypted = recovery_key(0).public_key().encrypt(secrets[0], OAEP)
    first = await client.recover(encrypted, PemRecoveryKey(recovery_key(0)))
    assert (first.remaining, "Upload the next secret" in first.message) == (1, True)
    last = await client.recover(secrets[1], PemRecoveryKey.from_pem(key_pem(recovery_key(1))))
    assert (last.remaining, last.message) == (0, "Recovery successful.")
    assert fake.recovery.secrets == secrets


async def test_recovery_with_a_signature_made_elsewhere(fake: FakeCoordinator) -> None:
    fake.recovery.needed, fake.recovery.keys = True, [recovery_key().public_key()]
    client, secret = client_of(fake, None), bytes(32)
    public = await client.recovery_public_key()
    signature = PemRecoveryKey(recovery_key()).sign(secret)
    done = await client.recover_with_signature(encrypt_recovery_secret(public, secret), signature)
    assert (done.remaining, fake.recovery.secrets) == (0, [secret])
    with pytest.raises(RequestRefused, match="server is not in expected state"):
        await client.recovery_public_key()


async def test_recovery_has_no_version_1(fake: FakeCoordinator) -> None:
    fake.v1_only = True
    with pytest.raises(NoSuchCall, match="405 Method Not Allowed: this Coordinator has no such call"):
        await client_of(fake, None).recover_with_signature(b"", b"")
    assert fake.asked == ["POST /api/v2/recover"]


def test_recovery_data_of_another_key_is_refused() -> None:
    data = recovery_key(1).public_key().encrypt(bytes(32), OAEP)
    with pytest.raises(IdentityError, match="was not encrypted for this key"):
        decrypt_recovery_data(data, PemRecoveryKey(recovery_key(0)))
    odd = recovery_key(0).public_key().encrypt(bytes(5), OAEP)
    with pytest.raises(IdentityError, match="holds 5 bytes, a recovery secret has 16, 32 or 33"):
        decrypt_recovery_data(odd, PemRecoveryKey(recovery_key(0)))
    with pytest.raises(IdentityError, match="too long for this key, at most 190"):
        encrypt_recovery_secret(recovery_key(0).public_key(), bytes(191))


def test_keys_that_are_none_are_named() -> None:
    for pem, text in ((b"nothing", "cannot be read"), (user().key, "is no RSA key")):
        with pytest.raises(IdentityError, match=text):
            PemRecoveryKey.from_pem(pem)
    for data in (b"", b"-----BEGIN PUBLIC KEY-----", b"\x30\x00"):
        with pytest.raises(IdentityError, match="want an RSA public key"):
            parse_public_key(data)
    assert parse_public_key(public_pem(recovery_key().public_key())) == recovery_key().public_key()


def test_an_identity_is_a_certificate_with_its_key() -> None:
    alice, bob = user("alice"), user("bob")
    made = identity_from_pem(b"Certificate:\r\n  text of openssl\r\n" + alice.certificate, alice.key)
    assert "PRIVATE" not in repr(made)
    for certificate, key, text in (
        (b"", alice.key, "is no PEM certificate"),
        (alice.certificate, bob.key, "does not belong to the first certificate"),
        (alice.certificate, b"", "expected one unencrypted PKCS#8 PEM block"),
    ):
        with pytest.raises(IdentityError, match=text):
            identity_from_pem(certificate, key)


async def test_a_signed_quote_is_verified(fake: FakeCoordinator) -> None:
    client = client_of(fake, None)
    signed = await client.sign_quote(b"quote")
    verify_signed_quote(fake.ca.root, signed)
    for lie in (replace(signed, tcb_status="Revoked"), replace(signed, quote=b"other")):
        with pytest.raises(BadAnswer, match="is not signed by the Coordinator's root key"):
            verify_signed_quote(fake.ca.root, lie)
    fake.features.signed_instead = b"something else"
    with pytest.raises(BadAnswer, match="is not signed"):
        await client.sign_quote(b"quote")
    with pytest.raises(RequestRefused, match="400 Bad Request: fail: quote verification failed"):
        await client.sign_quote(b"")
    fake.features.sign_quote = False
    with pytest.raises(RequestRefused, match="403 Forbidden: error: SignQuoteEndpoint feature is not enabled"):
        await client.sign_quote(b"quote")


def test_a_quote_is_signed_as_base64_with_its_status() -> None:
    """The reference's vector (MarbleRun's digest)."""
    digest = hashlib.sha256(encoded(b"quote").encode() + b"UpToDate").hexdigest()
    assert digest == "dbd273e560e3ebfc8d29e58eab34ccaa5ae721df0fb8b45c51caeb15d572fa02"


async def test_a_counter_says_what_it_was(fake: FakeCoordinator) -> None:
    client = client_of(fake)
    assert [await client.set_monotonic_counter("c", value) for value in (3, 2, 5)] == [0, 3, 3]
    with pytest.raises(ValueError, match="cannot be negative"):
        await client.set_monotonic_counter("c", -1)
    with pytest.raises(RequestRefused, match="authorizing user: unauthorized marble"):
        await client_of(fake, None).set_monotonic_counter("c", 1)


@pytest.mark.parametrize(
    ("body", "call"),
    [
        (b'{"status":"success","data":{"updateLog":"x"}}', "manifest_log"),
        (b'{"status":"success","data":{"missingAcknowledgments":-1}}', "update_apply"),
        (b'{"status":"success","data":{"missingAcknowledgments":1,"missingUsers":[1]}}', "update_acknowledge"),
        (b'{"status":"success","data":{"manifest":"*","message":"m"}}', "update_get"),
        (b'{"status":"success","data":{"algorithm":"EC","ephemeralPublicKey":""}}', "recovery_public_key"),
        (b'{"status":"success","data":{"algorithm":"RSA","ephemeralPublicKey":"AAAA"}}', "recovery_public_key"),
        (b'{"status":"success","data":{"secrets":[]}}', "secret_get"),
        (b'{"status":"success","data":{"secrets":{"a":{"Type":"x"}}}}', "secret_get"),
        (b'{"status":"success","data":{"secrets":{"a":null}}}', "secret_get"),
        (b'{"status":"success","data":null}', "update_cancel"),
    ],
)
async def test_what_the_api_does_not_promise_is_a_bad_answer(fake: FakeCoordinator, body: bytes, call: str) -> None:
    fake.raw_answer = body
    arguments = {"update_apply": [MANIFEST], "update_acknowledge": [MANIFEST], "secret_get": [["a"]]}.get(call, [])
    with pytest.raises(BadAnswer):
        await getattr(client_of(fake, None), call)(*arguments)
