# SPDX-License-Identifier: Apache-2.0
"""What the owners of recovery keys get when a manifest is set, decrypted by OpenSSL and tried on the file on disk."""

from __future__ import annotations

import base64
import hashlib
import json
from itertools import combinations
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.kit.coordinator import manifest
from tests.kit.key_owner import OAEP, key_owner
from tests.kit.recovering import deployment, owned, owners
from tests.kit.sealed import interpolate, parts, seal, unseal, xor
from tests.kit.site import INSECURE, site
from tests.kit.users import key_pem, recovery_key, user

SHA1 = (*OAEP[:2], "-pkeyopt", "rsa_oaep_md:sha1")
ALL_NEEDED = [("ab", 0), ("abc", 0), ("abc", 3)]
THRESHOLD = [("abc", 2), ("abcd", 3)]

# Any two of the three shares of 00 01 02 … 1f, as HashiCorp Vault makes them.
VECTOR_SECRET = bytes(range(32))
VECTOR = dict(
    zip(
        "abc",
        (
            bytes.fromhex("b7c85d0c61888e810f6f1b3f82f244cd4dcbd38589bf09458b99d5959ab30fbf55"),
            bytes.fromhex("d48275401dbf74591ea1cf4907121b68b989c4e704f6fffd243ee0104259db77fc"),
            bytes.fromhex("251aab478e033c752c97c6601e655b60a1de69a1d2ac92e2964329096e94d2ded1"),
        ),
        strict=True,
    )
)


async def dealt(home: Path, names: str, threshold: int) -> tuple[list[bytes], bytes]:
    """The owners' shares and `sealed_data`."""
    async with deployment(home, names, threshold) as made:
        return list(made.secrets.values()), made.site.file()


async def test_without_recovery_keys_nobody_gets_anything_and_null_is_stored(tmp_path: Path) -> None:
    async with site(tmp_path) as running:
        answer = await running.outside.set_manifest(manifest())
        assert answer.data == {"RecoverySecrets": {}}
        assert parts(running.file())[0] == b"null"


async def test_one_owner_gets_the_data_key_itself_and_null_is_stored(tmp_path: Path) -> None:
    (secret,), file = await dealt(tmp_path, "a", 0)
    assert len(secret) == 32
    assert unseal(file, secret)["state"] == b"3"
    assert parts(file)[0] == b"null"


@pytest.mark.parametrize(("names", "threshold"), ALL_NEEDED)
async def test_if_all_are_needed_the_data_key_is_the_xor_of_32_byte_shares(
    tmp_path: Path, names: str, threshold: int
) -> None:
    shares, file = await dealt(tmp_path, names, threshold)
    assert ({len(share) for share in shares}, len(set(shares))) == ({32}, len(names))
    assert unseal(file, xor(shares))["state"] == b"3"


@pytest.mark.parametrize(("names", "threshold"), THRESHOLD)
async def test_with_a_threshold_any_so_many_33_byte_shares_give_the_data_key(
    tmp_path: Path, names: str, threshold: int
) -> None:
    shares, file = await dealt(tmp_path, names, threshold)
    assert {len(share) for share in shares} == {33}
    for count in range(threshold, len(names) + 1):
        for some in combinations(shares, count):
            assert unseal(file, interpolate(some))["state"] == b"3"


@pytest.mark.parametrize(("names", "threshold"), THRESHOLD)
async def test_fewer_shares_than_the_threshold_give_nothing(tmp_path: Path, names: str, threshold: int) -> None:
    shares, file = await dealt(tmp_path, names, threshold)
    for some in combinations(shares, threshold - 1):
        with pytest.raises(InvalidTag):
            unseal(file, interpolate(some))


@pytest.mark.parametrize(("names", "threshold"), THRESHOLD)
async def test_a_share_ends_with_its_x_which_is_never_zero_and_no_other_s(
    tmp_path: Path, names: str, threshold: int
) -> None:
    xs = [share[-1] for share in (await dealt(tmp_path, names, threshold))[0]]
    assert all(xs)
    assert len(set(xs)) == len(names)


@pytest.mark.parametrize(("names", "threshold"), ALL_NEEDED + THRESHOLD)
async def test_the_sha256_of_each_share_is_stored_in_clear_as_go_writes_a_map(
    tmp_path: Path, names: str, threshold: int
) -> None:
    shares, file = await dealt(tmp_path, names, threshold)
    digests = sorted(hashlib.sha256(share).hexdigest() for share in shares)
    assert parts(file)[0] == json.dumps(dict.fromkeys(digests, True), separators=(",", ":")).encode()


