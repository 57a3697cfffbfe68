# SPDX-License-Identifier: Apache-2.0
"""Running Coordinators to update."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.kit.site import Site, site

Serve = Callable[..., Awaitable[Site]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """`serve(raw)`: a Coordinator with this manifest."""
    async with AsyncExitStack() as stack:
        yield lambda raw, **settings: stack.enter_async_context(site(tmp_path, raw, **settings))
