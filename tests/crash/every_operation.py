# SPDX-License-Identifier: Apache-2.0
"""Whole Coordinators, killed at every operation of every kind of commit.

Each time a new Coordinator is started on what the dead one left, and everything that its API shows must be the state
before the commit or the one after it, in all parts; after it, if the client had its answer. And what was cut off can be
done again.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.crash.commits import (
    Chain,
    Commit,
    acknowledge,
    activate,
    cancel,
    count,
    manifest,
    raise_version,
    recover,
    refused,
    set_manifest,
    set_secret,
    submit,
    update,
)
from tests.crash.launch import KILLED, Process
from tests.crash.people import Died, Visit
from tests.crash.verdict import Failed, View, must_be
from tests.crash.world import NOTHING, World, look


@dataclass(frozen=True, slots=True)
class Scenario:
    """A commit, and those that were made before. `revision`: of the manifest, whose limited type is looked at;
    `elsewhere`: the state is taken to another machine in between."""

    commit: Commit
    earlier: tuple[Commit, ...]
    revision: int = 0
    elsewhere: bool = False


@dataclass(slots=True)
class Tally:
    """How many kills left the state before the commit, and how many the one after it."""

    old: int = 0
    new: int = 0

    @property
    def kills(self) -> int:
        return self.old + self.new

    def __str__(self) -> str:
        return f"{self.kills} kills, one at each operation: {self.old} left the old state, {self.new} the new one"


def scenarios() -> tuple[Scenario, ...]:
    """Every kind of commit; in all but the first there is state to lose."""
    alone, together = manifest(0), manifest(0, threshold=0)
    first = (set_manifest(alone), set_secret(b"old"), count(1), activate(0))
    asked = (set_manifest(together), set_secret(b"old"), count(1), activate(0))
    new, new_together, other_key = manifest(0, budget=4), manifest(0, threshold=0, budget=4), manifest(0, owned_by=1)
    waiting = (*asked, submit(new_together))
    nearly = (*waiting, acknowledge(new_together, "bob", ("carol",)))
    owned = (set_manifest(manifest(0, owned_by=0)), set_secret(b"old"), count(1), activate(0))
    return (
        Scenario(set_manifest(alone), ()),
        Scenario(activate(0), first),
        Scenario(set_secret(b"new"), first),
        Scenario(count(2), first),
        Scenario(raise_version(4), first),
        Scenario(update(new, left=3), first),
        Scenario(replace(update(other_key, left=2), name="full update with another recovery key"), owned),
        Scenario(submit(new_together), asked),
        Scenario(acknowledge(new_together, "bob", ("carol",)), waiting),
        Scenario(cancel(new_together), waiting),
        Scenario(acknowledge(new_together, "carol", (), left=3), nearly),
        Scenario(recover(), owned, elsewhere=True),
    )


class EveryOperation:
    """One scenario, cut off at one operation after the other."""

    def __init__(self, world: World, scenario: Scenario) -> None:
        self.world, self.scenario, self.tally = world, scenario, Tally()
        self._state = world.folder / "before"
        self._machine = world.other if scenario.elsewhere else world.machine
        self._known = NOTHING

    async def prepare(self) -> None:
        """Make the earlier commits."""
        shutil.rmtree(self._state, ignore_errors=True)
        if not self.scenario.earlier:
            return
        async with self.world.visit(self._state, self.world.machine) as visit:
            for commit in self.scenario.earlier:
                chain = await visit.chain()
                await commit.send(visit)
                self._known = commit.change(self._known, chain)
            found = {**await visit.view(), "left": self._known["left"]}
        must_be(found, [self._known], f"{self.scenario.commit.name}, before any kill")
        self._known = found

    async def run(self, operations: Sequence[int] | None = None) -> Tally:
        """All of them, or just these."""
        await self.prepare()
        number = 0
        for number in operations or range(1000):
            if not await self._cut_off(number):
                break
        else:
            if operations is None:
                raise Failed(f"{self.scenario.commit.name} does not end after {number} operations")
        if operations is None and not (self.tally.old and self.tally.new):
            raise Failed(f"{self.scenario.commit.name}: {self.tally}, so the kills did not meet the commit")
        return self.tally

    async def _cut_off(self, operation: int) -> bool:
        """Once; whether it was killed."""
        commit, state = self.scenario.commit, self.world.copy(self._state, "killed")
        place = f"{commit.name}, killed at operation {operation}"
        chain: Chain | None = None
        killed = True
        async with self.world.coordinator(state, self._machine, deadly=operation) as process:
            if process.ready is not None:
                async with Visit(process, self._machine, self.world.people) as visit:
                    chain = await visit.chain()
                    killed = await _dies_of(commit, visit, process)
        before = commit.before(self._known)
        after = None if chain is None else commit.change(self._known, chain)
        allowed = [view for view in (before if killed else None, after) if view is not None]
        async with self.world.visit(self.world.copy(state, "seen"), self._machine) as visit:
            found = await look(visit, self.scenario.revision)
        found_old = must_be(found, allowed, place) is before
        await self._again(state, found if not found_old else None, place)
        if killed and found_old:
            self.tally.old += 1
        elif killed:
            self.tally.new += 1
        return killed

    async def _again(self, state: Path, done: View | None, place: str) -> None:
        """What was cut off can be done; what is `done` is as it was, or can be done twice."""
        commit = self.scenario.commit
        async with self.world.visit(state, self._machine) as visit:
            chain = await visit.chain()
            if (status := await refused(commit, visit)) != (None if done is None else commit.again):
                raise Failed(f"{place}, then asked again: refused with {status}")
            found = await look(visit, self.scenario.revision)
        if done is None:
            must_be(found, [commit.change(self._known, chain)], f"{place}, then done again")
        elif commit.again is not None:
            must_be(found, [done], f"{place}, then asked again")


async def _dies_of(commit: Commit, visit: Visit, process: Process) -> bool:
    """Whether the Coordinator is killed by its own doing; else it answers."""
    try:
        await commit.send(visit)
    except Died:
        if (status := await process.ended()) != KILLED:
            raise Failed(f"{commit.name}: the Coordinator ended with {status}:\n{process.text()}") from None
        return True
    return False
