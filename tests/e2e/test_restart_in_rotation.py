# SPDX-License-Identifier: Apache-2.0
"""The Coordinator is killed in the middle of a rotation of the Marble root, with real processes and under traffic."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.kit.mesh import MeshHarness, RunningWorker
from tests.soak.updates import Ring, Size

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


async def roots(worker: RunningWorker) -> set[str]:
    bundle = json.loads((await worker.admin("/certs"))[1])["bundle"]
    return {str(certificate["sha256"]) for certificate in bundle}


async def restart_in_the_middle(ring: Ring, straggler: RunningWorker) -> None:
    """One worker does not answer while the update is made and the Coordinator killed: it still has all of the old."""
    straggler.send(signal.SIGSTOP)
    await ring.update()
    await ring.mesh.kill_coordinator()
    straggler.send(signal.SIGCONT)
    restarted = await ring.mesh.start_coordinator()
    for worker in ring.workers:
        await restarted.logged("instance readmitted", MarbleType=worker.name)


async def test_workers_of_the_old_root_come_back_and_follow_without_losing_a_connection() -> None:
    with TemporaryDirectory(prefix="mm-") as directory:  # short: sockets lie in it
        async with MeshHarness(Path(directory)) as mesh:
            ring = Ring(mesh, Size(marbles=3, connections=2, updates=1, pause=0.4))
            await ring.start()
            (old,) = await roots(ring.workers[0])
            async with asyncio.TaskGroup() as group:
                with ring.traffic(group):
                    await restart_in_the_middle(ring, ring.workers[0])
                    assert mesh.coordinator is not None
                    await ring.workers[0].admin_says("/certs", lambda text: text.count(old) == 1)
                    await mesh.coordinator.logged("rotation of the marble root goes on", done="introduce")
                    await mesh.coordinator.logged("rotation of the marble root goes on", done="retire")
                    before = ring.result.fresh
                    async with asyncio.timeout(30):
                        while ring.result.fresh < before + 2 * len(ring.edges):
                            await asyncio.sleep(0.01)
            assert ring.result.fresh > 0
            assert old not in await roots(ring.workers[0])
            await ring.certificates_are_of_the_newest_root()
            await ring.metrics_are_clean()
