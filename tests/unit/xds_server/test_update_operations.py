# SPDX-License-Identifier: Apache-2.0
"""What an update means for Marbles that run: the mesh goes on with whom the new manifest allows, and nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.coordinator import Bench
from tests.kit.parties import raising, raw
from tests.kit.users import user

UUID = "0a1b2c3d-4e5f-4a5b-8c7d-8e9fa0b1c2d3"
ALICE, DAVE = [user("alice").der], [user("dave").der]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench.make(tmp_path)
    yield made
    made.own_quote.stop()


async def test_running_marbles_stay_if_the_new_manifest_allows_what_was_attested(bench: Bench) -> None:
    await bench.coordinator.set_manifest(raw("alice", Marbles={"web": {"Package": "app"}, "api": {"Package": "app"}}))
    await bench.activate(uuid=UUID)
    await bench.activate(marble_type="api")
    await bench.coordinator.update_apply(raw("alice"), ALICE)
    assert [(marble.marble_type, marble.uuid) for marble in bench.mesh.marbles] == [("web", UUID)]


async def test_a_raised_security_version_turns_out_who_is_below(bench: Bench) -> None:
    await bench.coordinator.set_manifest(raw("alice"))
    await bench.activate(uuid=UUID)
    await bench.coordinator.update_apply(raising(app=4), DAVE)
    assert not tuple(bench.mesh.marbles)
