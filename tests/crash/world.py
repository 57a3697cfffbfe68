# SPDX-License-Identifier: Apache-2.0
"""Two simulated machines with their folder, and everything that can be seen of a Coordinator on one of them."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.commits import limited
from tests.crash.launch import KILLED, Launcher, Process
from tests.crash.people import SERVING, Died, Machine, People, Visit
from tests.crash.verdict import Failed, View

# What is known of a Coordinator that was never started.
NOTHING: View = {"status": 2, "left": 0}


@dataclass
class World:
    """A folder, two machines, and those who use the Coordinator."""

    launcher: Launcher
    folder: Path
    people: People = field(default_factory=People)

    def __post_init__(self) -> None:
        self.machine = Machine(self.folder / "machine", self.people)
        self.other = Machine(self.folder / "other", self.people)

    @asynccontextmanager
    async def coordinator(
        self, state: Path, machine: Machine, *, deadly: int | None = None, seconds: float | None = None
    ) -> AsyncIterator[Process]:
        """See Launcher.coordinator; raises Failed if it ended by itself."""
        async with self.launcher.coordinator(state, machine.directory, deadly=deadly, seconds=seconds) as process:
            if process.ready is None and ((deadly is None and seconds is None) or await process.ended() != KILLED):
                raise Failed(f"a Coordinator ended with {await process.ended()} instead of serving:\n{process.text()}")
            yield process

    @asynccontextmanager
    async def visit(self, state: Path, machine: Machine) -> AsyncIterator[Visit]:
        """A Coordinator that nobody kills, and a connection to it."""
        async with self.coordinator(state, machine) as process, Visit(process, machine, self.people) as visit:
            try:
                yield visit
            except Died as e:
                raise Failed(f"a Coordinator died that nobody killed ({e}):\n{process.text()}") from e

    def copy(self, state: Path, name: str) -> Path:
        """The same files in a folder of their own, in place of what was there."""
        copy = self.folder / name
        shutil.rmtree(copy, ignore_errors=True)
        if state.is_dir():
            shutil.copytree(state, copy)
        return copy


async def look(visit: Visit, revision: int) -> View:
    """Everything, to the last activation that is left."""
    view = await visit.view()
    return {**view, "left": await visit.left(limited(revision)) if view["status"] == SERVING else 0}
