# SPDX-License-Identifier: Apache-2.0
"""A real Envoy and the life of streams: listeners and clusters on streams of their own, beside the aggregated one that
our resources name for endpoints and secrets; streams that end because of their age."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sds.resources import BUNDLE_NAME, IDENTITY_NAME
from sds.tls import client_context
from tests.e2e.test_envoy_xds import exchange, next_identity, settled, village
from tests.kit.envoy import ads_bootstrap, running_envoy, until
from tests.kit.envoy_town import echo_app, serving, write_identity
from tests.kit.mesh import free_port
from xds_server.xds_limits import XdsLimits
from xds_server.xds_session import Session

pytestmark = pytest.mark.e2e


def on_its_own_stream(bootstrap: dict[str, Any]) -> dict[str, Any]:
    """A ConfigSource like that of the aggregated stream, but for one type."""
    source = bootstrap["dynamic_resources"]["ads_config"]
    return {"api_config_source": source, "resource_api_version": "V3"}


@pytest.mark.parametrize("incremental", [False, True], ids=["sotw", "delta"])
async def test_envoy_takes_listeners_and_clusters_from_their_own_services(incremental: bool, tmp_path: Path) -> None:
    inbound = free_port()
    town = village(inbound, free_port())
    web, voting = town.activate("web"), town.activate("voting")
    async with serving(town) as (server, port), echo_app(tmp_path / f"{inbound}.sock"):
        bootstrap = ads_bootstrap(
            xds_port=port,
            incremental=incremental,
            node_id="an-envoy",
            advertise="127.0.0.1",
            **write_identity(web.identity, town, tmp_path),
        )
        for name in ("lds_config", "cds_config"):
            bootstrap["dynamic_resources"][name] = on_its_own_stream(bootstrap)
        async with running_envoy(bootstrap, tmp_path) as envoy:
            listeners = {f"inbound|{inbound}", "outbound|voting|8081", "outbound|localhost|9"}
            assert await until(lambda: envoy.active_listeners() == listeners), envoy.log.read_text()[-3000:]
            assert await until(lambda: envoy.active_secrets() == {IDENTITY_NAME, BUNDLE_NAME})
            await exchange(inbound, client_context(voting.identity, town.ca.bundle))
            assert envoy.rejected() == {}
            assert await until(lambda: settled(server)), server.status()
            variant = "Delta" if incremental else "Stream"
            methods = [status.method for status in server.status()]
            assert sorted(methods) == [f"{variant}{noun}" for noun in ("AggregatedResources", "Clusters", "Listeners")]


@pytest.mark.parametrize("incremental", [False, True], ids=["sotw", "delta"])
async def test_envoy_comes_back_when_its_stream_has_ended_because_of_its_age_and_goes_on(
    incremental: bool, tmp_path: Path
) -> None:
    inbound = free_port()
    town = village(inbound, free_port())
    web, voting = town.activate("web"), town.activate("voting")
    tls = client_context(voting.identity, town.ca.bundle)
    young = XdsLimits(age=0.3, look=0.05)
    async with serving(town, young) as (server, port), echo_app(tmp_path / f"{inbound}.sock"):
        bootstrap = ads_bootstrap(
            xds_port=port,
            incremental=incremental,
            node_id="an-envoy",
            advertise="127.0.0.1",
            **write_identity(web.identity, town, tmp_path),
        )
        async with running_envoy(bootstrap, tmp_path) as envoy:
            assert await until(lambda: envoy.active_secrets() == {IDENTITY_NAME, BUNDLE_NAME}), envoy.log.read_text()
            seen = set[Session]()
            async with asyncio.timeout(30):
                while len(seen) < 4:
                    seen.update(server.open_streams())
                    await asyncio.sleep(0.02)
            renewed = next_identity(town, web).leaf
            async with asyncio.timeout(30):
                while await exchange(inbound, tls) != renewed:
                    await asyncio.sleep(0.05)
            assert envoy.rejected() == {}
            text = envoy.log.read_text()
            assert not [line for line in text.splitlines() if "gRPC config stream" in line and "[warning]" in line]
