# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from enclave_proxy.child import FORWARDED, Child
from enclave_proxy.errors import CommandError

PYTHON = (sys.executable, "-I", "-S", "-u", "-c")
ENV = {"PATH": os.defpath}


async def start(code: str, *arguments: str, env: dict[str, str] | None = None) -> Child:
    return await Child.start((*PYTHON, textwrap.dedent(code), *arguments), env or ENV)


async def told(fifo: Path) -> str:
    """What the app writes to a FIFO: blocks until it does."""
    return await asyncio.to_thread(fifo.read_text)


def gone(probe: Callable[[], None]) -> None:
    """Returns once the process is no more; whoever adopted it may take a moment to read its status."""
    while True:
        try:
            probe()
        except ProcessLookupError:
            return
        time.sleep(0.001)


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


@pytest.mark.parametrize(("code", "status"), [("", 0), ("raise SystemExit(7)", 7), ("import os; os.abort()", 134)])
async def test_the_exit_status_is_the_apps(code: str, status: int) -> None:
    assert await (await start(code)).wait() == status


async def test_the_app_gets_exactly_its_environment_and_arguments(fifo: Path) -> None:
    code = """
        import os, sys
        open(sys.argv[1], "w").write(f"{sorted(os.environ)} {sys.argv[2:]} {os.getsid(0) == os.getpid()}")
    """
    child = await start(code, str(fifo), "a b", env={"ONLY": "this", "LC_CTYPE": "C.UTF-8"})
    assert await told(fifo) == "['LC_CTYPE', 'ONLY'] ['a b'] True"
    assert await child.wait() == 0


async def test_every_signal_is_passed_on(fifo: Path) -> None:
    code = """
        import os, signal, sys
        numbers = [int(n) for n in sys.argv[2].split(",")]
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        open(sys.argv[1], "w").write("ready")
        seen = sorted(signal.sigwait(numbers) for _ in numbers)
        open(sys.argv[1], "w").write(str(seen == sorted(numbers)))
    """
    child = await start(code, str(fifo), ",".join(str(int(n)) for n in FORWARDED))
    assert await told(fifo) == "ready"
    for number in FORWARDED:
        child.send(number)
    assert await told(fifo) == "True"
    assert await child.wait() == 0


async def test_death_by_signal_is_128_plus_its_number(fifo: Path) -> None:
    child = await start("import sys, time; open(sys.argv[1], 'w').write('ready'); time.sleep(60)", str(fifo))
    await told(fifo)
    child.send(signal.SIGTERM)
    assert await child.wait() == 128 + signal.SIGTERM
    child.send(signal.SIGTERM)  # nobody there any more: no error


async def test_an_app_that_will_not_end_is_killed_with_what_it_started(fifo: Path) -> None:
    code = """
        import os, signal, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            time.sleep(60)
        open(sys.argv[1], "w").write("ready")
        time.sleep(60)
    """
    child = await start(code, str(fifo))
    await told(fifo)
    child.send(signal.SIGTERM)
    assert child.kill()
    assert await child.wait() == 128 + signal.SIGKILL
    await asyncio.to_thread(gone, lambda: os.killpg(child.pid, 0))


@pytest.mark.parametrize("stubborn", [False, True])
async def test_what_an_app_has_left_behind_is_told_to_end_and_killed_if_it_will_not(fifo: Path, stubborn: bool) -> None:
    code = """
        import os, signal, sys, time
        if os.fork() == 0:
            told = lambda *_: os._exit(open(sys.argv[1], "w").write("told") and 0)
            signal.signal(signal.SIGTERM, signal.SIG_IGN if sys.argv[2] == "True" else told)
            open(sys.argv[1], "w").write("ready")
            time.sleep(60)
        time.sleep(60)
    """
    child = await start(code, str(fifo), str(stubborn))
    await told(fifo)
    child.send(signal.SIGTERM)
    assert await child.wait() == 128 + signal.SIGTERM
    async with asyncio.TaskGroup() as group:
        group.create_task(child.end_others(0.1 if stubborn else 10))
        if not stubborn:
            assert await told(fifo) == "told"
    await asyncio.to_thread(gone, lambda: os.killpg(child.pid, 0))
    await child.end_others(10)


async def test_broken_pipes_kill_the_app_as_they_should(fifo: Path) -> None:
    shell = f"grep SigIgn /proc/self/status > {fifo}"
    child = await Child.start(("/bin/sh", "-c", shell), ENV)
    ignored = int((await told(fifo)).split()[1], 16)
    assert not ignored & (1 << (signal.SIGPIPE - 1))
    assert await child.wait() == 0


async def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(CommandError, match="cannot start 'no-such-program': not found"):
        await Child.start(("no-such-program",), ENV)


async def test_a_file_that_is_no_program_ends_with_126(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF nonsense")
    broken.chmod(0o755)
    child = await Child.start((str(broken),), ENV)
    assert await child.wait() == 126
    assert "cannot start" in capfd.readouterr().err


async def test_the_app_dies_with_its_worker(fifo: Path) -> None:
    worker = """
        import asyncio, os, sys
        from enclave_proxy.child import Child
        async def main():
            code = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
            await Child.start((sys.executable, "-I", "-S", "-c", code, sys.argv[1]), {"PATH": os.defpath})
            await asyncio.sleep(60)
        asyncio.run(main())
    """
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", textwrap.dedent(worker), str(fifo))
    app = int(await told(fifo))
    process.kill()
    await process.wait()
    await asyncio.to_thread(gone, lambda: os.kill(app, 0))


async def test_an_app_may_have_as_many_descriptors_as_it_is_told(fifo: Path) -> None:
    code = """
        import resource, sys
        open(sys.argv[1], "w").write(repr(resource.getrlimit(resource.RLIMIT_NOFILE)))
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted, expected in ((None, soft), (77, 77)):
        command = (*PYTHON, textwrap.dedent(code), str(fifo))
        child = await Child.start(command, ENV, descriptors=wanted)
        assert await told(fifo) == repr((expected, hard))
        assert await child.wait() == 0
