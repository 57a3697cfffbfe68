# SPDX-License-Identifier: Apache-2.0
"""`marblemesh gramine-manifest`: what it refuses, each in a line that says the way out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from marblemesh.cli.app import run

Capture = pytest.CaptureFixture[str]


def refused(capsys: Capture, *arguments: str | Path) -> str:
    assert run(["gramine-manifest", *map(str, arguments)], {}) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()[-1]


@pytest.fixture
def app(tmp_path: Path) -> Path:
    file = tmp_path / "app.py"
    file.write_text("print('hello')\n")
    return file


def test_a_marble_has_a_type(capsys: Capture, app: Path) -> None:
    line = refused(capsys, "fused", "--app", app)
    assert line == "marblemesh: --marble-type is missing: give the Marble's name in the manifest"
    assert "--marble-type is '../web'" in refused(capsys, "fused", "--app", app, "--marble-type", "../web")


def test_a_coordinator_has_no_app(capsys: Capture, app: Path) -> None:
    assert "a Coordinator has no app" in refused(capsys, "coordinator", "--app", app)


def test_a_worker_s_app_is_an_executable_and_a_python_program_is_sent_to_fused(capsys: Capture, app: Path) -> None:
    assert "give --app FILE" in refused(capsys, "worker", "--marble-type", "web")
    line = refused(capsys, "worker", "--marble-type", "web", "--app", app)
    assert line.endswith("is no executable: a Python program goes with 'fused'")


def test_a_fused_app_is_a_file_or_a_module(capsys: Capture, app: Path) -> None:
    assert "either --app FILE or --module NAME" in refused(capsys, "fused", "--marble-type", "web")
    both = ("--app", app, "--module", "json.tool")
    assert "either --app FILE or --module NAME" in refused(capsys, "fused", "--marble-type", "web", *both)


@pytest.mark.parametrize("option", ["--app", "--era-config", "--trust"])
def test_a_file_that_is_not_there_is_named(capsys: Capture, app: Path, option: str) -> None:
    line = refused(capsys, "fused", "--marble-type", "web", "--app", app, option, "/no/such")
    assert line.startswith(f"marblemesh: {option}: there is no file")
    assert "'/no/such'" in line


@pytest.mark.parametrize("size", ["1T", "300M", "128M", "1", "-1G", "1g"])
def test_an_enclave_is_a_power_of_two_and_large_enough_for_python(capsys: Capture, size: str) -> None:
    line = refused(capsys, "coordinator", "--enclave-size", size)
    assert line == f"marblemesh: --enclave-size {size!r} is no power of two from 256M on, such as 512M or 2G"


@pytest.mark.parametrize("entry", ["A", "=x", "A-B=x"])
def test_a_variable_is_a_name_and_a_value(capsys: Capture, app: Path, entry: str) -> None:
    line = refused(capsys, "fused", "--marble-type", "web", "--app", app, "--env", entry)
    assert line == f"marblemesh: --env {entry!r} is not NAME=VALUE"


def test_an_environment_that_is_none_is_named(capsys: Capture, tmp_path: Path) -> None:
    line = refused(capsys, "coordinator", "--venv", tmp_path)
    assert line == f"marblemesh: cannot run '{tmp_path}/bin/python': no such file or directory"


def test_a_python_without_marblemesh_is_named(capsys: Capture, tmp_path: Path) -> None:
    python = shutil.which("python3", path="/usr/bin")
    if python is None:
        pytest.skip("no other Python here")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(python)
    line = refused(capsys, "coordinator", "--venv", tmp_path)
    assert str(tmp_path) in line
