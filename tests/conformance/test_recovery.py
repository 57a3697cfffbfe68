# SPDX-License-Identifier: Apache-2.0
"""Conformance: recovery by MarbleRun's protocol, OpenSSL being the owners' independent tool; and what we do better."""

from __future__ import annotations

import hashlib
import json
import secrets
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.kit.programs import program
from tests.kit.records import Owner, manifest_bytes, owners, records
from tests.kit.stores import sealed_by
from xds_server.recovery import RecoveryError, RecoverySession, SecretNotDecrypted, new_recovery
from xds_server.store import Loaded, Locked, Store

NAMES = ("alice", "bob", "carol")


class Deployment:
    """A Coordinator whose manifest has recovery keys, and that lost its sealed key."""

    def __init__(self, directory: Path, count: int, threshold: int = 0) -> None:
        self.owners: dict[str, Owner] = dict(zip(NAMES[:count], owners(), strict=False))
        keys = {name: owner.pem for name, owner in self.owners.items()}
        self.new = new_recovery(keys, threshold, secrets.token_bytes)
        config = {"RecoveryThreshold": threshold} if threshold else {}
        self.state = records(manifest_bytes(RecoveryKeys=keys, Config=config))
        with Store.open(directory, sealed_by()) as store:
            store.new_key(self.new.dek, self.new.recovery_data)
            store.commit(self.state)
        (directory / "sealed_key").unlink()
        self.store = Store.open(directory, sealed_by())
        locked = self.store.load()
        assert isinstance(locked, Locked)
        self.session = RecoverySession(locked.recovery_data, self.store.recovery_terms, lambda: 0.0)
        self.secrets = {name: owner.decrypt(self.new.encrypted[name]) for name, owner in self.owners.items()}

    def upload(self, name: str) -> int:
        """What the answer calls `remaining`."""
        secret = self.secrets[name]
        return self.session.offer(secret, self.owners[name].sign(secret)).remaining


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state"


def test_one_owner_has_the_data_key_itself(directory: Path) -> None:
    deployment = Deployment(directory, 1)
    assert deployment.secrets["alice"] == deployment.new.dek
    assert deployment.new.recovery_data == b"null"
    assert deployment.upload("alice") == 0


def test_without_threshold_the_data_key_is_the_xor_of_all_shares(directory: Path) -> None:
    deployment = Deployment(directory, 3)
    total = bytes(a ^ b ^ c for a, b, c in zip(*deployment.secrets.values(), strict=True))
    assert total == deployment.new.dek
    assert [deployment.upload(name) for name in NAMES] == [2, 1, 0]


def test_a_threshold_of_all_is_no_threshold(directory: Path) -> None:
    assert {len(secret) for secret in Deployment(directory, 2, 2).secrets.values()} == {32}


def test_with_a_threshold_each_owner_has_a_shamir_share_of_33_bytes(directory: Path) -> None:
    deployment = Deployment(directory, 3, 2)
    assert {len(secret) for secret in deployment.secrets.values()} == {33}


def test_remaining_counts_all_owners_not_the_threshold(directory: Path) -> None:
    deployment = Deployment(directory, 3, 2)
    assert [deployment.upload(name) for name in ("carol", "alice")] == [2, 0]


def test_what_is_stored_in_clear_maps_the_hash_of_each_share_to_true(directory: Path) -> None:
    deployment = Deployment(directory, 3, 2)
    data = (directory / "sealed_data").read_bytes()
    clear = data[4 : 4 + int.from_bytes(data[:4], "little")]
    assert json.loads(clear) == {hashlib.sha256(one).hexdigest(): True for one in deployment.secrets.values()}


def test_after_recovery_the_state_is_sealed_to_this_machine_again(directory: Path) -> None:
    deployment = Deployment(directory, 1)
    secret = deployment.secrets["alice"]
    dek = deployment.session.offer(secret, deployment.owners["alice"].sign(secret)).dek
    assert dek is not None
    deployment.store.commit(deployment.store.unlock(dek))
    deployment.store.close()
    with Store.open(directory, sealed_by()) as store:
        assert store.load() == Loaded(deployment.state)


