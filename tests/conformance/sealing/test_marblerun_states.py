# SPDX-License-Identifier: Apache-2.0
"""States that MarbleRun wrote, older ones too: opened, served, and their Marbles get the keys that they always had.

Each is a state of MarbleRun's build without enclave, made here by the description of its format.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import load_der_private_key

from tests.kit.deployment import b64
from tests.kit.outside import Outside
from tests.kit.parties import raw
from tests.kit.recovering import owned, owners
from tests.kit.sealed import seal, unseal
from tests.kit.site import INSECURE, site

UUID = "11111111-2222-3333-4444-555555555555"
KEY = {"mykey": {"Type": "symmetric-key", "Size": 256}}
ENV = {"NOW": "{{ hex .Secrets.mykey }}", "BEFORE": "{{ hex .Previous.Secrets.mykey }}"}
MARBLE = {"Package": "app", "Parameters": {"Env": ENV}}
MANIFEST = raw("alice", Secrets=KEY, Marbles={"backend": MARBLE, "old": MARBLE | {"DisableSecretBinding": True}})


@asynccontextmanager
async def opened(
    home: Path, *missing: str, dek: bytes | None = None, **changed: bytes
) -> AsyncIterator[tuple[Outside, Mapping[str, bytes]]]:
    """A Coordinator that has opened such a state, and the entries that it found."""
    async with site(home, MANIFEST, **INSECURE) as running:
        await running.stop()
        entries = unseal(running.file(), running.file("sealed_key")) | changed
        entries = {key: value for key, value in entries.items() if key not in missing}
        dek = dek or running.file("sealed_key")
        (running.state / "sealed_data").write_bytes(seal(entries, dek))
        (running.state / "sealed_key").write_bytes(dek)
        yield await running.start(), entries


async def test_it_is_opened_with_its_raw_data_key_and_written_on_in_the_same_form(tmp_path: Path) -> None:
    async with site(tmp_path, MANIFEST, **INSECURE) as running:
        dek = running.file("sealed_key")
        assert len(dek) == 32
        await running.outside.update(raw("alice", TLS={}))
        assert running.file("sealed_key") == dek
        assert unseal(running.file(), dek)["manifest"] == raw("alice", TLS={})


async def test_a_data_key_of_16_bytes_from_before_1_9_opens_it(tmp_path: Path) -> None:
    async with opened(tmp_path, dek=bytes(range(16))) as (outside, _):
        assert (await outside.get("/api/v2/manifest")).data["manifest"] == b64(MANIFEST)
        assert (await outside.update(raw("alice", TLS={}))).status == 200


async def test_a_secret_of_16_bytes_recovers_it(tmp_path: Path) -> None:
    keys, dek = owners(tmp_path, "a"), bytes(range(16))
    async with site(tmp_path, owned(keys), **INSECURE) as running:
        await running.stop()
        entries = unseal(running.file(), running.file("sealed_key"))
        (running.state / "sealed_data").write_bytes(seal(entries, dek))
        (running.state / "sealed_key").unlink()
        outside = await running.start()
        assert await outside.status() == 1
        assert (await outside.recover(dek, keys["a"].sign(dek))).data["remaining"] == 0


@pytest.mark.parametrize(
    ("marble_type", "key"),
    [
        ("backend", "cd57713164d46ad99f09541e88e64301d0573aeacf0b6f953a08aa29014b7334"),
        ("old", "43356dced0202b9372a5c94b08d9559e6a80d88c2afae03e618e344a93ceff2f"),
    ],
    ids=["bound to the type", "DisableSecretBinding"],
)
async def test_a_marble_s_keys_are_derived_from_its_root_secret(tmp_path: Path, marble_type: str, key: str) -> None:
    async with opened(tmp_path, rootSecret=b"\x42" * 32) as (outside, _):
        assert (await outside.activate(marble_type, UUID))["NOW"] == key.encode()


async def test_the_previous_keys_are_derived_from_its_previous_root_secret(tmp_path: Path) -> None:
    async with opened(tmp_path, previousRootSecret=b"\x42" * 32) as (outside, _):
        key = "cd57713164d46ad99f09541e88e64301d0573aeacf0b6f953a08aa29014b7334"
        assert (await outside.activate("backend", UUID))["BEFORE"] == key.encode()


def derived(root_secret: bytes) -> bytes:
    key = HKDF(SHA256(), 32, UUID.encode() + b"mykey", b"backend").derive(root_secret)
    return key.hex().encode()


async def test_without_root_secret_it_is_the_root_key_s_scalar(tmp_path: Path) -> None:
    async with opened(tmp_path, "rootSecret", "previousRootSecret") as (outside, entries):
        key = load_der_private_key(entries["privateKey:coordinatorRootKey"], None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        scalar = key.private_numbers().private_value.to_bytes(48)
        env = await outside.activate("backend", UUID)
        assert (env["NOW"], env["BEFORE"]) == (derived(scalar), derived(scalar))


async def test_without_previous_root_secret_it_is_the_current_one(tmp_path: Path) -> None:
    async with opened(tmp_path, "previousRootSecret", rootSecret=b"\x42" * 32) as (outside, _):
        env = await outside.activate("backend", UUID)
        assert env["NOW"] == env["BEFORE"] == derived(b"\x42" * 32)


async def test_entries_of_a_newer_version_are_no_obstacle(tmp_path: Path) -> None:
    async with opened(tmp_path, somethingNew=b"1") as (outside, _):
        assert await outside.status() == 3