async def test_the_answer_maps_each_recovery_key_s_name_to_its_owner_s_ciphertext(tmp_path: Path) -> None:
    keys = owners(tmp_path, "ba")
    async with site(tmp_path) as running:
        found = (await running.outside.set_manifest(owned(keys))).data["RecoverySecrets"]
    assert list(found) == ["a", "b"]
    assert {len(base64.b64decode(text)) for text in found.values()} == {2048 // 8}
    assert [len(keys[name].decrypt(found[name])) for name in "ab"] == [32, 32]


@pytest.mark.parametrize("wrong", [SHA1, (*OAEP, "-pkeyopt", "rsa_oaep_label:00"), ("-pkeyopt", "rsa_mgf1_md:sha1")])
async def test_a_secret_is_encrypted_by_oaep_with_sha256_twice_and_no_label(
    tmp_path: Path, wrong: tuple[str, ...]
) -> None:
    """OpenSSL decrypts with these parameters everywhere else here; with others it does not."""
    keys = owners(tmp_path, "a")
    async with site(tmp_path) as running:
        found = (await running.outside.set_manifest(owned(keys))).data["RecoverySecrets"]
    flags = wrong if wrong[:2] == OAEP[:2] else (*OAEP, *wrong)
    with pytest.raises(AssertionError, match=r"error|Error"):
        keys["a"].decrypt(found["a"], flags)


async def test_the_most_are_255_shares(tmp_path: Path) -> None:
    owner = key_owner(tmp_path)
    async with site(tmp_path) as running:
        too_many = owned({f"k{n}": owner for n in range(256)}, 2)
        refused = await running.outside.set_manifest(too_many)
        assert (refused.status, refused.message) == (
            500,
            "generating recovery encryption key: 256 recovery keys, at most 255 are possible",
        )
        most = await running.outside.set_manifest(owned({f"k{n}": owner for n in range(255)}, 2))
        secrets = most.data["RecoverySecrets"]
        some = [owner.decrypt(secrets[name]) for name in ("k254", "k0")]
        assert unseal(running.file(), interpolate(some))["state"] == b"3"


# --- keys that are none


def pem_of_curve() -> str:
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


NO_KEYS = {
    "nothing": ("", "given PEM data is not a public key"),
    "no PEM": ("key", "given PEM data is not a public key"),
    "broken": ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "given PEM data is not a public key"),
    "a certificate": (user("alice").certificate.decode(), "given PEM data is not a public key"),
    "a private key": (key_pem(recovery_key()).decode(), "given PEM data is not a public key"),
    "another algorithm": (pem_of_curve(), "unsupported type of public key"),
}


@pytest.mark.parametrize("name", NO_KEYS)
async def test_a_recovery_key_is_a_pem_public_key_of_rsa(tmp_path: Path, name: str) -> None:
    pem, text = NO_KEYS[name]
    async with site(tmp_path) as running:
        answer = await running.outside.set_manifest(manifest(RecoveryKeys={"k": pem}))
        assert (answer.status, answer.message) == (500, f"generating recovery encryption key: recovery key k: {text}")
        assert await running.outside.status() == 2


# --- shares made by others


@pytest.mark.parametrize("names", ["ab", "bc", "ca"])
async def test_shares_of_hashicorp_vault_recover_a_state_under_their_secret(tmp_path: Path, names: str) -> None:
    keys = owners(tmp_path, "abc")
    async with site(tmp_path, owned(keys, 2), **INSECURE) as running:
        await running.stop()
        entries = unseal(running.file(), running.file("sealed_key"))
        clear = {hashlib.sha256(share).hexdigest(): True for share in VECTOR.values()}
        sealed = seal(entries, VECTOR_SECRET, json.dumps(clear).encode())
        (running.state / "sealed_data").write_bytes(sealed)
        (running.state / "sealed_key").unlink()
        outside = await running.start()
        answers = [await outside.recover(VECTOR[name], keys[name].sign(VECTOR[name])) for name in names]
        assert [answer.data["remaining"] for answer in answers] == [2, 0]
        assert running.file("sealed_key") == VECTOR_SECRET
