# SPDX-License-Identifier: Apache-2.0
"""Whole Coordinators, killed at random instants of a stream of commits of all kinds that need no second person.

The state goes from one Coordinator to the next: what a client had its answer for is there to the end, and of what was
under way all or nothing.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count as numbers
from pathlib import Path

from tests.crash.commits import (
    FIRST_VERSION,
    Commit,
    activate,
    count,
    limited,
    manifest,
    raise_version,
    set_manifest,
    set_secret,
    update,
)
from tests.crash.launch import KILLED
from tests.crash.people import SERVING, Died, Refused, Visit
from tests.crash.verdict import Failed, View, must_be
from tests.crash.world import NOTHING, World

# Longer than the longest commit, an update, takes; and one Coordinator in six is killed while it starts.
LONGEST_LIFE = 0.25
LONGEST_START = 0.05
STARTS = 1 / 6


@dataclass(frozen=True, slots=True)
class Result:
    kills: int
    commits: int
    starting: int
    interrupted: int

    def __str__(self) -> str:
        return (
            f"at random instants: {self.kills} kills, {self.starting} of them while it started and {self.interrupted}"
            f" in the middle of a commit; {self.commits} commits were confirmed, none was lost"
        )


@dataclass
class Stream:
    """`known`: what the state is, as far as clients were told; `asked`: what was under way at the last kill."""

    world: World
    rng: random.Random
    known: View = field(default_factory=lambda: NOTHING)
    asked: View | None = None
    commits: int = 0
    starting: int = 0
    interrupted: int = 0

    def __post_init__(self) -> None:
        self._state: Path = self.world.folder / "stream"
        self._revisions: dict[object, int] = {}
        self._numbers = numbers(1)

    async def run(self, kills: int, tell: Callable[[str], None] = lambda _: None) -> Result:
        """So many; `tell` hears of progress. Raises Failed."""
        shutil.rmtree(self._state, ignore_errors=True)
        for number in range(kills):
            if number % 50 == 49:
                tell(f"at random instants: {number + 1} kills, {self.commits} commits")
            seconds = self.rng.uniform(0, LONGEST_START) if self.rng.random() < STARTS else None
            async with self.world.coordinator(self._state, self.world.machine, seconds=seconds) as process:
                if seconds is None:
                    async with Visit(process, self.world.machine, self.world.people) as visit:
                        await self._look(visit, f"after kill {number}")
                        process.kill_after(self.rng.uniform(0, LONGEST_LIFE))
                        await self._commit_until_death(visit)
                else:
                    self.starting += process.ready is None
                if (status := await process.ended()) != KILLED:
                    raise Failed(f"the Coordinator ended with {status}:\n{process.text()}")
        async with self.world.visit(self._state, self.world.machine) as visit:
            await self._look(visit, f"after the last of {kills} kills")
        return Result(kills, self.commits, self.starting, self.interrupted)

    # --- looking

    async def _look(self, visit: Visit, place: str) -> None:
        """What is found is what is known, or what was asked for; it is what is known from here on."""
        allowed = [view for view in (self.known, self.asked) if view is not None]
        view = await visit.view()
        must_be(view, [{part: value for part, value in one.items() if part != "left"} for one in allowed], place)
        left = await visit.left(limited(self._revisions[view["manifest"]])) if view["status"] == SERVING else 0
        found = {**view, "left": left}
        must_be(found, allowed, place)
        self.known, self.asked = {**found, "left": 0}, None

    # --- committing

    async def _commit_until_death(self, visit: Visit) -> None:
        try:
            while True:
                chain = await visit.chain() if self.known["status"] != SERVING else (b"", b"")
                commit = self._next()
                self.asked = commit.change(self.known, chain)
                await commit.send(visit)
                self.known, self.asked = self.asked, None
                self.commits += 1
        except Died:
            self.interrupted += self.asked is not None
        except Refused as e:
            raise Failed(f"commit {self.commits + 1} was refused: {e}") from e

    def _next(self) -> Commit:
        """Something that is possible now; each number is used once."""
        number, known = next(self._numbers), self.known
        if known["status"] != SERVING:
            return set_manifest(self._revision(number), budget=1)
        kind = self.rng.randrange(5)
        if kind == 0 and known["left"]:
            return activate(self._revisions[known["manifest"]])
        if kind == 1:
            return set_secret(b"%d" % number)
        if kind == 2:
            return raise_version(FIRST_VERSION + number)
        if kind == 3:
            return update(self._revision(number), left=1)
        return count(number)

    def _revision(self, number: int) -> bytes:
        raw = manifest(number, budget=1)
        self._revisions[raw] = number
        return raw
