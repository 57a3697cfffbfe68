# SPDX-License-Identifier: Apache-2.0
"""The demo's directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from marblemesh.demo.errors import DemoError
from marblemesh.demo.state_dir import default_state_dir, state_directory
from marblemesh.demo.topology import Paths


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Shorter than pytest's own, which has the test's name in it: UNIX sockets would lie below."""
    with TemporaryDirectory(prefix="mm-") as directory:
        yield Path(directory)


def test_only_the_logs_are_left(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "state")
    with state_directory(paths):
        (paths.logs / "web.log").write_text("x")
        (paths.run / "web" / "uuid").write_text("x")
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == [
        "state",
        "state/logs",
        "state/logs/web.log",
    ]


def test_a_second_demo_is_told_who_has_the_directory(tmp_path: Path) -> None:
    with (
        state_directory(Paths(tmp_path)),
        pytest.raises(DemoError, match=rf"process {os.getpid()}.*--state-dir"),
        state_directory(Paths(tmp_path)),
    ):
        pass


def test_a_demo_that_was_killed_does_not_stop_the_next(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    (paths.run / "web").mkdir(parents=True)
    (paths.run / "web" / "app.sock").touch()
    with state_directory(paths):
        assert not (paths.run / "web" / "app.sock").exists()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DemoError, match=r"file.*--state-dir"), state_directory(Paths(tmp_path / "file" / "x")):
        pass


def test_a_relative_xdg_state_home_is_ignored(tmp_path: Path) -> None:
    assert default_state_dir({"XDG_STATE_HOME": str(tmp_path)}) == tmp_path / "marblemesh/demo"
    assert default_state_dir({"XDG_STATE_HOME": "x"}) == Path.home() / ".local/state/marblemesh/demo"
