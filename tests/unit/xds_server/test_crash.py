# SPDX-License-Identifier: Apache-2.0
"""The crash test's quick part, the store alone: SIGKILL at every operation; tests/e2e/test_crash.py has the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
# In memory fsync costs nothing, and a process that is killed loses nothing that it has written either way.
MEMORY = Path("/dev/shm")


def test_a_kill_at_any_operation_leaves_the_old_or_the_new_state(tmp_path: Path) -> None:
    folder = MEMORY if MEMORY.is_dir() else tmp_path
    part = ["--part", "store", "--protection", "sealed", "--kills", "10", "--folder", str(folder)]
    command = [sys.executable, "-m", "tests.crash", *part]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "old or new state every time" in done.stdout
