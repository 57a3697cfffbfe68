# SPDX-License-Identifier: Apache-2.0
"""Whom the state is sealed to: by the manifest's SealMode, by the platform, and how long one data key lasts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag

from tests.kit.coordinator import manifest
from tests.kit.key_owner import key_owner
from tests.kit.outside import Outside
from tests.kit.parties import raising, raw
from tests.kit.recovering import decrypted, owned, owners
from tests.kit.sealed import unseal
from tests.kit.site import Site, site
from xds_server.attestation_choice import Attestation
from xds_server.sealed_key import NoSealing

ENCLAVE: Mapping[str, object] = {"UniqueID": "11" * 32, "SignerID": "22" * 32, "ProductID": 3, "SecurityVersion": 3}
SAME: dict[str, object] = {}
NEWER: dict[str, object] = {"UniqueID": "33" * 32, "SecurityVersion": 4}
OTHER_PRODUCT: dict[str, object] = {"ProductID": 4}
OTHER_SIGNER: dict[str, object] = {"SignerID": "44" * 32}


def enclave(**members: object) -> dict[str, str]:
    """The setting by which a simulated Coordinator is this code."""
    return {"EDG_SIMULATED_ENCLAVE": json.dumps({**ENCLAVE, **members})}


def sealed(mode: str) -> bytes:
    return manifest(Config={"SealMode": mode})


@pytest.mark.parametrize(
    ("mode", "code", "status"),
    [
        ("", SAME, 3),
        ("", NEWER, 3),
        ("ProductKey", SAME, 3),
        ("ProductKey", NEWER, 3),
        ("ProductKey", OTHER_PRODUCT, 1),
        ("ProductKey", OTHER_SIGNER, 1),
        ("UniqueKey", SAME, 3),
        ("UniqueKey", NEWER, 1),
    ],
)
async def test_product_key_opens_for_the_signer_s_product_and_unique_key_for_the_very_same_code(
    tmp_path: Path, mode: str, code: dict[str, object], status: int
) -> None:
    async with site(tmp_path, sealed(mode), **enclave()) as running:
        assert await (await running.restart(**enclave(**code))).status() == status


async def test_disabled_keeps_everything_in_memory(tmp_path: Path) -> None:
    async with site(tmp_path, sealed("Disabled")) as running:
        assert await running.outside.status() == 3
        assert [path.name for path in running.state.iterdir()] == ["lock"]
        assert await (await running.restart()).status() == 2


@pytest.mark.parametrize("mode", ["productkey", "UNIQUEKEY", "disabled", "x"])
async def test_a_mode_is_read_in_its_exact_case(tmp_path: Path, mode: str) -> None:
    async with site(tmp_path) as running:
        answer = await running.outside.set_manifest(sealed(mode))
        assert answer.message.startswith(f"checking manifest: unknown seal mode: {mode}")


async def test_another_mode_takes_effect_with_its_update(tmp_path: Path) -> None:
    """Where MarbleRun waits for the next restart."""
    async with site(tmp_path, raw("alice"), **enclave()) as running:
        assert (await running.outside.update(raw("alice", Config={"SealMode": "UniqueKey"}))).status == 200
        assert await (await running.restart(**enclave(**NEWER))).status() == 1
        assert await (await running.restart(**enclave())).status() == 3


async def test_an_update_to_disabled_takes_the_state_out_of_force(tmp_path: Path) -> None:
    async with site(tmp_path, raw("alice")) as running:
        assert (await running.outside.update(raw("alice", Config={"SealMode": "Disabled"}))).status == 200
        assert await running.outside.status() == 3
        assert await (await running.restart()).status() == 2


async def test_hsm_sealing_which_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    async with site(tmp_path) as running:
        answer = await running.outside.set_manifest(manifest(Config={"FeatureGates": ["AzureHSMSealing"]}))
        assert answer.status == 500
        assert "feature gate AzureHSMSealing is not supported" in answer.message


# --- a platform without sealing keys


def without_keys(attestation: Attestation) -> Attestation:
    """A trust domain has none."""
    return replace(attestation, protection=NoSealing())


async def started(home: Path, raw: bytes) -> tuple[Site, Outside, Mapping[str, str]]:
    running = Site(home, attested=without_keys)
    outside = await running.start()
    answer = await outside.set_manifest(raw)
    return running, outside, answer.data["RecoverySecrets"]


async def test_without_sealing_keys_each_start_needs_the_owners(tmp_path: Path) -> None:
    keys = owners(tmp_path, "a")
    running, _, secrets = await started(tmp_path, owned(keys))
    try:
        assert not (running.state / "sealed_key").exists()
        secret = decrypted(secrets, keys)["a"]
        for _ in range(2):
            outside = await running.restart()
            assert await outside.status() == 1
            assert (await outside.recover(secret, keys["a"].sign(secret))).data["remaining"] == 0
    finally:
        await running.stop()


async def test_without_sealing_keys_and_owners_nothing_is_written(tmp_path: Path) -> None:
    running, _, _ = await started(tmp_path, manifest())
    try:
        assert not (running.state / "sealed_data").exists()
        assert await (await running.restart()).status() == 2
    finally:
        await running.stop()


# --- the data key


UPDATES: dict[str, tuple[Callable[[str], bytes], bool]] = {
    "a package update": (lambda pem: raising(app=3), True),
    "a full update": (lambda pem: raw("alice", RecoveryKeys={"a": pem}, TLS={}), True),
    "with RotateRootSecret": (
        lambda pem: raw("alice", RecoveryKeys={"a": pem}, Config={"RotateRootSecret": True}),
        True,
    ),
    "the same key by another name": (lambda pem: raw("alice", RecoveryKeys={"b": pem}), False),
    "one more key": (lambda pem: raw("alice", RecoveryKeys={"a": pem, "b": pem}), False),
    "no keys": (lambda pem: raw("alice"), False),
}


@pytest.mark.parametrize("name", UPDATES)
async def test_the_data_key_lasts_until_an_update_changes_the_recovery_keys(tmp_path: Path, name: str) -> None:
    owner = key_owner(tmp_path)
    make, same = UPDATES[name]
    async with site(tmp_path) as running:
        answer = await running.outside.set_manifest(raw("alice", RecoveryKeys={"a": owner.pem}))
        dek = owner.decrypt(answer.data["RecoverySecrets"]["a"])
        assert (await running.outside.update(make(owner.pem), "dave" if "package" in name else "alice")).status == 200
        if same:
            assert unseal(running.file(), dek)["state"] == b"3"
        else:
            with pytest.raises(InvalidTag):
                unseal(running.file(), dek)
