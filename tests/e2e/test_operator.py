# SPDX-License-Identifier: Apache-2.0
"""The operator's day against a real Coordinator process: verify, set, verify again, take the certificates, restart."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

EXAMPLE = Path(__file__).parents[2] / "manifests" / "examples" / "minimal.json"
PORTS = ("--client-addr", "127.0.0.1:0", "--mesh-addr", "127.0.0.1:0", "--xds-addr", "127.0.0.1:0")


@contextmanager
def coordinator(platform: Path, state: Path) -> Iterator[str]:
    """A simulated Coordinator on free ports; yields the address of its client API."""
    command = [sys.executable, "-m", "marblemesh", "coordinator", "--simulation", "--simulated-platform", str(platform)]
    with subprocess.Popen(
        [*command, *PORTS, "--seal-dir", str(state)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout is not None
            ready = next(line for line in process.stdout if "coordinator ready" in line)
            yield json.loads(ready)["client_addr"]
        finally:
            process.terminate()
            process.communicate(timeout=30)


def test_an_operator_s_day(tmp_path: Path) -> None:
    platform = tmp_path / "platform"
    simulation = ["--simulation", "--simulated-platform", str(platform)]

    def marblemesh(*words: object, trust: list[str] = simulation) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "marblemesh", *map(str, words), *trust]
        environment = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    with coordinator(platform, tmp_path / "state") as address:
        proven = json.loads(marblemesh("verify", address, "-o", "json").stdout)
        assert (proven["claims"]["isv_prod_id"], proven["manifestFingerprint"]) == (3, None)
        assert marblemesh("manifest", "set", EXAMPLE, address).returncode == 0
        assert marblemesh("manifest", "verify", EXAMPLE, address).stdout == "OK\n"
        assert marblemesh("manifest", "get", address, "-o", "copy.json").returncode == 0
        assert (tmp_path / "copy.json").read_bytes() == EXAMPLE.read_bytes()
        assert marblemesh("status", address, trust=[]).stdout.startswith("3: ")
        assert marblemesh("certificate", "root", address).returncode == 0
    with coordinator(platform, tmp_path / "state") as address:
        assert marblemesh("certificate", "root", address).returncode == 0
        assert marblemesh("manifest", "verify", EXAMPLE, address).stdout == "OK\n"
    with coordinator(platform, tmp_path / "another state") as address:
        another = marblemesh("certificate", "root", address)
        assert (another.returncode, "is not the one kept in" in another.stderr) == (1, True)
        stale = marblemesh("status", address, trust=[])
        assert (stale.returncode, "it was set up anew" in stale.stderr) == (1, True)
        assert len(stale.stderr.splitlines()) == 1
