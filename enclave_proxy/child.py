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

from enclave_proxy.capture_settings import AppUser
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

# How often to look whether what an app has left behind has ended.
_LOOK = 0.02
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
    async def start(
        cls, command: Sequence[str], env: Mapping[str, str], user: AppUser | None = None, descriptors: int | None = None
    ) -> Self:
        """Start `command` with exactly `env`, standard streams inherited. Raises CommandError if that cannot be. `user`
        None: the worker's own. `descriptors`: how many it may have unless it asks for more, None: as the worker."""
        program = shutil.which(command[0], path=env.get("PATH", os.defpath))
        if program is None:
            raise CommandError(f"cannot start {command[0]!r}: not found, or not executable (PATH is the app's own)")
        limit = () if descriptors is None else (f"--descriptors={descriptors}",)
        become = () if user is None else (f"--user={user.uid}:{user.gid}",)
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(_EXEC_APP), *limit, *become, str(os.getpid()), program, *command),
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

    async def end_others(self, deadline: float) -> None:
        """After the app has ended: tell what it has left behind in its process group to end as well, and kill it after
        `deadline` seconds. An app may be a script that has started the server proper beside an Envoy."""
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline
        some = self._signal_group(signal.SIGTERM)
        while some and loop.time() < end:
            await asyncio.sleep(_LOOK)
            some = self._signal_group(0)  # which only asks whether anybody is there
        if some:
            self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: int) -> bool:
        """Whether there was anybody in the app's process group."""
        if self._process.returncode is not None:
            # Where the worker is process 1 it inherits orphans, and has to read their status or they stay for ever; a
            # library OS may know no process groups here.
            with suppress(OSError):
                while os.waitpid(-self.pid, os.WNOHANG)[0]:
                    pass
        try:
            os.killpg(self.pid, number)
        except OSError:  # nobody there, or nobody whom we may tell
            return False
        return True

    def kill(self) -> bool:
        """SIGKILL to the app's whole process group; says whether the app itself had not ended yet."""
        running = self._process.returncode is None
        self._signal_group(signal.SIGKILL)
        return running
