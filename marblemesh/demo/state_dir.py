# SPDX-License-Identifier: Apache-2.0
"""The demo's directory: one demo at a time, fresh at the start, only logs left at the end."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from marblemesh.demo.errors import DemoError
from marblemesh.demo.topology import MARBLES, Paths


def default_state_dir(env: Mapping[str, str]) -> Path:
    """`marblemesh/demo` below $XDG_STATE_HOME, by default ~/.local/state."""
    base = env.get("XDG_STATE_HOME") or ""
    # A relative path is invalid and to be ignored (XDG Base Directory Specification, "Basics").
    return (Path(base) if base.startswith("/") else Path.home() / ".local/state") / "marblemesh/demo"


@contextmanager
def state_directory(paths: Paths) -> Iterator[None]:
    """Hold the directory for one demo. Raises DemoError when it cannot be used, or another demo has it.

    The lock is on the directory itself (flock(2)): it ends with its process however that ends, and leaves no file.
    """
    paths.check_socket_lengths()
    held = _take(paths)
    try:
        yield
    finally:
        shutil.rmtree(paths.run, ignore_errors=True)
        os.close(held)


def _take(paths: Paths) -> int:
    """Lock the directory and lay it out; the open descriptor is the lock."""
    held = -1
    try:
        paths.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = os.open(paths.state, os.O_RDONLY | os.O_DIRECTORY)
        _lock(held, paths)
        _make(paths)
    except OSError as error:
        if held >= 0:
            os.close(held)
        raise DemoError(f"cannot use the directory {paths.state}: {error}; give another with --state-dir") from error
    return held


def _lock(held: int, paths: Paths) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = ""
        with suppress(OSError):
            owner = f" (process {(paths.run / 'pid').read_text().strip()})"
        raise DemoError(
            f"a demo is running in {paths.state} already{owner}: end it, or give another directory with --state-dir"
        ) from None


def _make(paths: Paths) -> None:
    # What a demo that was killed hard has left behind.
    shutil.rmtree(paths.run, ignore_errors=True)
    shutil.rmtree(paths.logs, ignore_errors=True)
    for directory in (paths.run, paths.logs, paths.edge, paths.prometheus, *map(paths.marble, MARBLES)):
        directory.mkdir(mode=0o700)
    (paths.run / "pid").write_text(f"{os.getpid()}\n")
