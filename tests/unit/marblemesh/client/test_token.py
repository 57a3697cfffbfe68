# SPDX-License-Identifier: Apache-2.0
"""Keys on a PKCS#11 token, against SoftHSM: a client that authenticates with one, and recovery by one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.hashes import SHA256

from marblemesh.client import (
    Client,
    NotTrusted,
    PemRecoveryKey,
    RequestRefused,
    TokenConfig,
    TokenError,
    TokenIdentity,
    TokenObject,
    TokenRecoveryKey,
    Unreachable,
    decrypt_recovery_data,
    encrypt_recovery_secret,
)
from sds.ca import CertificateAuthority
from tests.kit.fake_coordinator import FakeCoordinator
from tests.kit.pki import now
from tests.kit.softhsm import SoftHsm, softhsm, users_on_token
from tests.kit.users import recovery_key


@pytest.fixture
def token() -> SoftHsm:
    return softhsm()


def config(token: SoftHsm, **changes: object) -> TokenConfig:
    return TokenConfig.parse(token.config(**changes))


def identity(token: SoftHsm, name: str, *, key: str | None = None) -> TokenIdentity:
    objects = {"certificate": TokenObject(label=name), "key": TokenObject(id=(key or name).encode())}
    return TokenIdentity(config(token), **objects)


def fake_with_users(directory: Path) -> FakeCoordinator:
    fake = FakeCoordinator(directory)
    fake.users.certificates = {name: owner.der for name, owner in users_on_token().items()}
    fake.users.secrets = {"a": {"Type": "plain", "Size": 0, "ValidFor": 0, "Private": "eA==", "Public": "eA=="}}
    return fake


@pytest.mark.parametrize("name", ["alice", "bob"], ids=["P-256", "RSA"])
async def test_a_key_on_a_token_authenticates_its_user(tmp_path: Path, token: SoftHsm, name: str) -> None:
    async with fake_with_users(tmp_path).serving() as fake:
        client = Client(fake.address, root=fake.ca.root, identity=identity(token, name))
        assert (await client.secret_get(["a"]))["a"].private == b"x"
        with pytest.raises(RequestRefused, match=f"user {name} is not allowed to read one or more secrets of: "):
            await client.secret_get(["b"])


async def test_large_bodies_pass_both_ways(tmp_path: Path, token: SoftHsm) -> None:
    manifest = json.dumps({"Packages": {}, "Marbles": {}, "x": "y" * 3_000_000}).encode()
    async with fake_with_users(tmp_path).serving() as fake:
        fake.users.required = 2
        client = Client(fake.address, root=fake.ca.root, identity=identity(token, "alice"))
        assert (await client.update_apply(manifest)).missing_acknowledgments == 1
        assert (await client.update_get()).raw == manifest


async def test_the_token_signs_nothing_for_another_server(tmp_path: Path, token: SoftHsm) -> None:
    async with fake_with_users(tmp_path).serving() as fake:
        other = CertificateAuthority.create([], [], now())
        client = Client(fake.address, root=other.root, identity=identity(token, "alice"))
        with pytest.raises(NotTrusted, match="does not have the Coordinator certificate"):
            await client.status()


async def test_a_key_that_is_not_the_certificate_s_is_named(tmp_path: Path, token: SoftHsm) -> None:
    async with fake_with_users(tmp_path).serving() as fake:
        client = Client(fake.address, root=fake.ca.root, identity=identity(token, "alice", key="stray"))
        with pytest.raises(TokenError, match="key with id 'stray' does not belong to its certificate"):
            await client.status()


async def test_what_is_no_coordinator_is_named(token: SoftHsm, tmp_path: Path) -> None:
    root = CertificateAuthority.create([], [], now()).root
    who = identity(token, "alice")

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    for handler, text in ((plain, "want the Coordinator's client API"), (silent, r"no answer from .* within 0\.2 s")):
        async with await asyncio.start_server(handler, "127.0.0.1", 0) as server:
            address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            with pytest.raises(Unreachable, match=text):
                await Client(address, root=root, identity=who, timeout=0.2).status()
    with pytest.raises(Unreachable, match="refuses connections"):
        await Client(address, root=root, identity=who).status()


@pytest.mark.parametrize(
    "changes", [{}, {"TokenLabel": None, "TokenSerial": "serial"}, {"TokenLabel": None, "SlotNumber": -1}]
)
def test_a_token_is_chosen_by_label_serial_or_slot(token: SoftHsm, changes: dict[str, object]) -> None:
    known = {"TokenSerial": token.serial, "SlotNumber": token.slot}
    changes = {name: None if value is None else known[name] for name, value in changes.items()}
    who = TokenIdentity(config(token, **changes), certificate=TokenObject(b"alice"), key=TokenObject(b"alice"))
    assert who.chain == (users_on_token()["alice"].der,)


@pytest.mark.parametrize(
    ("changes", "wanted", "text"),
    [
        ({"Pin": "0000"}, TokenObject(b"alice"), "refuses the PIN"),
        ({"Pin": "1"}, TokenObject(b"alice"), "refuses the PIN"),
        ({"Path": "/no/such/module.so"}, TokenObject(b"alice"), "cannot be used: "),
        ({"TokenLabel": "other"}, TokenObject(b"alice"), "no such token; the labels of those it has: 'operator'"),
        ({}, TokenObject(b"carol"), "the token has no certificate with id 'carol'"),
        ({}, TokenObject(b"alice", "bob"), "no certificate with id 'alice' and label 'bob'"),
    ],
)
def test_what_the_token_does_not_have_is_named(
    token: SoftHsm, changes: dict[str, object], wanted: TokenObject, text: str
) -> None:
    with pytest.raises(TokenError, match=text):
        TokenIdentity(config(token, **changes), certificate=wanted, key=wanted)


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ("nobody", "the token has no private key with label 'nobody'"),
        ("twice", "the token has 2 times a private key with label 'twice'"),
        ("alice", "the private key with label 'alice' is of type EC, want RSA"),
    ],
)
def test_a_recovery_key_must_be_one_rsa_key(token: SoftHsm, wanted: str, text: str) -> None:
    with pytest.raises(TokenError, match=text):
        TokenRecoveryKey(config(token), TokenObject(label=wanted)).sign(b"x")


def test_a_token_decrypts_and_signs_a_recovery_secret(token: SoftHsm) -> None:
    key, public = TokenRecoveryKey(config(token), TokenObject(label="recovery")), recovery_key().public_key()
    secret = bytes(range(33))
    assert decrypt_recovery_data(encrypt_recovery_secret(public, secret), key) == secret
    public.verify(key.sign(secret), secret, padding.PKCS1v15(), SHA256())
    assert key.sign(secret) == PemRecoveryKey(recovery_key()).sign(secret)
    for data in (encrypt_recovery_secret(recovery_key(1).public_key(), secret), b"\0" * 256, b"\xff" * 256, b"short"):
        with pytest.raises(TokenError):
            key.decrypt(data)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"{", "no JSON"),
        (b"[]", "want a JSON object"),
        (b'{"Pin": "secret-pin", "TokenLabel": "x"}', "Path is missing"),
        (b'{"Path": "x", "TokenLabel": "x"}', "Pin is missing"),
        (b'{"Path": "x", "Pin": 4321, "TokenLabel": "x"}', "want a text as Pin"),
        (b'{"Path": "x", "Pin": "secret-pin"}', "exactly one of TokenSerial, TokenLabel, SlotNumber"),
        (b'{"Path": "x", "Pin": "secret-pin", "TokenLabel": "a", "SlotNumber": 0}', "exactly one of"),
        (b'{"Path": "x", "Pin": "secret-pin", "SlotNumber": "1"}', "want a number as SlotNumber"),
        (b'{"Path": "x\\u0000", "Pin": "secret-pin", "SlotNumber": 1}', "Path holds a NUL"),
    ],
)
def test_a_bad_config_is_named_without_its_pin(raw: bytes, text: str) -> None:
    with pytest.raises(TokenError, match=text) as caught:
        TokenConfig.parse(raw)
    assert "secret-pin" not in str(caught.value)


def test_config_members_are_read_in_any_case_and_the_pin_is_never_shown() -> None:
    found = TokenConfig.parse(b'{"path": "m.so", "PIN": "secret-pin", "tokenlabel": "", "slotNumber": 3}')
    assert (found.path, found.pin, found.slot_number, found.token_label) == ("m.so", "secret-pin", 3, None)
    assert "secret-pin" not in repr(found)
