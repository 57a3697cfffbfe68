# SPDX-License-Identifier: Apache-2.0
"""A Python program in the worker's process behaves as it would under `python`: arguments, ends, signals, processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TELL = "import os,signal,time\nos.kill(os.getpid(), signal.{0})\ntime.sleep(20)"


def run(*command: str, **settings: object) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "tests.kit.fused_lab", json.dumps(settings), *command]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=30)


def code(text: str, **settings: object) -> subprocess.CompletedProcess[str]:
    return run("python", "-c", text, **settings)


def told(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What the app has printed, and how it ended."""
    return [*done.stdout.splitlines(), f"{done.returncode}"]


def test_arguments_paths_environment_and_main_are_as_under_python(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/found.py").write_text("WHERE = 'PYTHONPATH'")
    (tmp_path / "beside.py").write_text("WHERE = 'beside'")
    script = tmp_path / "app.py"
    script.write_text(
        "import __main__, beside, found, os, pickle, sys\n"
        "class Thing: pass\n"
        "pickle.loads(pickle.dumps(Thing()))\n"
        "print(__name__, __file__ == sys.argv[0], __main__.Thing is Thing, sys.argv[1:])\n"
        "print(beside.WHERE, found.WHERE, os.environ['COLOUR'], 'EDG' in str(os.environ))\n"
    )
    done = run("python", "-u", str(script), "-x", "a b", env={"PYTHONPATH": str(tmp_path / "lib"), "COLOUR": "red"})
    assert told(done) == ["__main__ True True ['-x', 'a b']", "beside PYTHONPATH red False", "0"]


def test_modules_and_folders_run_too(tmp_path: Path) -> None:
    (tmp_path / "__main__.py").write_text("import sys; print(__name__, sys.argv[1:]); sys.exit('no good')")
    done = run("python", str(tmp_path), "x")
    assert told(done) == ["__main__ ['x']", "1"]
    assert "no good\n" in done.stderr
    assert "json.tool" in run("python", "-m", "json.tool", "--help").stdout


def test_an_uncaught_exception_is_printed_without_frames_of_the_worker() -> None:
    done = code("def f(): raise ValueError('oops')\nf()")
    assert done.returncode == 1
    assert "ValueError: oops" in done.stderr
    assert 'File "<string>", line 1, in f' in done.stderr
    assert "fused" not in done.stderr.partition("Traceback")[2].partition("oops")[0]


def test_threads_executors_and_exit_hooks_end_before_the_process_in_python_s_order() -> None:
    done = code(
        "import atexit, sys, threading, time\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "say = lambda what: print(what, flush=True)\n"
        "atexit.register(say, 'atexit')\n"
        "threading.Thread(target=lambda: (time.sleep(.1), say('thread'))).start()\n"
        "threading.Thread(target=lambda: time.sleep(60), daemon=True).start()\n"
        "ThreadPoolExecutor(2).submit(lambda: (time.sleep(.3), say('executor')))\n"
        "say('main'); sys.exit(256 + 8)"
    )
    assert told(done) == ["main", "thread", "executor", "atexit", "8"]


def test_a_signal_that_the_app_does_not_handle_ends_it_with_128_and_its_number() -> None:
    assert code(TELL.format("SIGTERM")).returncode == 128 + 15


def test_ctrl_c_is_a_keyboard_interrupt() -> None:
    done = code(TELL.format("SIGINT"))
    assert done.returncode == 130
    assert "KeyboardInterrupt" in done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "import signal\nsignal.signal(15, lambda *_: (print('told'), exit(4)))\n" + TELL.format("SIGTERM"),
        "import asyncio, os\n"
        "async def main():\n"
        "    told = asyncio.Event()\n"
        "    asyncio.get_running_loop().add_signal_handler(15, told.set)\n"
        "    os.kill(os.getpid(), 15); await told.wait(); print('told')\n"
        "asyncio.run(main()); exit(4)",
        "import asyncio, os, uvloop\n"
        "async def main():\n"
        "    told = asyncio.Event()\n"
        "    asyncio.get_running_loop().add_signal_handler(15, told.set)\n"
        "    os.kill(os.getpid(), 15); await told.wait(); print('told')\n"
        "uvloop.run(main()); exit(4)",
        "import os, signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {15}); os.kill(os.getpid(), 15)\n"
        "signal.sigwait({15}); print('told'); exit(4)",
        "import signal\nsignal.signal(15, lambda *_: print('told'))\nsignal.raise_signal(15); exit(4)",
    ],
    ids=["handler", "asyncio", "uvloop", "sigwait", "raise_signal"],
)
def test_the_app_hears_sigterm_however_it_listens(text: str) -> None:
    assert told(code(text)) == ["told", "4"]


def test_an_app_that_ignores_sigterm_is_ended_after_its_grace() -> None:
    deaf = "import signal\nsignal.signal(15, signal.SIG_IGN)\n" + TELL.format("SIGTERM")
    assert code(deaf, grace=0.1).returncode == 128 + 9


def test_a_hang_up_is_the_app_s_alone() -> None:
    done = code(
        "import os, signal, time\nheard = []\nsignal.signal(1, lambda *_: heard.append(1))\n"
        "os.kill(os.getpid(), 1)\n"
        "while not heard: time.sleep(.01)\n"
        "print('reloaded')"
    )
    assert told(done) == ["reloaded", "0"]


def test_processes_outside_sgx_work_and_get_no_signal_mask() -> None:
    done = code(
        "import os, signal, subprocess, time\n"
        "print(subprocess.run(['sh', '-c', 'kill -TERM $$']).returncode)\n"
        "if (child := os.fork()) == 0:\n"
        "    os.kill(os.getpid(), 15); time.sleep(20)\n"
        "print(os.waitpid(child, 0)[1])\n"
        "if (child := os.fork()) == 0:\n"
        "    os.execv('/bin/true', ['true'])\n"
        "print(os.waitpid(child, 0)[1])"
    )
    assert told(done) == ["-15", "15", "0", "0"]


def test_becoming_another_program_is_refused() -> None:
    done = code("import os\nos.execvp('true', ['true'])")
    assert done.returncode == 1
    assert "execv: a fused app cannot become another program, that would replace the worker too" in done.stderr


def test_the_app_finds_logging_as_in_a_fresh_interpreter_and_cannot_silence_the_worker() -> None:
    done = code(
        "import logging, logging.config, structlog\n"
        "print(logging.getLogger().handlers, logging.getLogger().level, structlog.is_configured(), end=' ')\n"
        "print(structlog.dev.rich.__name__)  # the worker's does without\n"
        "logging.config.dictConfig({'version': 1, 'disable_existing_loggers': True})\n"
        "structlog.configure(processors=[])\n"
    )
    assert told(done) == ["[] 30 False rich", "0"]
    assert '"event": "app ended"' in done.stderr


def test_a_worker_that_was_refused_or_turned_out_decides_the_status() -> None:
    assert told(code("print('bye')", outcome=1)) == ["bye", "1"]


def test_no_code_of_the_app_goes_on_without_its_worker() -> None:
    done = code("import time\ntry: time.sleep(20)\nfinally: print('still here')", fails=True)
    assert told(done) == ["1"]
    assert "the worker cannot go on" in done.stderr
