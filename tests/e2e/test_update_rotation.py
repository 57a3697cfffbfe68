# SPDX-License-Identifier: Apache-2.0
"""A manifest update rotates the CA under traffic and turns out who is no longer allowed, with real processes.

The full size is `python -m tests.soak.updates`.
"""

from __future__ import annotations

import pytest

from tests.soak.updates import CUT_OFF_SECONDS, Size, run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


async def test_updates_drop_no_connection_and_cut_off_in_time_who_is_no_longer_allowed() -> None:
    size = Size(marbles=3, connections=5, updates=2, pause=0.02)
    result = await run(size)
    assert result.requests > size.marbles * size.connections * size.updates
    assert result.fresh > size.updates
    assert result.cut_off < CUT_OFF_SECONDS
