# SPDX-License-Identifier: Apache-2.0
"""How many Coordinators a mesh of up to 100 000 workers needs: a simulation on top of what xds_scale has measured.

Simulated are the connections of workers that come back (back-off, patience, the queue for a handshake) and, per event,
the CPU of each replica; one replica has one core. What a step costs is read from bench/results/xds_scale.json. What is
assumed beyond that is printed, and is no measurement: replicas share their state for nothing, clients spread evenly,
nothing is slow but CPU, and a cost that was measured with 5000 workers is the same with 20 000.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import sys
from dataclasses import dataclass
from itertools import count
from typing import Any

from bench.measure import ROOT, write_result

SIZES = (1_000, 5_000, 20_000, 50_000, 100_000)
# A client's first pause, the longest one, and how long it waits for a handshake and its first answers: our worker's.
FIRST_PAUSE, LONGEST_PAUSE, PATIENCE = 0.5, 30.0, 10.0
# All of a replica's workers find out within this time that it is gone.
NOTICED = 1.0
# What a plan must keep to.
MOST_MEMORY = 2 * 1024**3
MOST_WORKERS = 20_000
MOST_LOAD = 0.5
MOST_STORM = 60.0
MOST_ROTATION = 10.0
# A third of its life before it ends, at the latest; 24 hours by default.
RENEWED_EVERY = 0.65 * 24 * 3600
# Restarts of instances: each worker once a day, and each changes the endpoints of so many others.
MOVES_PER_DAY, CALLERS = 1.0, 300


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of CPU, and bytes."""

    connect: float
    push: float
    endpoint: float
    renewal: float
    idle: float
    memory: float
    base: float

    @classmethod
    def of(cls, scale: dict[str, Any]) -> Costs:
        micro = 1e-6
        workers = scale["workers"]
        return cls(
            connect=scale["storm_cpu_us_per_worker"] * micro,
            push=scale["cpu_us_per_push"] * micro,
            endpoint=scale["cpu_us_per_endpoint_push"] * micro,
            renewal=(scale["cpu_us_per_identity"] + scale[f"cpu_us_one_worker_of_{workers}"]) * micro,
            idle=scale[f"idle_cpu_us_per_second_with_{workers}"] * micro / workers,
            memory=scale["rss_bytes_per_worker"],
            base=scale["rss_bytes"] - workers * scale["rss_bytes_per_worker"],
        )


def storm(workers: int, cost: float, chance: random.Random) -> tuple[float, int]:
    """Seconds until all of so many workers of one replica are back, and attempts that were given up.

    First come, first served; who gives up costs nothing any more, as the queue leaves out those who have left.
    """
    order = count()
    arrivals = [(chance.uniform(0, NOTICED), next(order), 0) for _ in range(workers)]
    heapq.heapify(arrivals)
    free, given_up, last = 0.0, 0, 0.0
    while arrivals:
        at, _, tries = heapq.heappop(arrivals)
        start = max(at, free)
        if start - at > PATIENCE:
            given_up += 1
            pause = chance.uniform(0, min(FIRST_PAUSE * 1.6**tries, LONGEST_PAUSE))
            heapq.heappush(arrivals, (at + PATIENCE + pause, next(order), tries + 1))
            continue
        free = last = start + cost
    return last, given_up


def load(workers: float, costs: Costs) -> float:
    """The share of a core that one replica needs all the time for so many workers."""
    renewals = costs.renewal / RENEWED_EVERY
    moves = MOVES_PER_DAY / 86_400 * (costs.connect + CALLERS * costs.endpoint)
    return workers * (costs.idle + renewals + moves)


def plan(workers: int, replicas: int, costs: Costs, chance: random.Random) -> dict[str, object]:
    """How so many replicas do; the storm is that of the whole mesh after all of them were away."""
    each = -(-workers // replicas)
    back, given_up = storm(each, costs.connect, chance)
    # One of several goes: its workers go to the others.
    one_gone = storm(-(-each // max(replicas - 1, 1)), costs.connect, chance)[0] if replicas > 1 else back
    return {
        "workers": workers,
        "replicas": replicas,
        "memory_mib": round((costs.base + each * costs.memory) / 2**20),
        "steady_load": round(load(each, costs), 3),
        "rotation_seconds": round(each * costs.push, 2),
        "storm_seconds": round(back, 1),
        "storm_given_up": given_up * replicas,
        "one_replica_gone_seconds": round(one_gone, 1),
    }


def is_enough(found: dict[str, Any]) -> bool:
    """Whether a plan keeps to the limits."""
    return bool(
        found["memory_mib"] * 2**20 <= MOST_MEMORY
        and found["workers"] <= found["replicas"] * MOST_WORKERS
        and found["steady_load"] <= MOST_LOAD
        and found["rotation_seconds"] <= MOST_ROTATION
        and found["storm_seconds"] <= MOST_STORM
    )


def needed(workers: int, costs: Costs, chance: random.Random) -> dict[str, object]:
    """The plan with the fewest replicas that is enough."""
    return next(found for n in count(1) if is_enough(found := plan(workers, n, costs, chance)))


ASSUMED = (
    f"clients wait {PATIENCE:g} s for a connection, pause {FIRST_PAUSE:g} to {LONGEST_PAUSE:g} s with full jitter",
    f"all of a replica's workers notice within {NOTICED:g} s that it is gone",
    f"each worker is renewed every {RENEWED_EVERY / 3600:.1f} h and moves {MOVES_PER_DAY:g} times a day, which "
    f"{CALLERS} others are told",
    "replicas share state for nothing, one core each, workers spread evenly; only CPU and memory are scarce",
    f"enough: at most {MOST_MEMORY / 2**30:g} GiB, {MOST_WORKERS} workers and {MOST_LOAD:.0%} of a core each, rotation "
    f"of a root in {MOST_ROTATION:g} s, the whole mesh back in {MOST_STORM:g} s",
)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make bench ARGS=xds_fleet", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the simulation's chance (default 1)")
    options = parser.parse_args(arguments)
    measured = ROOT / "bench" / "results" / "xds_scale.json"
    if not measured.exists():
        print("nothing is measured yet: make bench ARGS=xds_scale", file=sys.stderr)
        return 2
    scale = json.loads(measured.read_text())
    costs = Costs.of(scale)
    print(
        f"measured with {scale['workers']} workers on {scale['date']} ({scale['machine']}, commit {scale['commit']}):"
    )
    print(
        f"  connect {costs.connect * 1e6:.0f} us, push {costs.push * 1e6:.0f} us, endpoint push "
        f"{costs.endpoint * 1e6:.0f} us, renewal {costs.renewal * 1e6:.0f} us, {costs.memory / 1000:.1f} kB a worker"
    )
    print("assumed:", *(f"  - {line}" for line in ASSUMED), sep="\n")
    chance = random.Random(options.seed)
    plans = [needed(workers, costs, chance) for workers in SIZES]
    plans += [plan(SIZES[-1], replicas, costs, chance) for replicas in (5, 10, 20, 50)]
    width = {name: max(len(name), 8) for name in plans[0]}
    print("\nthe fewest replicas that are enough, then other numbers for the largest mesh:")
    print("  ".join(f"{name:>{width[name]}}" for name in width))
    for found in plans:
        print("  ".join(f"{found[name]!s:>{width[name]}}" for name in width))
    path = write_result("xds_fleet", {"costs_of": scale["commit"], "assumed": ASSUMED, "plans": plans})
    print(f"written: {os.path.relpath(path)}")
    return 0