def test_openssl_decrypts_signs_and_encrypts_as_owners_do(directory: Path, tmp_path: Path) -> None:
    """OAEP with SHA-256 for hash and MGF1, no label; RSASSA-PKCS1-v1_5 with SHA-256; the ephemeral key in PKIX DER."""
    deployment = Deployment(directory, 1)
    key = deployment.owners["alice"].key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "key.pem").write_bytes(key)
    (tmp_path / "encrypted").write_bytes(deployment.new.encrypted["alice"])
    (tmp_path / "coordinator.der").write_bytes(deployment.session.public_key())
    oaep = "-pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha256 -pkeyopt rsa_mgf1_md:sha256"

    def openssl(command: str) -> None:
        subprocess.run(
            [program("openssl"), *command.split()], cwd=tmp_path, check=True, capture_output=True, timeout=30
        )

    openssl(f"pkeyutl -decrypt -inkey key.pem -in encrypted -out secret {oaep}")
    openssl("dgst -sha256 -sign key.pem -out signature secret")
    openssl(f"pkeyutl -encrypt -pubin -keyform DER -inkey coordinator.der -in secret -out uploaded {oaep}")
    assert (tmp_path / "secret").read_bytes() == deployment.new.dek
    upload = (tmp_path / "uploaded").read_bytes()
    assert deployment.session.offer(upload, (tmp_path / "signature").read_bytes()).remaining == 0


def test_a_ciphertext_before_the_key_was_fetched_is_refused(directory: Path) -> None:
    with pytest.raises(SecretNotDecrypted, match=r"^failed to decrypt recovery secret: ephemeral secret key not set$"):
        Deployment(directory, 1).session.offer(bytes(512), b"")


def test_an_invalid_or_used_share_is_refused(directory: Path) -> None:
    deployment = Deployment(directory, 2)
    deployment.upload("alice")
    for secret in (deployment.secrets["alice"], bytes(32)):
        with pytest.raises(RecoveryError, match=r"^uploaded an invalid or already used secret$"):
            deployment.session.offer(secret, b"")


def test_a_missing_signature_is_refused_by_the_owner_s_name_and_all_upload_again(directory: Path) -> None:
    deployment = Deployment(directory, 2)
    deployment.upload("alice")
    with pytest.raises(RecoveryError, match=r'^no matching recovery key found for recovery public key "bob"$'):
        deployment.session.offer(deployment.secrets["bob"], b"")
    assert [deployment.upload(name) for name in ("bob", "alice")] == [1, 0]


def test_a_stranger_s_signature_is_refused_below_a_full_house_too(directory: Path) -> None:
    deployment = Deployment(directory, 3, 2)
    deployment.upload("alice")
    with pytest.raises(RecoveryError, match=r"^no matching recovery public key found for recovery key$"):
        deployment.session.offer(deployment.secrets["bob"], b"")


def test_a_manifest_without_recovery_keys_cannot_be_recovered(directory: Path) -> None:
    deployment = Deployment(directory, 0)
    with pytest.raises(
        RecoveryError,
        match=r"^recovery keys in manifest do not match the keys used for recovery: expected 0, got 1$",
    ):
        deployment.session.offer(deployment.new.dek, b"")


# --- where MarbleRun has hazards


def test_a_wrong_single_secret_says_so_and_does_not_spoil_the_right_one(directory: Path) -> None:
    """MarbleRun answers 200 "upload the next secret", and the right one fails then."""
    deployment = Deployment(directory, 1)
    with pytest.raises(RecoveryError, match="wrong recovery secret"):
        deployment.session.offer(bytes(32), b"")
    assert deployment.upload("alice") == 0


def test_a_new_manifest_in_recovery_does_not_destroy_the_old_state(directory: Path) -> None:
    """Anybody may set one, by MarbleRun's protocol."""
    deployment = Deployment(directory, 1)
    deployment.store.new_key(bytes(32), b"null")
    deployment.store.commit(records())
    deployment.store.close()
    for file in ("sealed_key", "sealed_data.old"):
        (directory / file).unlink()
    (directory / "sealed_data.kept-1").rename(directory / "sealed_data")
    with Store.open(directory, sealed_by()) as store:
        assert isinstance(store.load(), Locked)
        assert store.unlock(deployment.new.dek) == deployment.state
