# SPDX-License-Identifier: Apache-2.0
"""Deployments whose state waits for its owners."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.kit.recovering import Deployment, deployment

Deploy = Callable[..., Awaitable[Deployment]]


@pytest.fixture
async def deploy(tmp_path: Path) -> AsyncIterator[Deploy]:
    """`deploy("ab", threshold)`: running, with these owners."""
    async with AsyncExitStack() as stack:
        yield lambda names, threshold=0, **more: stack.enter_async_context(
            deployment(tmp_path, names, threshold, **more)
        )


@pytest.fixture
async def lost(deploy: Deploy) -> Deploy:
    """The same, and then it has lost its key: in recovery."""

    async def make(names: str, threshold: int = 0) -> Deployment:
        made: Deployment = await deploy(names, threshold)
        await made.lose_key()
        return made

    return make
