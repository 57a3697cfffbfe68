# SPDX-License-Identifier: Apache-2.0
"""A stock Envoy for longer than a test suite has time, over each of the four ways that it can be served:

    python -m tests.soak.envoy                  an identity every 100 ms for 60 s, and an outage of 30 s, for each way
    python -m tests.soak.envoy --seconds 10 --outage 5 --only delta-ads

Ends with status 1 if a single connection was dropped or a single handshake failed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from sds import logs
from tests.e2e.test_envoy_matrix import EVERY_SECONDS, outage, rotate
from tests.kit.envoy_matrix import VARIANTS, Scene


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.envoy", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of rotations (default 60)")
    parser.add_argument("--outage", type=float, default=30.0, help="seconds without a Coordinator (default 30)")
    parser.add_argument("--only", choices=VARIANTS, help="one way (default: all four)")
    arguments = parser.parse_args()
    logs.configure("error", "console")
    chosen = [arguments.only] if arguments.only else list(VARIANTS)
    failed = [name for name in chosen if not asyncio.run(run(name, arguments.seconds, arguments.outage))]
    sys.exit(f"FAILED: {', '.join(failed)}" if failed else 0)


async def run(name: str, seconds: float, away: float) -> bool:
    """One way to serve; whether nothing was lost."""
    with tempfile.TemporaryDirectory(prefix="mm") as folder:
        scene = Scene(VARIANTS[name], Path(folder))
        async with scene.app():
            async with scene.served(), scene.envoy() as envoy:
                rotations = int(seconds / EVERY_SECONDS)
                traffic = await rotate(scene, envoy, rotations)
            print(
                f"{name}: {rotations} rotations, {traffic.requests} requests on kept connections, "
                f"{traffic.handshakes} new connections, {len(traffic.seen)} certificates seen, "
                f"{len(traffic.faults)} faults",
                flush=True,
            )
            for fault in traffic.faults[:10]:
                print(f"  {fault}")
            await outage(scene, away)
            print(f"{name}: {away:g} s without a Coordinator, no fault", flush=True)
    return not traffic.faults


if __name__ == "__main__":
    main()
