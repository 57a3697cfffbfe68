# SPDX-License-Identifier: Apache-2.0
"""Deployments in the states that the client API's tests begin with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from zlib import crc32

import pytest

from tests.kit.client_api import HTTP1, HTTP2
from tests.kit.coordinator import Bench, manifest
from tests.kit.deployment import Api, World, whole


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("platform")


@pytest.fixture
def version(request: pytest.FixtureRequest) -> str:
    """Both where a test says so; else one or the other by the test's name, since the routes do not know it."""
    chosen: str = getattr(request, "param", "") or (HTTP1, HTTP2)[crc32(request.node.name.encode()) % 2]
    return chosen


@pytest.fixture
async def world(platform: Path, tmp_path: Path, version: str) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield World(stack, platform, tmp_path, version)


@pytest.fixture
async def fresh(world: World) -> Api:
    """No manifest yet."""
    return await world.serve(Bench.make(world.platform))


@pytest.fixture
async def api(fresh: Api) -> Api:
    """With a manifest that has users, secrets and features."""
    await fresh.set_manifest(whole())
    return fresh


@pytest.fixture
async def plain(fresh: Api) -> Api:
    """With a manifest without any of these."""
    await fresh.set_manifest(manifest())
    return fresh
