# SPDX-License-Identifier: Apache-2.0
"""What an operator reads off the metrics of the xDS port, after something real has happened on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from prometheus_client import generate_latest

from sds.resources import CLUSTER, SECRET
from sds.wire.discovery_pb2 import DiscoveryRequest
from tests.kit.xds_port import ADS, Place, Wire, ask_whole, connected, opened
from xds_server.xds_metrics import SHORT_TYPES

P = "marblemesh_xds_"


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with opened() as it:
        yield it


async def renew_all(place: Place, *wires: Wire) -> None:
    """Renew every identity; returns when all have answered, and the server has done what follows from that."""
    renewed = {(m.marble_type, m.uuid): place.town.identity(m.marble_type, m.uuid) for m in place.town.mesh.marbles}
    place.town.mesh.replace_identities(renewed)
    for wire in wires:
        await wire.hear()
    async with asyncio.timeout(10):
        while place.metric(f"{P}pending_acks"):
            await asyncio.sleep(0.01)
    for _ in range(50):
        await asyncio.sleep(0)


async def test_a_change_is_timed_from_debounce_to_the_last_answer(place: Place) -> None:
    web, voting = place.town.activate("web"), place.town.activate("voting")
    async with connected(place.of(web.identity)) as one, connected(place.of(voting.identity)) as other:
        for wire in (one, other):
            wire.client.subscribe(SECRET, ["default"])
            await wire.hear()
        await renew_all(place, one, other)  # and what the activations changed has arrived as well
        names = [f"{P}{name}_count" for name in ("debounce_seconds", "queue_seconds", "convergence_seconds")]
        before = [place.metric(name) for name in names]
        await renew_all(place, one, other)
        after = [place.metric(name) for name in names]
    assert [new - old for new, old in zip(after, before, strict=True)] == [1, 2, 1]
    assert place.metric(f"{P}push_seconds_count", type="secret") == 6
    assert place.metric(f"{P}config_size_bytes_count", type="secret") == 6
    assert place.metric(f"{P}ack_seconds_count", type="secret") == place.metric(f"{P}acks_total", type="secret") == 6


async def test_a_change_that_comes_with_the_push_is_part_of_it_and_not_timed_from_the_beginning_of_time(
    place: Place,
) -> None:
    """A stream that was heard of just before the push can change the mesh in that instant."""
    web = place.town.activate("web")
    async with connected(place.of(web.identity)) as wire:
        wire.client.subscribe(SECRET, ["default"])
        await wire.hear()
        await renew_all(place, wire)
        followers, renewed = place.server._followers, place.town.identity("web", web.uuid)
        before_push = followers._before_push

        def and_one_more() -> None:
            before_push()
            place.town.mesh.replace_identities({("web", web.uuid): renewed})

        followers._before_push = and_one_more
        await renew_all(place, wire)
        followers._before_push = before_push
        await asyncio.sleep(0.3)
    assert place.metric(f"{P}debounce_seconds_sum") < 60


async def test_what_is_asked_for_and_what_does_not_exist_is_counted(place: Place) -> None:
    web = place.town.activate("web")
    async with connected(place.of(web.identity)) as wire:
        wire.client.subscribe(CLUSTER, ["*"])
        wire.client.subscribe(SECRET, ["default", "nobody", "nothing"])
        for _ in range(2):
            await wire.hear()
        assert place.metric(f"{P}subscriptions", type="cluster") == 1
        assert place.metric(f"{P}subscriptions", type="secret") == 3
        assert place.metric(f"{P}not_found_total", type="secret") == 2
        assert place.metric(f"{P}streams", variant="delta", role="marble") == 1
    async with asyncio.timeout(10):
        while place.metric(f"{P}streams", variant="delta", role="marble"):
            await asyncio.sleep(0.01)
    assert place.metric(f"{P}subscriptions", type="secret") == 0


async def test_a_response_counts_as_pending_until_it_is_answered(place: Place) -> None:
    web = place.town.activate("web")
    async with place.of(web.identity) as channel:
        call = channel.stream_stream(f"/{ADS}/StreamAggregatedResources")()
        secret = await ask_whole(call, SECRET, ["default"])
        assert place.metric(f"{P}pending_acks") == 1
        await ask_whole(call, CLUSTER)
        assert place.metric(f"{P}pending_acks") == 2
        assert place.metric(f"{P}acks_total", type="secret") == 0
        again = await ask_whole(call, SECRET, ["default", "ROOTCA"], nonce=secret.nonce)
        assert place.metric(f"{P}acks_total", type="secret") == 1
        assert again.nonce != secret.nonce


async def test_when_certificates_expire_is_told_as_unix_time(place: Place) -> None:
    first, second = place.town.activate("web"), place.town.activate("voting")
    soonest = min(first.identity.not_after, second.identity.not_after).timestamp()
    expiry = f"{P}certificate_expiry_timestamp_seconds"
    assert place.metric(expiry, certificate="identities") == soonest
    root = place.town.ca.marble_root.not_valid_after_utc.timestamp()
    assert place.metric(expiry, certificate="marble_root") == root
    assert place.metric(expiry, certificate="coordinator") > place.town.time.timestamp()


async def test_no_client_can_make_a_label(place: Place) -> None:
    web = place.town.activate("web")
    async with place.of(web.identity) as channel:
        call = channel.stream_stream(f"/{ADS}/StreamAggregatedResources")()
        await ask_whole(call, SECRET, ["default", "marker-of-a-name"])
        unknown = DiscoveryRequest(type_url="type.googleapis.com/marker-of-a-type", resource_names=["marker"])
        await call.write(unknown.SerializeToString())
        await ask_whole(call, CLUSTER)  # so that the one before has arrived
        assert place.metric(f"{P}subscriptions", type="other") == 1
        text = generate_latest(place.registry).decode()
    labels = {line.split('type="')[1].split('"')[0] for line in text.splitlines() if 'type="' in line}
    assert labels <= set(SHORT_TYPES)
    assert "marker" not in text
    assert web.uuid not in text
