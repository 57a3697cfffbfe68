# SPDX-License-Identifier: Apache-2.0
"""The simulated platform's directory: made once, private, crash safe, renewed; and what is said when it is damaged."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from sds.attestation.collateral import CollateralKey, DirectoryCollateral, collateral_key
from sds.attestation.errors import CollateralUnavailable, DeviceUnavailable, Malformed
from sds.attestation.evidence import Evidence
from sds.attestation.simulated import (
    SIMULATED_SIGNER,
    SimulatedEnclave,
    SimulatedPlatform,
    SimulatedTd,
    default_platform_dir,
)
from sds.attestation.simulated.pki import FMSPC
from sds.attestation.tee import Tee
from tests.kit.platform import ENCLAVE, NOW, REPORT_DATA, TRUST_DOMAIN

KEY = CollateralKey(FMSPC, "platform", Tee.SGX)


@pytest.mark.parametrize("code", [ENCLAVE, TRUST_DOMAIN])
async def test_its_quotes_verify_in_another_process_that_opens_the_same_directory(
    tmp_path: Path, code: SimulatedEnclave | SimulatedTd
) -> None:
    attester = SimulatedPlatform.open(tmp_path / "p", NOW)
    relying = SimulatedPlatform.open(tmp_path / "p", NOW)
    evidence = Evidence.parse(attester.issuer(code).issue(REPORT_DATA).to_wire())
    claims = relying.verifier().verify(evidence, await relying.collateral.get(collateral_key(evidence)), NOW)
    assert (claims.report_data, claims.tcb_status, claims.simulated) == (REPORT_DATA, "UpToDate", True)


def test_everything_in_it_is_private(tmp_path: Path) -> None:
    SimulatedPlatform.open(tmp_path / "state" / "p", NOW)
    assert (tmp_path / "state" / "p").stat().st_mode & 0o777 == 0o700
    for path in (tmp_path / "state" / "p").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_a_directory_that_exists_already_is_used(tmp_path: Path) -> None:
    root = SimulatedPlatform.open(tmp_path, NOW).root_der
    assert SimulatedPlatform.open(tmp_path, NOW).root_der == root


def test_processes_that_come_at_once_share_one_platform(tmp_path: Path) -> None:
    program = (
        "import sys, hashlib; from datetime import datetime, UTC; from pathlib import Path;"
        "from sds.attestation.simulated import SimulatedPlatform;"
        "p = SimulatedPlatform.open(Path(sys.argv[1]), datetime.now(UTC));"
        "print(hashlib.sha256(p.root_der).hexdigest())"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "p")], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    roots = [run.communicate(timeout=60)[0] for run in runs]
    assert all(run.returncode == 0 for run in runs)
    assert len(set(roots)) == 1
    assert not list((tmp_path / "p").glob(".*"))


def test_what_a_crash_left_behind_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / ".identity-crashed").mkdir()
    (tmp_path / ".identity-crashed" / "root.pem").write_text("half")
    (tmp_path / ".new-crashed").write_text("half")
    assert SimulatedPlatform.open(tmp_path, NOW).root_der


async def test_its_directory_is_a_collateral_directory(tmp_path: Path) -> None:
    platform = SimulatedPlatform.open(tmp_path, NOW)
    assert await DirectoryCollateral(tmp_path).get(KEY) == await platform.collateral.get(KEY)


@pytest.mark.parametrize(("days", "renewed"), [(0, False), (22, False), (24, True), (400, True), (-1, True)])
async def test_collateral_is_renewed_a_week_before_its_end_and_when_the_clock_went_back(
    tmp_path: Path, days: int, renewed: bool
) -> None:
    first = await SimulatedPlatform.open(tmp_path, NOW).collateral.get(KEY)
    later = NOW + timedelta(days=days)
    platform = SimulatedPlatform.open(tmp_path, later)
    second = await platform.collateral.get(KEY)
    assert (second != first) == renewed
    claims = platform.verifier().verify(platform.issuer(ENCLAVE).issue(REPORT_DATA), second, later)
    assert claims.tcb_status == "UpToDate"


async def test_a_program_that_runs_for_weeks_renews_by_its_clock(tmp_path: Path) -> None:
    now = NOW
    platform = SimulatedPlatform.open(tmp_path, now, clock=lambda: now)
    first = await platform.collateral.get(KEY)
    now += timedelta(days=29)
    assert (await platform.collateral.get(KEY)).next_update > first.next_update


async def test_unreadable_collateral_is_made_anew(tmp_path: Path) -> None:
    SimulatedPlatform.open(tmp_path, NOW)
    (tmp_path / f"{KEY}.json").write_text("{")
    assert (await SimulatedPlatform.open(tmp_path, NOW).collateral.get(KEY)).next_update > NOW


@pytest.mark.parametrize("name", ["root.pem", "root.key", "platform_ca.pem", "pck.pem", "pck.key", "tcb_signing.key"])
@pytest.mark.parametrize("content", [None, b"", b"rubbish", b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_a_damaged_file_is_named_with_the_way_out(tmp_path: Path, name: str, content: bytes | None) -> None:
    SimulatedPlatform.open(tmp_path, NOW)
    file = tmp_path / "identity" / name
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(DeviceUnavailable) as damaged:
        SimulatedPlatform.open(tmp_path, NOW)
    assert f"{file} is damaged" in str(damaged.value)
    assert f"delete {tmp_path}" in str(damaged.value)


def test_parts_of_another_platform_are_damage(tmp_path: Path) -> None:
    ours, other = tmp_path / "a", tmp_path / "b"
    SimulatedPlatform.open(ours, NOW)
    SimulatedPlatform.open(other, NOW)
    (other / "identity" / "pck.key").replace(ours / "identity" / "pck.key")
    with pytest.raises(DeviceUnavailable, match=r"pck\.key is damaged \(it does not belong"):
        SimulatedPlatform.open(ours, NOW)
    (other / "identity" / "pck.pem").replace(ours / "identity" / "pck.pem")
    with pytest.raises(DeviceUnavailable, match=r"pck\.pem is damaged \(it is not issued by this platform"):
        SimulatedPlatform.open(ours, NOW)


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceUnavailable, match=f"cannot use {tmp_path / 'file'}"):
        SimulatedPlatform.open(tmp_path / "file", NOW)


async def test_it_has_no_collateral_for_real_machines(tmp_path: Path) -> None:
    platform = SimulatedPlatform.open(tmp_path, NOW)
    with pytest.raises(CollateralUnavailable, match="real hardware"):
        await platform.collateral.get(CollateralKey(bytes.fromhex("00a067110000"), "processor", Tee.SGX))


def test_report_data_has_64_bytes(tmp_path: Path) -> None:
    platform = SimulatedPlatform.open(tmp_path, NOW)
    for code in (ENCLAVE, TRUST_DOMAIN):
        with pytest.raises(ValueError, match="64 bytes, got 63"):
            platform.issuer(code).issue(bytes(63))


def test_keys_are_in_no_repr(tmp_path: Path) -> None:
    platform = SimulatedPlatform.open(tmp_path, NOW)
    for text in (repr(platform), repr(platform.issuer(ENCLAVE)), repr(platform.collateral)):
        assert "PrivateKey" not in text


@pytest.mark.parametrize(
    ("env", "path"),
    [
        ({"XDG_STATE_HOME": "/s", "HOME": "/h"}, "/s/marblemesh/simulated-platform"),
        ({"HOME": "/h"}, "/h/.local/state/marblemesh/simulated-platform"),
        ({"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/marblemesh/simulated-platform"),
    ],
)
def test_the_default_directory_is_the_users(env: dict[str, str], path: str) -> None:
    assert default_platform_dir(env) == Path(path)


def test_without_a_home_there_is_no_default() -> None:
    with pytest.raises(DeviceUnavailable, match="neither XDG_STATE_HOME nor HOME"):
        default_platform_dir({})


def test_an_enclave_is_described_as_in_a_package() -> None:
    text = json.dumps({"UniqueID": "ab" * 32, "SignerID": "CD" * 32, "ProductID": 3, "SecurityVersion": 4})
    assert SimulatedEnclave.from_json(text) == SimulatedEnclave(b"\xab" * 32, b"\xcd" * 32, 3, 4)
    assert SimulatedEnclave.from_json("{}").signer_id == SIMULATED_SIGNER
    assert SimulatedEnclave.from_json('{"ProductID": 2}').unique_id != SimulatedEnclave.from_json("{}").unique_id
    assert SimulatedEnclave.from_json('{"Debug": true}').debug


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "expected a JSON object"),
        ('{"UniqueId": "00"}', "unknown member 'UniqueId'"),
        ('{"UniqueID": "00"}', "UniqueID has 1 bytes, expected 32"),
        ('{"SignerID": "zz"}', "SignerID is not hex"),
        ('{"ProductID": "1"}', "ProductID is not a whole number"),
        ('{"SecurityVersion": 65536}', "SecurityVersion is 65536"),
        ('{"Debug": 1}', "Debug is neither"),
    ],
)
def test_a_wrong_description_is_refused_by_member(text: str, what: str) -> None:
    with pytest.raises(Malformed, match=what):
        SimulatedEnclave.from_json(text)


def test_a_trust_domains_measurements_have_48_bytes() -> None:
    with pytest.raises(Malformed, match="47 bytes, expected 48"):
        SimulatedTd(bytes(47))
