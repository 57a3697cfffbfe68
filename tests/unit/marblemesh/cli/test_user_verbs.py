# SPDX-License-Identifier: Apache-2.0
"""Verbs that want a key: what is wrong with a command line, a file, a token, each in one line."""

from __future__ import annotations

import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.kit.fake_features import OAEP
from tests.kit.manifests import manifest, raw
from tests.kit.operator import Operator, operating
from tests.kit.softhsm import SoftHsm, softhsm, users_on_token
from tests.kit.users import key_pem, public_pem, recovery_key, user

MANIFEST = b'{"Packages": {"app": {"SecurityVersion": 1}}, "Marbles": {}}'
PLAIN = {"Type": "plain", "Size": 0, "Shared": False, "UserDefined": True, "Cert": None, "ValidFor": 0}


@pytest.fixture
async def operator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Operator]:
    async with operating(tmp_path, capsys, monkeypatch) as somebody:
        yield somebody


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([], "who are you? Give --cert and --key, or --pkcs11-config"),
        (["-c", "x"], "--cert and --key belong together"),
        (["-k", "x"], "--cert and --key belong together"),
        (["--pkcs11-config", "x", "-c", "x"], "--pkcs11-config and --cert exclude each other"),
        (["--pkcs11-config", "x", "-k", "x"], "--pkcs11-config and --key exclude each other"),
        (["--pkcs11-key-id", "x"], "--pkcs11-key-id needs --pkcs11-config"),
        (["-c", "x", "-k", "x", "--pkcs11-cert-label", "x"], "--pkcs11-cert-label needs --pkcs11-config"),
        (["--pkcs11-config", "x", "--pkcs11-cert-id", "x"], "needs --pkcs11-key-id or --pkcs11-key-label"),
        (["--pkcs11-config", "x", "--pkcs11-key-id", "x"], "needs --pkcs11-cert-id or --pkcs11-cert-label"),
    ],
)
async def test_flags_that_contradict_each_other_are_wrong_usage(
    operator: Operator, flags: list[str], text: str
) -> None:
    result = await operator.call("secret", "get", "a", operator.fake.address, *flags)
    assert (result.status, len(result.err.splitlines()), operator.fake.asked) == (2, 1, [])
    assert text[0].lower() + text[1:] in result.line


async def test_key_files_that_are_none_are_named(operator: Operator) -> None:
    alice, bob = user("alice"), user("bob")
    cert, key = operator.write("alice.pem", alice.certificate), operator.write("bob.key", bob.key)
    garbage, missing = operator.write("garbage", b"garbage"), operator.home / "missing"
    for certificate, private, text in (
        (cert, key, "private key does not belong to the first certificate"),
        (garbage, key, f"{garbage} and {key}: the client certificate is no PEM certificate"),
        (cert, garbage, "private key cannot be read: expected one unencrypted"),
        (missing, key, "cannot read client certificate"),
    ):
        result = await operator.call("secret", "get", "a", operator.fake.address, "-c", certificate, "-k", private)
        assert (result.status, len(result.err.splitlines())) == (1, 1)
        assert text in result.line
    assert operator.fake.asked == []


async def test_an_update_that_waits_says_for_whom(operator: Operator) -> None:
    operator.fake.users.required = 2
    path = operator.write("new.json", MANIFEST)
    result = await operator.as_user("manifest", "update", "apply", path, operator.fake.address)
    assert result.out == "Update pending: 1 acknowledgement is missing. Not yet: bob\n"
    got = await operator.call("manifest", "update", "get", operator.fake.address, "--missing")
    assert got.out == "1 user still needs to acknowledge the update manifest: bob\n"
    whole = json.loads((await operator.call("manifest", "update", "get", operator.fake.address, "-o", "json")).out)
    assert whole["missingUsers"] == ["bob"]
    other = operator.write("other.json", MANIFEST + b" ")
    result = await operator.as_user("manifest", "update", "acknowledge", other, operator.fake.address, name="bob")
    assert result.line.endswith(
        "500 Internal Server Error: error: provided manifest does not match the pending manifest"
    )
    result = await operator.as_user(
        "manifest", "update", "acknowledge", path, operator.fake.address, "-o", "json", name="bob"
    )
    assert json.loads(result.out) == {"missingAcknowledgments": 0, "missingUsers": []}
    none = await operator.call("manifest", "update", "get", operator.fake.address)
    assert none.line == (
        f"marblemesh: GET https://{operator.fake.address}/api/v2/update-manifest: "
        "404 Not Found: error: no update in progress"
    )


