# SPDX-License-Identifier: Apache-2.0
"""Sealing keys: to whom a platform gives the same one again."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sds.attestation.errors import DeviceUnavailable
from sds.attestation.sealing_keys import GramineSealingKeys, SealingKeySource, SealPolicy
from sds.attestation.simulated import SimulatedEnclave, SimulatedPlatform

ENCLAVE = SimulatedEnclave.default("test")
BOTH = tuple(SealPolicy)


@pytest.fixture
def gramine(tmp_path: Path) -> Path:
    """Gramine's device, as an enclave sees it."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "_sgx_mrsigner").write_bytes(b"s" * 16)
    (tmp_path / "keys" / "_sgx_mrenclave").write_bytes(b"e" * 16)
    return tmp_path


def platform(directory: Path) -> SimulatedPlatform:
    return SimulatedPlatform.open(directory, datetime.now(UTC))


def key(source: SealingKeySource, policy: SealPolicy = SealPolicy.PRODUCT_KEY) -> bytes:
    return source.derive(policy, b"salt", b"info")


@pytest.mark.parametrize("policy", BOTH)
def test_a_key_is_the_same_again_and_another_for_each_purpose(gramine: Path, policy: SealPolicy) -> None:
    for source in (GramineSealingKeys(gramine), platform(gramine / "p").sealing_keys(ENCLAVE)):
        assert source.derive(policy, b"a", b"b") == source.derive(policy, b"a", b"b")
        keys = {source.derive(policy, salt, info) for salt in (b"a", b"c") for info in (b"b", b"d")}
        assert len(keys) == 4
        assert {len(one) for one in keys} == {32}


def test_the_platform_s_own_key_is_never_given_out(gramine: Path) -> None:
    given = key(GramineSealingKeys(gramine))
    assert b"s" * 16 not in given


def test_gramine_has_one_key_for_the_signer_and_one_for_the_measurement(gramine: Path) -> None:
    before = {policy: key(GramineSealingKeys(gramine), policy) for policy in BOTH}
    assert len(set(before.values())) == 2
    (gramine / "keys" / "_sgx_mrenclave").write_bytes(b"x" * 16)
    after = {policy: key(GramineSealingKeys(gramine), policy) for policy in BOTH}
    assert before[SealPolicy.PRODUCT_KEY] == after[SealPolicy.PRODUCT_KEY]
    assert before[SealPolicy.UNIQUE_KEY] != after[SealPolicy.UNIQUE_KEY]


@pytest.mark.parametrize("content", [b"", b"short", bytes(16), b"x" * 17, b"x" * 1000])
def test_a_key_that_gramine_has_not_set_is_none(gramine: Path, content: bytes) -> None:
    (gramine / "keys" / "_sgx_mrsigner").write_bytes(content)
    with pytest.raises(DeviceUnavailable, match="_sgx_mrsigner has"):
        key(GramineSealingKeys(gramine))


def test_without_gramine_there_is_no_key(tmp_path: Path) -> None:
    with pytest.raises(DeviceUnavailable, match="is this an SGX enclave under Gramine"):
        key(GramineSealingKeys(tmp_path))


@pytest.mark.parametrize(
    ("change", "product", "unique"),
    [
        ({"security_version": 9}, True, True),
        ({"unique_id": bytes(32)}, True, False),
        ({"signer_id": bytes(32)}, False, True),
        ({"product_id": 9}, False, True),
        ({"debug": True}, False, False),
    ],
)
def test_a_simulated_enclave_gets_the_keys_that_sgx_would_give(
    tmp_path: Path, change: dict[str, object], product: bool, unique: bool
) -> None:
    machine = platform(tmp_path)
    one, other = machine.sealing_keys(ENCLAVE), machine.sealing_keys(replace(ENCLAVE, **change))  # type: ignore[arg-type]
    assert (key(one) == key(other)) is product
    assert (key(one, SealPolicy.UNIQUE_KEY) == key(other, SealPolicy.UNIQUE_KEY)) is unique


def test_a_simulated_machine_keeps_its_keys_and_another_has_others(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    first = key(platform(here).sealing_keys(ENCLAVE))
    assert key(platform(here).sealing_keys(ENCLAVE)) == first
    assert key(platform(there).sealing_keys(ENCLAVE)) != first
    assert (here / "sealing.key").stat().st_mode & 0o777 == 0o600


def test_a_damaged_machine_secret_says_so(tmp_path: Path) -> None:
    machine = platform(tmp_path)
    (tmp_path / "sealing.key").write_bytes(b"short")
    with pytest.raises(DeviceUnavailable, match="damaged"):
        machine.sealing_keys(ENCLAVE)


def test_no_key_is_in_any_repr(tmp_path: Path) -> None:
    source = platform(tmp_path).sealing_keys(ENCLAVE)
    assert "machine_secret" not in repr(source)
