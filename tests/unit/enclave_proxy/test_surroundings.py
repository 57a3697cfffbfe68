# SPDX-License-Identifier: Apache-2.0
"""Where a worker runs decides what it may do: under a fake SGX environment, a fake TDX guest, and in simulation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from enclave_proxy.config import WorkerConfig
from enclave_proxy.errors import StartError
from enclave_proxy.surroundings import Surroundings, look_around
from sds.attestation.sealing_keys import SealPolicy
from tests.kit.pki import now


def surroundings(tmp_path: Path, **flags: str) -> Surroundings:
    given = {"marble-type": "web", **{name.replace("_", "-"): value for name, value in flags.items()}}
    return look_around(WorkerConfig.load({}, given, (), cwd=tmp_path, runtime_dir=tmp_path), {}, now)


def test_under_sgx_loopback_is_public_and_gramine_gives_the_sealing_keys(tmp_path: Path) -> None:
    found = surroundings(tmp_path, platform=f"gramine:{tmp_path}")
    assert found.loopback_is_public
    assert found.sealing is not None
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "_sgx_mrenclave").write_bytes(b"m" * 16)
    assert len(found.sealing.derive(SealPolicy.UNIQUE_KEY, b"salt", b"info")) == 32


def test_a_tdx_guest_has_a_loopback_of_its_own_and_no_sealing_keys(tmp_path: Path) -> None:
    found = surroundings(tmp_path, platform=f"tdx:{tmp_path}")
    assert not found.loopback_is_public
    assert found.sealing is None


def test_a_simulated_platform_seals_with_keys_of_its_own(tmp_path: Path) -> None:
    found = surroundings(tmp_path, simulation="on", simulated_platform=str(tmp_path / "platform"))
    assert found.sealing is not None
    assert found.sealing.platform == "simulated"


def test_without_a_tee_nothing_is_pretended(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="--simulation"):
        surroundings(tmp_path, platform=f"gramine:{tmp_path}/nowhere")


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        (
            ("--concurrency", "2"),
            "EDG_MARBLE_CONCURRENCY (--concurrency): 2 processes under SGX would be as many enclaves",
        ),
        (
            ("--access-log", "-"),
            "EDG_MARBLE_ACCESS_LOG (--access-log): under SGX the host would read who talks to whom",
        ),
    ],
)
def test_what_sgx_leaves_no_room_for_is_refused_with_the_reason(
    tmp_path: Path, setting: tuple[str, str], reason: str
) -> None:
    places = ("--platform", f"gramine:{tmp_path}", "--run-dir", str(tmp_path / "r"), "--admin-addr", "off")
    command = (sys.executable, "-m", "enclave_proxy", "run", "--marble-type", "web", *setting, *places)
    done = subprocess.run([*command, "--", "true"], capture_output=True, text=True, cwd=tmp_path, env={**ENV})
    assert done.returncode == 2
    assert reason in done.stderr


ENV = {"PATH": os.defpath}
