# SPDX-License-Identifier: Apache-2.0
"""Kill the Coordinator, look what it left, again and again:

    python -m tests.crash               at every operation of every kind of commit, once
    python -m tests.crash --kills 500   the same, and at random instants until there were 500 kills

First the store alone, by the thousand (`--kills` of them at random instants): quick, and for every way to keep the key.
Then whole Coordinators on the simulated platform, asked over TLS. Ends with status 1, and what was wrong, if ever a
start finds anything but the old or the new state, or less than a client was told.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import sys
import tempfile
import time
from pathlib import Path

from sds import logs
from tests.crash import store
from tests.crash.every_operation import EveryOperation, scenarios
from tests.crash.launch import launcher
from tests.crash.store_scenarios import worlds
from tests.crash.stream import Stream
from tests.crash.verdict import Failed
from tests.crash.world import World


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=0, help="whole Coordinators in all; the store at random instants")
    parser.add_argument("--seed", type=int, default=None, help="of the random instants")
    parser.add_argument("--folder", type=Path, default=None, help="where; default: the usual temporary directory")
    parser.add_argument("--part", choices=("store", "coordinator"), default=None, help="default: both")
    parser.add_argument("--protection", choices=("sealed", "raw", "none"), default=None, help="of the store's keys")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.randrange(2**32)
    logs.configure("error", "console")
    try:
        with tempfile.TemporaryDirectory(prefix="mm-crash-", dir=arguments.folder) as folder:
            if arguments.part != "coordinator":
                _store(Path(folder), arguments.protection, arguments.kills, random.Random(seed))
            if arguments.part != "store":
                asyncio.run(_coordinator(Path(folder), arguments.kills, random.Random(seed)))
    except Failed as e:
        sys.exit(f"FAILED (seed {seed}): {e}")


def _store(folder: Path, protection: str | None, kills: int, rng: random.Random) -> None:
    began = time.monotonic()
    gc.freeze()  # children share what is there, instead of copying it when they collect garbage
    chosen = [world for world in worlds(folder) if protection in (None, world[0])]
    done = store.run(chosen, kills, rng)
    print(f"the store alone: {done} kills in {time.monotonic() - began:.0f} s", flush=True)


async def _coordinator(folder: Path, kills: int, rng: random.Random) -> None:
    began, done = time.monotonic(), 0
    async with launcher() as forks:
        world = World(forks, folder)
        for scenario in scenarios():
            tally = await EveryOperation(world, scenario).run()
            done += tally.kills
            print(f"{scenario.commit.name}: {tally}", flush=True)
        if (rest := kills - done) > 0:
            result = await Stream(world, rng).run(rest, lambda text: print(text, flush=True))
            done += result.kills
            print(result, flush=True)
    print(f"whole Coordinators: {done} kills in {time.monotonic() - began:.0f} s: nothing lost, nothing half-applied")


if __name__ == "__main__":
    main()
