# SPDX-License-Identifier: Apache-2.0
"""`marblemesh demo --once`, as a stranger runs it, with everything that crosses loopback under watch."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests.kit.loopback_capture import LoopbackCapture
from tests.kit.programs import program

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

VOTES = 200
# What a vote, its requests and the answers look like in clear.
BALLOT = b"emojivoto ballot"
MARKERS = (BALLOT, b"POST /api/vote", b"POST /votes", b"GET /emoji", b'"shortcode"', b":doughnut:", b'"leaders"')


@dataclass(frozen=True)
class Run:
    """One run of the demo: what it said, and what was captured meanwhile (None: not permitted here)."""

    status: int
    result: dict[str, Any]
    errors: str
    capture: LoopbackCapture | None
    control_port: int
    state: Path


@contextmanager
def short_directory() -> Iterator[Path]:
    """pytest's own names leave too little room for the paths of UNIX sockets."""
    with tempfile.TemporaryDirectory(prefix="d") as directory:
        yield Path(directory)


def demo(state: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "marblemesh", "demo", "--state-dir", str(state), *options]


def say_in_clear(data: bytes) -> int:
    """Send `data` over loopback as it is, and return the port that it went to."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.sendall(data)
        peer, _ = server.accept()
        with peer:
            assert peer.recv(len(data), socket.MSG_WAITALL) == data
        port: int = server.getsockname()[1]
        return port


def capture() -> LoopbackCapture | None:
    try:
        return LoopbackCapture(MARKERS)
    except PermissionError:
        return None


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with short_directory() as state:
        yield observed_run(state)


def observed_run(state: Path) -> Run:
    watch = capture()
    with watch or nullcontext():
        command = demo(state, "--once", "--votes", str(VOTES), "-o", "json")
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
        control_port = say_in_clear(b"".join(MARKERS))
    result = json.loads(done.stdout) if done.stdout else {}
    return Run(done.returncode, result, done.stderr, watch, control_port, state)


def test_two_hundred_votes_are_counted_while_certificates_rotate(run: Run) -> None:
    result = run.result
    assert run.status == 0, (result, run.errors)
    assert (result["votes"], result["counted"], result["failures"]) == (VOTES, VOTES, 0)
    assert sum(leader["votes"] for leader in result["leaderboard"]) == VOTES
    assert result["rotations"] >= 3
    assert result["envoy_certificate_updates"] >= result["rotations"]


def test_every_marble_was_attested_by_simulated_hardware_and_says_so(run: Run) -> None:
    marbles = {marble["type"]: marble for marble in run.result["marbles"]}
    assert marbles.keys() == {"web", "emoji", "voting", "vote-bot"}
    assert len({marble["measurement"] for marble in marbles.values()}) == 4
    assert all(marble["simulated"] for marble in marbles.values())


def test_strangers_get_no_byte(run: Run) -> None:
    probed = {(probe["stranger"], probe["port"]) for probe in run.result["refusals"]}
    assert {port for _, port in probed} == set(run.result["ports"].values())
    assert len(probed) == 2 * len(run.result["ports"])
    assert all(probe["refused"] for probe in run.result["refusals"])


def test_no_vote_is_on_any_tcp_socket(run: Run) -> None:
    if run.capture is None:
        # Where everything must be tested a missing permission is a failure (scripts and CI set CI).
        assert "CI" not in os.environ, "capturing on lo is not permitted"  # noqa: TID251
        pytest.skip("capturing on lo needs CAP_NET_RAW")
    assert run.capture.dropped == 0
    # The control: had a vote been there in clear, this capture had found it.
    assert run.capture.found == {marker: {run.control_port} for marker in MARKERS}
    # And it has seen the votes pass, enciphered, on each of their ways.
    assert all(run.capture.ciphertext[port] >= VOTES for port in run.result["ports"].values())


def test_only_logs_are_left(run: Run) -> None:
    assert [path.name for path in run.state.iterdir()] == ["logs"]
    assert run.result["logs"] == str(run.state / "logs")
    assert not processes_of(run.state)


def processes_of(state: Path) -> list[str]:
    """The command lines of all processes that have the directory in their command line, environment or as their own."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = b"".join((process / name).read_bytes() for name in ("cmdline", "environ"))
            cwd = os.fsencode((process / "cwd").readlink())
        except OSError:
            continue  # it ended, or is not ours
        if int(process.name) != os.getpid() and os.fsencode(state) in text + cwd:
            found.append((process / "cmdline").read_bytes().decode(errors="replace"))
    return found


@pytest.fixture
def state() -> Iterator[Path]:
    with short_directory() as directory:
        yield directory


@dataclass
class Running:
    """A demo and what it has said."""

    process: subprocess.Popen[str]
    said: str


@pytest.fixture
def running(state: Path) -> Iterator[Running]:
    """A demo that has begun to vote and would go on for ever."""
    command = demo(state, "-o", "json")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        killer = threading.Timer(120, process.kill)
        killer.start()
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if "vote-bot is attested" in line:
                break
        yield Running(process, said)
        killer.cancel()
        process.kill()


def test_prometheus_sees_all_of_a_running_demo_and_ctrl_c_ends_it_and_leaves_nothing(
    running: Running, state: Path
) -> None:
    program("prometheus")
    url = re.search(r"Prometheus scrapes all of it: (http://\S+)", running.said)
    assert url is not None, running.said
    wait_until(lambda: targets(url[1]) == {"up"})
    wait_until(lambda: rules(url[1]) == {"ok"})
    running.process.send_signal(signal.SIGINT)
    out, _ = running.process.communicate(timeout=60)
    assert running.process.returncode == 0
    assert json.loads(out)["ok"]
    assert [path.name for path in state.iterdir()] == ["logs"]
    assert not processes_of(state)


def targets(url: str) -> set[str]:
    """The healths of all that is scraped: Coordinator, workers, Envoys."""
    found = api(url, "targets")["activeTargets"]
    return {target["health"] for target in found} if len(found) == 7 else {"missing"}


def rules(url: str) -> set[str]:
    return {rule["health"] for group in api(url, "rules")["groups"] for rule in group["rules"]}


def api(url: str, path: str) -> dict[str, Any]:
    with urlopen(f"{url}/api/v1/{path}", timeout=10) as reply:
        answer: dict[str, Any] = json.load(reply)
    assert answer["status"] == "success"
    data: dict[str, Any] = answer["data"]
    return data


def wait_until(condition: Callable[[], bool]) -> None:
    """Another process' state has no event to wait for."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "not within 30 s"
        time.sleep(0.2)


def test_a_second_demo_says_who_has_the_directory(running: Running, state: Path) -> None:
    second = subprocess.run(demo(state, "--once"), capture_output=True, text=True, check=False, timeout=60)
    assert second.returncode == 1
    assert f"process {running.process.pid}" in second.stderr
    assert "Traceback" not in second.stderr
