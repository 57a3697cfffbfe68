# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from enclave_proxy.app_state import AppState
from enclave_proxy.errors import CommandError
from enclave_proxy.relay_config import RelayConfig
from enclave_proxy.restarts import RestartPolicy, Restarts
from enclave_proxy.supervisor import Supervisor
from sds.logs import get_logger

# Ends with as many as it was started times before, remembered in a file.
COUNTING = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); n = p.stat().st_size; p.write_text('x' * (n + 1)); "


@pytest.fixture
def starts(tmp_path: Path) -> Path:
    path = tmp_path / "starts"
    path.touch()
    return path


def supervised(policy: RestartPolicy, code: str, *arguments: str) -> Supervisor:
    restarts = Restarts(policy, lambda: -1.0)  # delays of 0: the floor, and as much less
    return Supervisor(
        command=(sys.executable, "-I", "-S", "-c", code, *arguments),
        env={"PATH": os.defpath},
        restarts=restarts,
        patience=0,
        config=RelayConfig,
        state=AppState(),
        log=get_logger("test"),
    )


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def test_without_a_policy_the_first_status_counts(starts: Path) -> None:
    app = supervised(RestartPolicy.NEVER, COUNTING + "sys.exit(7)", str(starts))
    assert await app.run() == 7
    assert (app.state.starts, app.state.running, app.state.last_status) == (1, False, 7)


async def test_a_failing_app_is_started_again_until_it_succeeds(starts: Path) -> None:
    app = supervised(RestartPolicy.ON_FAILURE, COUNTING + "sys.exit(n < 2)", str(starts))
    assert await app.run() == 0
    assert (app.state.starts, app.state.restart_delay) == (3, None)


async def test_an_app_that_was_told_to_end_is_not_started_again() -> None:
    app = supervised(RestartPolicy.ALWAYS, "import time; time.sleep(60)")
    async with asyncio.TaskGroup() as group:
        status = group.create_task(app.run())
        await until(lambda: app.state.running)
        app.stop(signal.SIGTERM)
    assert await status == 128 + signal.SIGTERM
    assert app.state.starts == 1


async def test_between_two_starts_an_end_comes_at_once_with_the_last_status() -> None:
    app = supervised(RestartPolicy.ALWAYS, "raise SystemExit(4)")
    app.restarts = Restarts(RestartPolicy.ALWAYS, lambda: 1e6)
    async with asyncio.TaskGroup() as group:
        status = group.create_task(app.run())
        await until(lambda: app.state.restart_delay is not None)
        assert "is started again after" in str(app.state.not_ready())
        app.send(signal.SIGHUP)  # nobody there: lost, and no error
        app.stop(signal.SIGTERM)
    assert await status == 4
    assert app.state.starts == 1


async def test_a_kill_ends_an_app_that_ignores_signals() -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    app = supervised(RestartPolicy.ALWAYS, code)
    async with asyncio.TaskGroup() as group:
        status = group.create_task(app.run())
        await until(lambda: app.state.running)
        app.kill()
    assert await status == 128 + signal.SIGKILL


async def test_a_program_that_is_not_there_is_an_error_and_no_restart() -> None:
    app = supervised(RestartPolicy.ALWAYS, "")
    app.command = ("no-such-program",)
    with pytest.raises(CommandError):
        await app.run()