async def test_an_update_that_no_coordinator_would_take_is_not_sent(operator: Operator) -> None:
    """Others would have to acknowledge it before anybody hears that it cannot be applied."""
    marbles = {"web": {"Package": "p", "Parameters": {"Env": {"A": "{{ .Nope }}"}}}}
    for document, problem in (
        (manifest(Marbles=marbles), "can't evaluate field Nope"),
        ({"Marbles": {"web": {}}}, "no allowed packages defined"),
    ):
        path = operator.write("update.json", raw(document))
        result = await operator.as_user("manifest", "update", "apply", path, operator.fake.address)
        assert result.status == 1
        assert problem in result.line
    path = operator.write("packages.json", raw({"Packages": {"p": {"SecurityVersion": "2"}}}))
    result = await operator.as_user("manifest", "update", "apply", path, operator.fake.address)
    assert "want a whole number" in result.line
    assert operator.fake.asked == []
    await operator.as_user("manifest", "update", "apply", path, operator.fake.address, "--no-check")
    assert operator.fake.asked != []


async def test_recovery_secrets_of_an_update_are_never_lost(operator: Operator) -> None:
    operator.fake.users.recovery_secrets = {"k": "c2VjcmV0"}
    path, folder = operator.write("new.json", MANIFEST), operator.home / "no" / "dir"
    result = await operator.as_user("manifest", "update", "apply", path, operator.fake.address, "-r", folder)
    assert (result.status, json.loads(result.out.splitlines()[1])) == (1, {"RecoverySecrets": {"k": "c2VjcmV0"}})
    assert "the update is applied, and the recovery secrets are printed on stdout instead" in result.line


async def test_secrets_are_printed_or_written_for_their_reader_alone(operator: Operator) -> None:
    operator.fake.users.secrets = {"unset": PLAIN | {"Private": None, "Public": None}}
    operator.fake.users.secrets["key"] = PLAIN | {
        "Type": "symmetric-key",
        "Size": 128,
        "Private": "a2V5",
        "Public": "a2V5",
    }
    result = await operator.as_user("secret", "get", "unset", "key", operator.fake.address)
    assert [line.split() for line in result.out.splitlines()] == [
        ["Name:", "unset"],
        ["Type:", "plain"],
        ["UserDefined:", "yes"],
        ["Key:", "not", "set"],
        ["Name:", "key"],
        ["Type:", "symmetric-key"],
        ["UserDefined:", "yes"],
        ["Size:", "128", "bits"],
        ["Key:", "a2V5"],
    ]
    path = operator.home / "secrets.json"
    result = await operator.as_user("secret", "get", "key", operator.fake.address, "-o", path)
    assert (result.out, stat.S_IMODE(path.stat().st_mode)) == ("", 0o600)
    assert json.loads(path.read_bytes()) == {"key": operator.fake.users.secrets["key"]}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"{", "no JSON (for a certificate in PEM give --from-pem NAME)"),
        (b"{}", "want {"),
        (b"[]", "want {"),
        (b'{"a": "eA=="}', "'a': want an object with Key"),
        (b'{"a": {}}', "'a': want an object with Key"),
        (b'{"a": {"Key": "not base64!"}}', "Key is not base64"),
        (b'{"a": {"Key": 1}}', "Key is not base64"),
        (b'{"a": {"Public": "eA=="}}', "unknown member 'Public'"),
        (b'{"a": {"Key": "eA==", "Cert": "eA=="}}', "want either Key, or Cert"),
        (b'{"a": {"Private": "eA=="}}', "want either Key, or Cert"),
    ],
)
async def test_a_bad_secrets_file_is_one_line(operator: Operator, content: bytes, text: str) -> None:
    path = operator.write("secrets.json", content)
    result = await operator.as_user("secret", "set", path, operator.fake.address)
    assert (result.status, len(result.err.splitlines()), operator.fake.asked) == (1, 1, [])
    assert text in result.line
    assert "not base64!" not in result.line


