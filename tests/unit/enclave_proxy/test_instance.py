# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import stat
import uuid
from pathlib import Path

import pytest

from enclave_proxy.errors import StartError
from enclave_proxy.instance import RunDirectory, load_or_create_uuid


def test_a_new_instance_gets_a_random_uuid_and_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "state" / "uuid"
    first = load_or_create_uuid(path)
    assert uuid.UUID(first).version == 4
    assert path.read_text() == first  # no newline: MarbleRun's shim refuses one
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_create_uuid(path) == first
    assert list(path.parent.iterdir()) == [path]


def test_a_final_newline_and_upper_case_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "uuid"
    path.write_text("6BA7B810-9DAD-41D1-80B4-00C04FD430C8\n")
    assert load_or_create_uuid(path) == "6ba7b810-9dad-41d1-80b4-00c04fd430c8"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "6ba7b8109dad41d180b400c04fd430c8",
        "6ba7b810-9dad-41d1-80b4-00c04fd430c8\n\n",
        "0" * 8 + "-0000" * 3 + "-" + "0" * 12,
    ],
)
def test_anything_else_is_an_error_and_stays_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "uuid"
    path.write_text(text)
    with pytest.raises(StartError, match=r"holds no UUID .* restore it, or remove it"):
        load_or_create_uuid(path)
    assert path.read_text() == text


def test_a_directory_in_the_way_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=f"cannot read UUID file '{tmp_path}'"):
        load_or_create_uuid(tmp_path)


def test_a_run_directory_has_one_worker_at_a_time(tmp_path: Path) -> None:
    first = RunDirectory.claim(tmp_path / "run")
    with pytest.raises(StartError, match=r"another worker \(process \d+\) uses run directory"):
        RunDirectory.claim(tmp_path / "run")
    first.release()
    RunDirectory.claim(tmp_path / "run").release()


def test_a_run_directory_is_made_private(tmp_path: Path) -> None:
    RunDirectory.claim(tmp_path / "a" / "run").release()
    assert stat.S_IMODE((tmp_path / "a" / "run").stat().st_mode) == 0o700


def test_a_run_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    with pytest.raises(StartError, match="may be written by others"):
        RunDirectory.claim(shared)
