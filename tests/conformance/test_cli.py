# SPDX-License-Identifier: Apache-2.0
"""The command line as MarbleRun's users know it: verbs, flags, files, calls and texts, apart from Helm's.

A verb here is what somebody types after `marblerun`, with `marblemesh` in its place.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from marblemesh.cli.app import run
from tests.kit.fake_features import OAEP
from tests.kit.operator import Operator, operating
from tests.kit.programs import program
from tests.kit.sigstruct import UNIQUE_ID, elf, modulus, sigstruct
from tests.kit.softhsm import softhsm, users_on_token
from tests.kit.users import key_pem, public_pem, recovery_key, user

PACKAGES = {"app": {"SignerID": "00" * 32, "ProductID": 1, "SecurityVersion": 1}}
MANIFEST = json.dumps({"Packages": PACKAGES, "Marbles": {"m": {"Package": "app"}}}).encode()
FINGERPRINT = hashlib.sha256(MANIFEST).hexdigest()


@pytest.fixture
async def operator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Operator]:
    async with operating(tmp_path, capsys, monkeypatch) as somebody:
        yield somebody


def calls(operator: Operator) -> list[str]:
    """The API calls since the last time, without those that attest."""
    made = [call for call in operator.fake.asked if call != "GET /api/v2/quote"]
    operator.fake.asked.clear()
    return made


def verified_by_openssl(public_key: Path, signature: Path, data: Path) -> str:
    command = [program("openssl"), "dgst", "-sha256", "-verify", public_key, "-signature", signature, data]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# --- flags


@pytest.mark.parametrize(
    "verb",
    [
        "manifest get", "manifest log", "manifest set", "manifest verify", "manifest update apply",
        "manifest update acknowledge", "manifest update cancel", "manifest update get", "certificate root",
        "certificate intermediate", "certificate chain", "secret get", "secret set", "status", "recover",
        "recover-with-signature", "recover-with-signature public-key",
    ],
)  # fmt: skip
def test_every_verb_that_talks_to_a_coordinator_has_the_global_flags(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*verb.split(), "--help"], {"COLUMNS": "200"}) == 0
    text = capsys.readouterr().out
    flags = ("--coordinator-cert", "--era-config", "--insecure", "-i", "--accepted-tcb-statuses")
    for flag in (*flags, "--accepted-advisories", "--nonce", "--save-sgx-quote"):
        assert flag in text


@pytest.mark.parametrize(
    "verb",
    ["manifest update apply", "manifest update acknowledge", "manifest update cancel", "secret get", "secret set"],
)
def test_every_verb_of_a_user_has_the_client_auth_flags(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*verb.split(), "--help"], {}) == 0
    text = capsys.readouterr().out
    files = ("--cert", "-c", "--key", "-k")
    on_token = ("--pkcs11-config", "--pkcs11-key-id", "--pkcs11-key-label", "--pkcs11-cert-id", "--pkcs11-cert-label")
    assert [flag for flag in (*files, *on_token) if flag not in text] == []


# --- manifest


async def test_manifest_set_prints_the_fingerprint_writes_recovery_data_and_saves_the_chain(operator: Operator) -> None:
    operator.fake.recovery_secrets = {"k": "c2VjcmV0"}
    path, data = operator.write("m.json", MANIFEST), operator.home / "recovery.json"
    result = await operator.call("manifest", "set", path, operator.fake.address, "-r", data)
    assert (result.status, f"Manifest fingerprint: {FINGERPRINT}" in result.out) == (0, True)
    assert json.loads(data.read_bytes()) == {"RecoverySecrets": {"k": "c2VjcmV0"}}
    chain = x509.load_pem_x509_certificates((operator.home / "marblerun" / "coordinator-cert.pem").read_bytes())
    assert chain == [operator.fake.ca.intermediate, operator.fake.ca.root]
    assert calls(operator) == ["POST /api/v2/manifest"]


async def test_manifest_get_prints_it_or_writes_it(operator: Operator) -> None:
    operator.fake.manifest = MANIFEST
    assert (await operator.call("manifest", "get", operator.fake.address)).out == MANIFEST.decode() + "\n"
    path = operator.home / "out.json"
    await operator.call("manifest", "get", operator.fake.address, "-o", path)
    assert path.read_bytes() == MANIFEST
    assert set(calls(operator)) == {"GET /api/v2/manifest"}


async def test_manifest_get_s_wraps_it_with_its_signature(operator: Operator) -> None:
    operator.fake.manifest = MANIFEST
    wrapped = json.loads((await operator.call("manifest", "get", operator.fake.address, "--signature")).out)
    assert wrapped == {"ManifestSignature": FINGERPRINT, "Manifest": json.loads(MANIFEST)}


async def test_manifest_get_u_replays_raised_security_versions(operator: Operator) -> None:
    operator.fake.manifest = MANIFEST
    operator.fake.users.raised("alice", "gone", 9)
    operator.fake.users.log.append('{"time":"…","update":"Complete Manifest updated","manifestFingerprint":"…"}')
    operator.fake.users.raised("alice", "app", 2)
    operator.fake.users.raised("alice", "app", 5)
    shown = json.loads((await operator.call("manifest", "get", operator.fake.address, "-u")).out)
    assert shown["Packages"]["app"] == PACKAGES["app"] | {"SecurityVersion": 5}
    assert calls(operator) == ["GET /api/v2/manifest", "GET /api/v2/update"]
    both = json.loads((await operator.call("manifest", "get", operator.fake.address, "-u", "-s")).out)
    assert (both["ManifestSignature"], both["Manifest"]) == (FINGERPRINT, shown)


async def test_manifest_log_prints_one_entry_a_line_and_needs_the_kept_certificate_only(operator: Operator) -> None:
    operator.fake.users.raised("alice", "app", 2)
    operator.fake.users.raised("bob", "app", 3)
    await operator.call("verify", operator.fake.address, "--keep-cert")
    result = await operator.call("manifest", "log", operator.fake.address, simulation=False)
    assert (result.status, result.out.splitlines()) == (0, operator.fake.users.log)
    path = operator.home / "log"
    await operator.call("manifest", "log", operator.fake.address, "-o", path, simulation=False)
    assert path.read_text().splitlines() == operator.fake.users.log
    listed = json.loads((await operator.call("manifest", "log", operator.fake.address, "-o", "json")).out)
    assert [entry["new version"] for entry in listed] == [2, 3]


async def test_manifest_verify_takes_a_file_or_a_hash_prints_ok_and_saves_the_chain(operator: Operator) -> None:
    operator.fake.manifest, path = MANIFEST, operator.write("m.json", MANIFEST)
    for wanted in (path, FINGERPRINT):
        assert (await operator.call("manifest", "verify", wanted, operator.fake.address)).out == "OK\n"
    assert operator.kept.read_bytes() == operator.fake.ca.chain_pem


def test_manifest_signature_is_the_hash_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.json").write_bytes(MANIFEST)
    assert run(["manifest", "signature", str(tmp_path / "m.json")], {}) == 0
    assert capsys.readouterr().out == FINGERPRINT + "\n"


# --- manifest update


async def test_update_apply_acknowledge_get_and_cancel(operator: Operator) -> None:
    address, path = operator.fake.address, operator.write("new.json", MANIFEST)
    operator.fake.users.required = 2
    assert (await operator.as_user("manifest", "update", "apply", path, address)).status == 0
    assert calls(operator) == ["POST /api/v2/update"]
    got = await operator.call("manifest", "update", "get", address, "-o", operator.home / "pending.json")
    assert (got.status, (operator.home / "pending.json").read_bytes()) == (0, MANIFEST)
    missing = await operator.call("manifest", "update", "get", address, "--missing")
    assert missing.out.startswith("1 user still needs to acknowledge the update manifest")
    assert set(calls(operator)) == {"GET /api/v2/update-manifest"}
    assert (await operator.as_user("manifest", "update", "acknowledge", path, address, name="bob")).status == 0
    assert (calls(operator), operator.fake.users.applied) == (["POST /api/v2/update-manifest"], [MANIFEST])
    await operator.as_user("manifest", "update", "apply", path, address)
    cancelled = await operator.as_user("manifest", "update", "cancel", address)
    assert (cancelled.status, cancelled.out) == (0, "Update successfully cancelled\n")
    assert calls(operator)[-1] == "POST /api/v2/update-cancel"


async def test_an_update_s_recovery_data_is_written_as_for_set(operator: Operator) -> None:
    operator.fake.users.recovery_secrets = {"k": "c2VjcmV0"}
    path, data = operator.write("new.json", MANIFEST), operator.home / "recovery.json"
    await operator.as_user("manifest", "update", "apply", path, operator.fake.address, "--recoverydata", data)
    assert json.loads(data.read_bytes()) == {"RecoverySecrets": {"k": "c2VjcmV0"}}


async def test_a_package_update_needs_no_acknowledgement(operator: Operator) -> None:
    path = operator.write("raise.json", b'{"Packages": {"app": {"SecurityVersion": 4}}}')
    result = await operator.as_user("manifest", "update", "apply", path, operator.fake.address)
    assert (result.out, '"new version":4' in operator.fake.users.log[0]) == ("Update applied\n", True)


# --- certificates, status


async def test_certificates_have_marblerun_s_file_names(operator: Operator) -> None:
    await operator.call("verify", operator.fake.address, "--keep-cert")
    for which, name in (("root", "RootCA"), ("intermediate", "IntermediateCA"), ("chain", "ChainCA")):
        assert (await operator.call("certificate", which, operator.fake.address)).status == 0
        assert (operator.here / f"marblerun{name}.crt").is_file()


async def test_status_is_code_and_message(operator: Operator) -> None:
    result = await operator.call("status", operator.fake.address)
    assert result.out == "2: Coordinator is ready to accept a manifest.\n"


# --- secrets


async def test_secret_get_and_set(operator: Operator) -> None:
    value = base64.b64encode(b"value").decode()
    stored = {"Type": "plain", "Size": 0, "Shared": False, "UserDefined": True, "Cert": None, "ValidFor": 0}
    operator.fake.users.secrets = {"a": stored | {"Private": value, "Public": value}}
    address = operator.fake.address
    shown = json.loads((await operator.as_user("secret", "get", "a", address, "-o", "json")).out)
    assert shown == operator.fake.users.secrets
    path = operator.write("secrets.json", json.dumps({"a": {"Key": value}}).encode())
    assert (await operator.as_user("secret", "set", path, address)).status == 0
    assert operator.fake.users.uploads == [{"a": {"Key": value}}]
    assert calls(operator) == ["GET /api/v2/secrets", "POST /api/v2/secrets"]


async def test_secret_set_from_pem_uploads_certificate_and_key_in_der(operator: Operator) -> None:
    operator.fake.users.secrets, who = {"tls": {}}, user("carol")
    path = operator.write("tls.pem", who.certificate + who.key)
    assert (await operator.as_user("secret", "set", path, operator.fake.address, "--from-pem", "tls")).status == 0
    private = load_pem_private_key(who.key, None).private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    members = {"Cert": who.der, "Private": private}
    assert operator.fake.users.uploads == [{"tls": {n: base64.b64encode(der).decode() for n, der in members.items()}}]


async def test_a_stranger_is_told_that_they_are_no_user(operator: Operator) -> None:
    result = await operator.as_user("secret", "get", "a", operator.fake.address, name="mallory")
    assert (result.status, result.line) == (
        1,
        f"marblemesh: GET https://{operator.fake.address}/api/v2/secrets: authorizing user: "
        "unauthorized user: client certificate did not match any MarbleRun users",
    )


async def test_other_errors_have_status_kind_and_message(operator: Operator) -> None:
    result = await operator.call("manifest", "get", operator.fake.address)
    assert result.line == (
        f"marblemesh: GET https://{operator.fake.address}/api/v2/manifest: "
        "500 Internal Server Error: error: requested value not set"
    )


async def test_the_key_may_be_on_a_token_by_id_or_label(operator: Operator) -> None:
    config = operator.write("p11.json", softhsm().config())
    operator.fake.users.certificates = {who: owner.der for who, owner in users_on_token().items()}
    operator.fake.users.required, path = 2, operator.write("new.json", MANIFEST)
    flags = ("--pkcs11-config", config, "--pkcs11-key-id", "alice", "--pkcs11-cert-id", "alice")
    assert (await operator.call("manifest", "update", "apply", path, operator.fake.address, *flags)).status == 0
    flags = ("--pkcs11-config", config, "--pkcs11-key-label", "bob", "--pkcs11-cert-label", "bob")
    result = await operator.call("manifest", "update", "acknowledge", path, operator.fake.address, *flags)
    assert (result.out, operator.fake.users.applied) == ("Update applied\n", [MANIFEST])


# --- recovery


@pytest.mark.parametrize("size", [16, 32, 33])
@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "plain"])
async def test_recover_decrypts_what_is_not_plain_signs_and_posts(
    operator: Operator, size: int, encrypted: bool
) -> None:
    operator.fake.recovery.needed, operator.fake.recovery.keys = True, [recovery_key().public_key()]
    secret = bytes(range(size))
    file = operator.write("secret", recovery_key().public_key().encrypt(secret, OAEP) if encrypted else secret)
    key = operator.write("key.pem", key_pem(recovery_key()))
    result = await operator.call("recover", file, operator.fake.address, "--key", key)
    assert (result.out, operator.fake.recovery.secrets) == ("Recovery successful.\n", [secret])


async def test_recover_says_what_remains(operator: Operator) -> None:
    operator.fake.recovery.needed = True
    operator.fake.recovery.keys = [recovery_key(n).public_key() for n in (0, 1)]
    secret, key = operator.write("secret", bytes(32)), operator.write("key.pem", key_pem(recovery_key()))
    result = await operator.call("recover", secret, operator.fake.address, "-k", key)
    assert result.out == "Secret was processed successfully. Upload the next secret. Remaining secrets: 1\n"


async def test_recovery_by_somebody_else_than_the_owner(operator: Operator) -> None:
    """The Coordinator's key, the owner's ciphertext and signature (checked by openssl), and their delivery."""
    operator.fake.recovery.needed, operator.fake.recovery.keys = True, [recovery_key().public_key()]
    given = operator.write("given", recovery_key().public_key().encrypt(bytes(range(32)), OAEP))
    key, public = operator.write("key.pem", key_pem(recovery_key())), operator.home / "coordinator.pem"
    cipher, signature, verb = operator.home / "cipher", operator.home / "signature", "recover-with-signature"
    assert (await operator.call(verb, "public-key", operator.fake.address, "-o", public)).status == 0
    flags = ("--coordinator-pub-key", public, "-k", key, "-o", cipher)
    assert (await operator.call(verb, "encrypt-secret", given, *flags, simulation=False)).status == 0
    assert (await operator.call(verb, "sign-secret", given, "-k", key, "-o", signature, simulation=False)).status == 0
    plain = operator.write("plain", bytes(range(32)))
    owner = operator.write("owner.pem", public_pem(recovery_key().public_key()))
    assert verified_by_openssl(owner, signature, plain) == "Verified OK\n"
    result = await operator.call(verb, cipher, operator.fake.address, "--signature", signature)
    assert (result.out, operator.fake.recovery.secrets) == ("Recovery successful.\n", [bytes(range(32))])
    assert calls(operator) == ["GET /api/v2/recover/public-key", "POST /api/v2/recover"]


# --- package-info


@pytest.mark.parametrize(
    "data",
    [sigstruct(), elf(bytes(144) + sigstruct()), elf(bytes(88) + sigstruct(), ".note.sgxmeta")],
    ids=["Gramine's .sig", "OpenEnclave's .oeinfo", "the SGX SDK's .note.sgxmeta"],
)
def test_package_info_prints_what_a_package_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes
) -> None:
    path = tmp_path / "package"
    path.write_bytes(data)
    assert run(["package-info", str(path)], {}) == 0
    facts = dict(line.split() for line in capsys.readouterr().out.splitlines())
    signer = hashlib.sha256(modulus()).hexdigest()
    expected = {"UniqueID": UNIQUE_ID.hex(), "SignerID": signer, "ProductID": "7", "SecurityVersion": "3"}
    assert facts == {f"{name}:": value for name, value in expected.items()}
    assert run(["package-info", str(path), "-o", "json"], {}) == 0
    assert json.loads(capsys.readouterr().out) == expected | {"ProductID": 7, "SecurityVersion": 3}


# --- older Coordinators


async def test_a_coordinator_with_version_1_only_is_served_too(operator: Operator) -> None:
    operator.fake.v1_only = True
    address, path = operator.fake.address, operator.write("m.json", MANIFEST)
    await operator.call("manifest", "set", path, address)
    assert (await operator.call("manifest", "verify", path, address)).out == "OK\n"
    assert (await operator.call("status", address)).out.startswith("3: ")
    assert (await operator.as_user("manifest", "update", "apply", path, address)).status == 0
    assert {"POST /manifest", "GET /manifest", "GET /status", "POST /update"} <= set(calls(operator))
