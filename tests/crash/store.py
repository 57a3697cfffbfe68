# SPDX-License-Identifier: Apache-2.0
"""The store alone, killed at every operation and at random instants: quick, and for every way to keep the key."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from tests.crash.deadly_files import DeadlyFiles
from tests.crash.store_scenarios import DEK, SCENARIOS, Scenario, World, state, unlocked
from tests.crash.verdict import Failed
from xds_server.file_ops import SystemFiles
from xds_server.store import Fresh, Loaded, Locked

_MAX_OPERATIONS = 200


def run(chosen: list[tuple[str, World]], random_kills: int, rng: random.Random) -> int:
    """All of it; how many kills it was."""
    kills = 0
    for name, world in chosen:
        at_operations = sum(every_operation(scenario, name, world) for scenario in SCENARIOS)
        print(f"{name}: {at_operations} kills, one at each operation: old or new state every time", flush=True)
        kills += at_operations
    for place, (name, world) in enumerate(chosen):
        if not (share := len(range(place, random_kills, len(chosen)))):
            continue
        commits = random_instants(world, share, rng)
        print(f"{name}: {share} kills at random instants of {commits} commits: nothing lost", flush=True)
        kills += share
    return kills


def every_operation(scenario: Scenario, protection: str, world: World) -> int:
    """Cut a scenario off at each of its operations; how many there were."""
    for operation in range(_MAX_OPERATIONS):
        shutil.rmtree(world.directory, ignore_errors=True)
        scenario.prepare(world)
        killed = in_child(partial(scenario.act, world, DeadlyFiles(operation)))
        place = f"{scenario.name} ({protection}), killed at operation {operation}"
        if (found := look(world, place)) not in scenario.allowed[0 if killed else 1 :]:
            raise Failed(f"{place}: found {found}, expected one of {scenario.allowed}")
        if not killed:
            return operation
        scenario.act(world, SystemFiles())  # and it can go on from there
        if (found := look(world, place)) != scenario.allowed[1]:
            raise Failed(f"{place}, then done again: found {found}, expected {scenario.allowed[1]}")
    raise Failed(f"{scenario.name} does not end")


def look(world: World, place: str) -> int | None:
    try:
        return world.activations()
    except Exception as e:
        raise Failed(f"{place}: {type(e).__name__}: {e}") from e


def random_instants(world: World, kills: int, rng: random.Random) -> int:
    """Kill a process that commits without pause, `kills` times; how many commits there were."""
    shutil.rmtree(world.directory, ignore_errors=True)
    told = 0
    for _ in range(kills):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            commit_forever(world, writer)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            # Mostly in the middle of commits; now and then while it starts and clears away what the last kill left.
            first = pipe.readline() if rng.random() < 0.8 else b""
            time.sleep(rng.uniform(0.0, 0.02))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            lines = (first + pipe.read()).split()
        told = int(lines[-1]) if lines else told
        found = look(world, f"random instant after commit {told}") or 0
        if found not in (told, told + 1):
            raise Failed(f"commit {told} was confirmed, a start found {found}")
        told = found
    return told


def commit_forever(world: World, pipe: int) -> None:
    """Count on from what is there, and tell each number once it is committed. Never returns."""
    store = world.open()
    match store.load():
        case Fresh():
            store.new_key(DEK, b"null")
            current = state(0)
        case Loaded(found):
            current = found
        case Locked():
            current = unlocked(store)
    while True:
        current = replace(current, activations={"web": current.activations["web"] + 1})
        store.commit(current)
        os.write(pipe, b"%d\n" % current.activations["web"])


def in_child(work: Callable[[], None]) -> bool:
    """Do it in a child process; whether it was killed. A fork is 100 times cheaper than a new interpreter."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    _, how = os.waitpid(child, 0)
    if os.WIFSIGNALED(how) and os.WTERMSIG(how) == signal.SIGKILL:
        return True
    if how != 0:
        raise Failed(f"a child ended with status {how:#x}")
    return False
