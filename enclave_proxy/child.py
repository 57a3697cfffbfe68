# SPDX-License-Identifier: Apache-2.0
"""The app as the worker's child: started once, told every signal, ended with the worker, its exit status passed on.

The app gets a session of its own, so that Ctrl-C in a terminal reaches it once (through us) and not twice, and so that
killing it takes along whatever it has started. It therefore has no controlling terminal.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from enclave_proxy.errors import CommandError

# What a supervisor or a terminal sends and an app may want to hear. SIGCHLD and SIGPIPE are our own affairs.
FORWARDED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)
# Of these, the ones that mean "end". HUP is "reload" to most servers, so it is only passed on.
ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})

_EXEC_APP = Path(__file__).with_name("exec_app.py")


class Child:
    """A running app. Make it with `start`; await `wait` for its status."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Process id, also of its session and process group."""
        return self._process.pid

    @classmethod
    async def start(cls, command: Sequence[str], env: Mapping[str, str]) -> Self:
        """Start `command` with exactly `env`, standard streams inherited. Raises CommandError if that cannot be."""
        program = shutil.which(command[0], path=env.get("PATH", os.defpath))
        if program is None:
            raise CommandError(f"cannot start {command[0]!r}: not found, or not executable (PATH is the app's own)")
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(_EXEC_APP), str(os.getpid()), program, *command),
                env=dict(env),
                start_new_session=True,
            )
        except OSError as error:
            raise CommandError(f"cannot start {command[0]!r}: {error.strerror}") from error
        return cls(process)

    def send(self, number: signal.Signals) -> None:
        """Pass a signal on, to the app itself only: what its own children should hear is the app's decision."""
        if self._process.returncode is None:
            self._process.send_signal(number)

    async def wait(self) -> int:
        """The exit status as a shell gives it: 0..255, and 128+n for death by signal n."""
        status = await self._process.wait()
        return 128 - status if status < 0 else status

    async def end(self, deadline: float) -> int:
        """Wait up to `deadline` seconds for an app that was told to end; then kill it and all it has started."""
        try:
            async with asyncio.timeout(deadline):
                return await self.wait()
        except TimeoutError:
            self.kill()
            return await self.wait()

    def kill(self) -> bool:
        """SIGKILL to the app's whole process group, if it has not ended yet; says whether it had not."""
        if self._process.returncode is not None:
            return False
        # The group may be gone although its status has not been read yet.
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        return True
