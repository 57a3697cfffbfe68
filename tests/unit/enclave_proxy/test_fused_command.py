# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import pytest

from enclave_proxy.config import WorkerConfig
from enclave_proxy.errors import CommandError, ConfigError
from enclave_proxy.fused_command import PythonCommand
from enclave_proxy.route_parts import Local
from enclave_proxy.routes import Pushed
from enclave_proxy.worker import Worker
from sds.logs import get_logger

VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"


@pytest.mark.parametrize("program", ["python", "python3", VERSION, sys.executable])
def test_names_of_this_python_are_accepted(program: str) -> None:
    assert PythonCommand.parse([program, "app.py"]) == PythonCommand("script", "app.py")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["app.py", "-m", "x"], PythonCommand("script", "app.py", ("-m", "x"))),
        (["-m", "pkg.mod", "-c"], PythonCommand("module", "pkg.mod", ("-c",))),
        (["-mpkg"], PythonCommand("module", "pkg")),
        (["-c", "pass", "a"], PythonCommand("code", "pass", ("a",))),
        (["-u", "-B", "app.py"], PythonCommand("script", "app.py", (), unbuffered=True, no_bytecode=True)),
        (["-uBm", "pkg"], PythonCommand("module", "pkg", (), unbuffered=True, no_bytecode=True)),
    ],
)
def test_options_end_where_python_s_own_end(words: list[str], expected: PythonCommand) -> None:
    assert PythonCommand.parse(["python", *words]) == expected


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            ["gunicorn", "app"],
            "runs Python programs only, and 'gunicorn' is none: start it as `python -m gunicorn`",
        ),
        (["python3.9", "app.py"], f"in the worker's own Python {VERSION[6:]}, not in python3.9"),
        (
            ["/usr/local/none/python3", "app.py"],
            f"the worker's own Python {sys.executable!r}, not in '/usr/local/none/",
        ),
        (["python", "-O", "app.py"], "`python -O` cannot be had in fused mode, the interpreter runs already"),
        (["python", "-X", "dev", "app.py"], "`python -X` cannot be had in fused mode, only -m, -c, -u and -B can"),
        (["python", "-i", "app.py"], "`python -i` cannot be had in fused mode"),
        (["python", "--version"], "fused mode cannot run `python --version`"),
        (["python", "-"], "fused mode cannot run `python -`"),
        (["python"], "fused mode needs something to run"),
        (["python", "-m"], "`python -m` needs an argument"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(words: list[str], reason: str) -> None:
    with pytest.raises(CommandError) as refused:
        PythonCommand.parse(words)
    assert reason in str(refused.value)


@pytest.mark.parametrize(
    ("flag", "value", "reason"),
    [
        ("concurrency", "2", "worker and app are one process"),
        ("restart", "always", "the app's end is the process's, restart that"),
        ("relay", "off", "nobody would carry the app's sockets"),
    ],
)
def test_settings_that_need_two_processes_are_refused(tmp_path: Path, flag: str, value: str, reason: str) -> None:
    flags = {"marble-type": "web", "fused": "on", flag: value}
    with pytest.raises(ConfigError, match=reason):
        WorkerConfig.load({}, flags, ("python", "app.py"), cwd=tmp_path, runtime_dir=tmp_path)


@pytest.mark.parametrize("host_reads_loopback", [True, False])
def test_a_fused_app_is_closed_in_wherever_the_host_reads_loopback(tmp_path: Path, host_reads_loopback: bool) -> None:
    asked: list[bool] = []

    class Fused:
        def start(self, *_: object, closed: bool, **__: object) -> None:
            asked.append(closed)

    class Session:
        pushed = Pushed(Local(tmp_path, refuse_plain_tcp=host_reads_loopback))
        applied = None

    flags = {"marble-type": "web", "fused": "on"}
    config = WorkerConfig.load({}, flags, ("python", "app.py"), cwd=tmp_path, runtime_dir=tmp_path)
    worker: Any = Worker(config, {}, get_logger("test"), fused=cast(Any, Fused()))
    worker._starter(Session())(("python", "app.py"), {})
    assert asked == [host_reads_loopback]
