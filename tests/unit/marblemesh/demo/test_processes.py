# SPDX-License-Identifier: Apache-2.0
"""Children of the demo: watched, explained, reaped."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from marblemesh.demo.errors import DemoError, PortTakenError
from marblemesh.demo.processes import Processes
from marblemesh.demo.topology import Command


def python(tmp_path: Path, code: str, name: str = "child") -> Command:
    return Command(name, (sys.executable, "-c", code), {}, tmp_path)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def never() -> bool:
    return False


async def test_a_process_that_ends_is_named_with_its_status_and_last_words(tmp_path: Path) -> None:
    code = "import sys; sys.stderr.write('one\\ntwo\\n'); sys.exit(3)"
    async with Processes(tmp_path) as processes:
        await processes.start(python(tmp_path, code))
        with pytest.raises(DemoError, match="child ended with status 3") as caught:
            await processes.until(never, "child is not ready", 60)
    assert caught.value.log_lines == ("one", "two")


@pytest.mark.parametrize("said", ["[Errno 98] Address already in use", "cannot bind '127.0.0.1:1': Address in use"])
async def test_a_taken_port_is_told_from_other_ends(tmp_path: Path, said: str) -> None:
    async with Processes(tmp_path) as processes:
        await processes.start(python(tmp_path, f"import sys; sys.exit({said!r})"))
        with pytest.raises(PortTakenError):
            await processes.watch()


async def test_what_does_not_become_ready_in_time_is_explained_with_its_log(tmp_path: Path) -> None:
    async with Processes(tmp_path) as processes:
        await processes.start(
            python(tmp_path, "import sys, time; print('hm', file=sys.stderr, flush=True); time.sleep(99)")
        )

        async def said() -> bool:
            return "hm" in processes["child"].tail()

        await processes.until(said, "child says nothing", 60)
        with pytest.raises(DemoError, match="child is not ready after 0 s") as caught:
            await processes.until(never, "child is not ready", 0)
    assert caught.value.log_lines == ("hm",)


async def test_nothing_is_left_even_of_a_child_that_will_not_end_and_has_children(tmp_path: Path) -> None:
    code = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.fork(); "
        f"open({str(tmp_path)!r} + f'/{{os.getpid()}}.pid', 'x'); time.sleep(99)"
    )
    processes = Processes(tmp_path, grace=0.2)
    async with processes:
        await processes.start(python(tmp_path, code))

        async def both() -> bool:
            return len(recorded(tmp_path)) == 2

        await processes.until(both, "child does not fork", 60)
        pids = recorded(tmp_path)
    async with asyncio.timeout(10):  # SIGKILL was sent; nobody tells when a grandchild has gone
        while any(alive(pid) and not is_zombie(pid) for pid in pids):
            await asyncio.sleep(0.01)


def recorded(directory: Path) -> list[int]:
    return [int(path.stem) for path in directory.glob("*.pid")]


def is_zombie(pid: int) -> bool:
    """A grandchild is reaped by init in its own time."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def test_a_process_that_may_end_is_no_failure(tmp_path: Path) -> None:
    async with Processes(tmp_path) as processes:
        child = await processes.start(python(tmp_path, "raise SystemExit(5)"))
        processes.may_end("child")
        assert await child.wait() == 5
        processes.check()


async def test_a_program_that_is_not_there_says_so_in_its_log(tmp_path: Path) -> None:
    async with Processes(tmp_path) as processes:
        await processes.start(Command("ghost", (str(tmp_path / "ghost"),), {}, tmp_path))
        with pytest.raises(DemoError, match="ghost ended with status 127") as caught:
            await processes.watch()
    assert "ghost" in caught.value.log_lines[0]
