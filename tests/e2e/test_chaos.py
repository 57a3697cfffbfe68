# SPDX-License-Identifier: Apache-2.0
"""Ten seconds in which Coordinator, worker, app and network fail under traffic. `python -m tests.soak.chaos` does it
for ten minutes, and says what must hold."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.netns import namespaces_needed

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
SEED = 601
FAULTS = {
    "app hangs", "coordinator killed", "corrupted", "cut", "half-open", "hijacked", "link down", "manifest updated",
    "reset", "worker killed",
}  # fmt: skip


def test_whatever_fails_no_byte_is_wrong_no_stranger_gets_in_and_nothing_hangs_or_is_left_behind() -> None:
    namespaces_needed("nft")
    command = [sys.executable, "-m", "tests.soak.chaos", "--seed", str(SEED), "--seconds", "10", "--mean", "0.6"]
    running = subprocess.Popen(
        [*command, "--marbles", "2", "--connections", "3", "-o", "json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = running.communicate(timeout=110)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
            running.communicate()
    assert running.returncode == 0, f"{out[-6000:]}\n{err[-6000:]}"
    result = json.loads(out)
    assert result["violations"] == []
    assert result["faults"].keys() >= FAULTS
    assert sum(result["verdict"]["clean"].values()) > 0
    assert sum(result["verdict"]["broken"].values()) > 0
    assert {"plain", "self-made", "wrong type", "turned out", "slow"} <= result["knocks"].keys()
