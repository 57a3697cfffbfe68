# SPDX-License-Identifier: Apache-2.0
"""Whole Coordinators end by SIGKILL and come back; this is a small part of `python -m tests.crash --kills 500`."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.crash.every_operation import EveryOperation, scenarios
from tests.crash.launch import launcher
from tests.crash.stream import Stream
from tests.crash.world import World

pytestmark = pytest.mark.e2e


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with launcher() as forks:
        yield World(forks, tmp_path)


async def test_killed_in_the_middle_of_an_update_it_comes_back_with_the_old_state_or_the_new_one(world: World) -> None:
    """One operation of each step: before both files are written, between the renames, before the last fsync."""
    last_acknowledgement = scenarios()[-2]
    tally = await EveryOperation(world, last_acknowledgement).run([6, 15, 19])
    assert (tally.old, tally.new) == (2, 1)


async def test_killed_at_any_instant_it_comes_back_with_every_commit_that_it_has_confirmed(world: World) -> None:
    result = await Stream(world, random.Random(3)).run(4)
    assert result.commits + result.interrupted > 0  # on a busy machine all may have been cut off