async def test_a_bad_pem_is_one_line(operator: Operator) -> None:
    alice, bob = user("alice"), user("bob")
    for content, text in (
        (b"garbage", "holds no PEM certificate"),
        (alice.certificate + bob.key, "does not belong to the first certificate there"),
        (alice.certificate + b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----", "cannot be read"),
    ):
        path = operator.write("x.pem", content)
        result = await operator.as_user("secret", "set", path, operator.fake.address, "--from-pem", "tls")
        assert (result.status, len(result.err.splitlines())) == (1, 1)
        assert text in result.line


async def test_recovery_wants_the_right_key_and_file(operator: Operator) -> None:
    operator.fake.recovery.needed, operator.fake.recovery.keys = True, [recovery_key().public_key()]
    encrypted = operator.write("secret", recovery_key().public_key().encrypt(bytes(32), OAEP))
    right, other = operator.write("right", key_pem(recovery_key(0))), operator.write("other", key_pem(recovery_key(1)))
    wrapped = operator.write("wrapped.json", b'{"RecoverySecrets": {"k": "c2VjcmV0"}}')
    for file, flags, text in (
        (encrypted, (), "this takes your recovery key: give --key FILE"),
        (encrypted, ("-k", other), "was not encrypted for this key"),
        (encrypted, ("-k", encrypted), "the recovery key cannot be read"),
        (encrypted, ("-k", operator.write("ec", user().key)), "is no RSA key"),
        (wrapped, ("-k", right), "is JSON: want one secret of it alone, decoded"),
    ):
        result = await operator.call("recover", file, operator.fake.address, *flags)
        assert (result.status, operator.fake.recovery.secrets) == (1, [])
        assert text in result.line
    result = await operator.call("recover", encrypted, operator.fake.address, "-k", right, "--pkcs11-config", right)
    assert (result.status, "exclude each other" in result.line) == (2, True)
    done = await operator.call("recover", encrypted, operator.fake.address, "-k", right, "-o", "json")
    assert json.loads(done.out) == {"remaining": 0, "message": "Recovery successful."}


async def test_a_coordinator_key_that_is_none_is_named(operator: Operator) -> None:
    secret, garbage = operator.write("secret", bytes(32)), operator.write("garbage", b"garbage")
    verb = ("recover-with-signature", "encrypt-secret", secret, "-o", operator.home / "out")
    result = await operator.call(*verb, "--coordinator-pub-key", garbage, simulation=False)
    assert result.line == f"marblemesh: {garbage}: want an RSA public key: PEM, or PKIX DER"
    good = operator.write("good", public_pem(recovery_key().public_key()))
    result = await operator.call(*verb, "--coordinator-pub-key", good, simulation=False)
    assert (result.status, recovery_key().decrypt((operator.home / "out").read_bytes(), OAEP)) == (0, bytes(32))


@pytest.fixture
def token() -> SoftHsm:
    return softhsm()


@pytest.mark.parametrize("name", ["alice", "bob"])
async def test_a_user_s_key_may_be_on_a_token(operator: Operator, token: SoftHsm, name: str) -> None:
    operator.fake.users.certificates = {who: owner.der for who, owner in users_on_token().items()}
    operator.fake.users.secrets = {"a": PLAIN | {"Private": None, "Public": None}}
    config = operator.write("p11.json", token.config())
    flags = ("--pkcs11-config", config, "--pkcs11-key-id", name, "--pkcs11-cert-label", name)
    assert (await operator.call("secret", "get", "a", operator.fake.address, *flags)).status == 0
    path = operator.write("secrets.json", b'{"a": {"Key": "eA=="}}')
    assert (await operator.call("secret", "set", path, operator.fake.address, *flags)).out == "Secret set\n"
    assert operator.fake.users.uploads == [{"a": {"Key": "eA=="}}]


async def test_a_recovery_key_may_be_on_a_token(operator: Operator, token: SoftHsm) -> None:
    operator.fake.recovery.needed, operator.fake.recovery.keys = True, [recovery_key().public_key()]
    secret = operator.write("secret", recovery_key().public_key().encrypt(bytes(32), OAEP))
    config = operator.write("p11.json", token.config())
    flags = ("--pkcs11-config", config, "--pkcs11-key-label", "recovery")
    assert (await operator.call("recover", secret, operator.fake.address, *flags)).out == "Recovery successful.\n"


async def test_what_is_wrong_with_a_token_is_one_line(operator: Operator, token: SoftHsm) -> None:
    names = ("--pkcs11-key-id", "alice", "--pkcs11-cert-id", "alice")
    for content, text in (
        (b"{}", "p11.json: PKCS#11 config: Path is missing"),
        (token.config(Pin="0000"), "the token refuses the PIN"),
        (token.config(TokenLabel="other"), "no such token"),
    ):
        config = operator.write("p11.json", content)
        result = await operator.call("secret", "get", "a", operator.fake.address, "--pkcs11-config", config, *names)
        assert (result.status, len(result.err.splitlines())) == (1, 1)
        assert text in result.line
