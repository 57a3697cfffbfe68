# SPDX-License-Identifier: Apache-2.0
"""Rules of the house that no linter knows: size budget, licence line, what a program may load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("manifests", "sds", "xds_server", "enclave_proxy", "marblemesh", "bench")
MAX_LINES = 400


def sources(*folders: str) -> list[Path]:
    return [p for folder in folders for p in sorted((ROOT / folder).rglob("*.py")) if not p.name.endswith("_pb2.py")]


def test_every_file_is_one_idea_of_at_most_400_lines() -> None:
    assert [str(p.relative_to(ROOT)) for p in sources(*PACKAGES) if len(p.read_text().splitlines()) > MAX_LINES] == []


def test_every_source_file_names_its_licence_first() -> None:
    wrong = [p for p in sources(*PACKAGES, "tests") if "SPDX-License-Identifier: Apache-2.0" not in p.read_text()[:120]]
    assert [str(p.relative_to(ROOT)) for p in wrong] == []


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("enclave_proxy.__main__", ("xds_server", "manifests", "grpc", "marblemesh.cli")),
        ("marblemesh.cli.__main__", ("xds_server", "enclave_proxy", "grpc")),
        ("xds_server.__main__", ("enclave_proxy", "marblemesh.cli", "marblemesh.demo")),
    ],
)
def test_a_program_loads_no_code_of_another(module: str, forbidden: tuple[str, ...]) -> None:
    """The worker's trusted code base is what it imports: seen in a process of its own, not by reading."""
    code = f"import sys, {module}; print(*sorted(m for m in sys.modules if m in {forbidden!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []
