# SPDX-License-Identifier: Apache-2.0
"""The app alone: four programs and nothing but UNIX sockets between them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]


def environment(**sockets: str) -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT)} | sockets


def command(module: str) -> list[str]:
    return [sys.executable, "-m", f"marblemesh.demo.emojivoto.{module}"]


@pytest.fixture
def web_socket(tmp_path: Path) -> Iterator[str]:
    sockets = {name: f"unix:{tmp_path}/{name}.sock" for name in ("emoji", "voting", "web")}
    asks = {"EMOJI": sockets["emoji"], "VOTING": sockets["voting"]}
    with ExitStack() as stack:
        for name, listen in sockets.items():
            app = subprocess.Popen(command(name), env=environment(LISTEN=listen, **asks))
            stack.enter_context(app)
            stack.callback(app.terminate)
            while not (tmp_path / f"{name}.sock").exists():
                assert app.poll() is None
                os.sched_yield()
        yield sockets["web"]


def vote(web: str, votes: int) -> tuple[int, list[dict[str, object]]]:
    env = environment(WEB=web, VOTES=str(votes))
    bot = subprocess.run(command("vote_bot"), env=env, stdout=subprocess.PIPE, text=True, check=False, timeout=60)
    return bot.returncode, [json.loads(line) for line in bot.stdout.splitlines()]


def test_every_vote_is_counted_once(web_socket: str) -> None:
    status, lines = vote(web_socket, 45)
    result = lines[-1]
    board = result["leaderboard"]
    assert (status, result["votes"], result["failures"]) == (0, 45, 0)
    assert isinstance(board, dict)
    assert board["total"] == sum(entry["votes"] for entry in board["leaders"]) == 45
    assert board["leaders"] == sorted(board["leaders"], key=lambda entry: -entry["votes"])
    assert board["leaders"][0]["votes"] > board["leaders"][-1]["votes"]


def test_a_bot_without_a_web_says_so_and_fails(tmp_path: Path) -> None:
    status, lines = vote(f"unix:{tmp_path}/nobody.sock", 3)
    assert status == 1
    assert lines[-1]["failures"] == 1
    assert "nobody.sock" in str(lines[-1]["errors"])


def test_an_address_that_is_none_ends_the_program_in_one_line() -> None:
    env = environment(LISTEN="tcp:127.0.0.1:80")
    app = subprocess.run(command("emoji"), env=env, capture_output=True, text=True, check=False, timeout=60)
    assert app.returncode == 1
    assert app.stderr == "LISTEN is 'tcp:127.0.0.1:80', expected unix:PATH of a UNIX socket\n"


def test_the_app_imports_nothing_of_the_mesh() -> None:
    for path in (ROOT / "marblemesh/demo/emojivoto").glob("*.py"):
        imports = [line for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]
        own = [line for line in imports if "marblemesh" in line]
        assert all(line.startswith("from marblemesh.demo.emojivoto.") for line in own)
        assert not any(name in line for line in imports for name in ("sds", "enclave_proxy", "xds_server", "ssl"))
