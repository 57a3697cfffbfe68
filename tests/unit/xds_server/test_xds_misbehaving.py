# SPDX-License-Identifier: Apache-2.0
"""A client that does not keep to the rules hurts itself: its stream ends with a reason, and others get the next push.
Real connections, grpcio's own client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message

from sds.discovery import MAX_REQUEST_BYTES
from sds.material import Identity
from sds.resources import SECRET, read_secret
from sds.wire.discovery_pb2 import DeltaDiscoveryRequest, DiscoveryRequest
from tests.kit.xds_port import ADS, Place, Wire, ask_whole, connected, end_of, ended, opened
from xds_server.xds_limits import XdsLimits

SOTW, DELTA = f"/{ADS}/StreamAggregatedResources", f"/{ADS}/DeltaAggregatedResources"
MANY = [f"name-{number}" for number in range(100_000)]


@dataclass
class Scene:
    """A port with an attacker's identity, and an honest client on it."""

    place: Place
    attacker: Identity
    attacker_uuid: str
    honest: Wire
    honest_uuid: str

    def dial(self) -> grpc.aio.Channel:
        """A connection of the attacker."""
        return self.place.of(self.attacker)

    def renew(self, marble_type: str, uuid: str) -> Identity:
        renewed = self.place.town.identity(marble_type, uuid)
        self.place.town.mesh.replace_identities({(marble_type, uuid): renewed})
        return renewed

    async def the_other_gets_its_push(self) -> None:
        renewed = self.renew("voting", self.honest_uuid)
        (secret,) = (await self.honest.hear()).resources
        assert read_secret(secret.body) == ("default", renewed)


@asynccontextmanager
async def scene(limits: XdsLimits | None = None) -> AsyncIterator[Scene]:
    async with opened(limits) as place:
        attacker, voting = place.town.activate("web"), place.town.activate("voting")
        async with connected(place.of(voting.identity)) as wire:
            wire.client.subscribe(SECRET, ["default"])
            await wire.hear()
            yield Scene(place, attacker.identity, attacker.uuid, wire, voting.uuid)


async def test_who_never_acknowledges_has_one_response_under_way_and_then_no_stream() -> None:
    async with scene(XdsLimits(answer=0.3, look=0.05)) as it, it.dial() as channel:
        call = channel.stream_stream(SOTW)()
        await ask_whole(call, SECRET, ["default"])
        pushed = it.place.metric("marblemesh_xds_pushes_total", type="secret")
        for _ in range(3):
            it.renew("web", it.attacker_uuid)
            await it.the_other_gets_its_push()
        assert it.place.metric("marblemesh_xds_pushes_total", type="secret") == pushed + 3, "the honest one's alone"
        code, text = await ended(call)
        assert (code, text) == (
            grpc.StatusCode.DEADLINE_EXCEEDED,
            "the client does not answer the responses that it gets",
        )
        await it.the_other_gets_its_push()
        assert it.place.metric("marblemesh_xds_ack_timeouts_total") == 1
        assert it.place.metric("marblemesh_xds_pending_acks") <= 1


async def test_answers_to_what_was_never_sent_are_counted_and_change_nothing() -> None:
    async with scene() as it, it.dial() as channel:
        call = channel.stream_stream(SOTW)()
        first = await ask_whole(call, SECRET, ["default"])
        for number in range(300):
            nonsense = DiscoveryRequest(
                type_url=SECRET, resource_names=["default"], response_nonce=f"nonsense-{number}", version_info="7"
            )
            await call.write(nonsense.SerializeToString())
        await it.the_other_gets_its_push()
        renewed = it.renew("web", it.attacker_uuid)
        again = await ask_whole(call, SECRET, ["default"], nonce=first.nonce)
        assert it.place.metric("marblemesh_xds_expired_nonces_total", type="secret") == 300
        assert read_secret(again.resources[0].value) == ("default", renewed)


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        (SOTW, DiscoveryRequest(type_url=SECRET, resource_names=MANY)),
        (DELTA, DeltaDiscoveryRequest(type_url=SECRET, resource_names_subscribe=MANY)),
        (DELTA, DeltaDiscoveryRequest(type_url=SECRET, initial_resource_versions=dict.fromkeys(MANY, "1"))),
    ],
    ids=["state of the world", "incremental", "held versions"],
)
async def test_a_flood_of_names_ends_the_stream_and_is_not_kept(method: str, request_: Message) -> None:
    async with scene() as it, it.dial() as channel:
        code, text = await end_of(channel.stream_stream(method), request_.SerializeToString())
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "100000 resource names" in text
        await it.the_other_gets_its_push()
        assert it.place.metric("marblemesh_xds_subscriptions", type="secret") == 1


async def test_names_that_are_spread_over_many_streams_end_all_of_them() -> None:
    async with scene(XdsLimits(names_per_client=2_000, look=0.05)) as it, it.dial() as channel:
        calls = [channel.stream_stream(SOTW)() for _ in range(3)]
        request = DiscoveryRequest(type_url=SECRET, resource_names=MANY[:1_000])
        for call in calls:
            await call.write(request.SerializeToString())
        ends = [await ended(call) for call in calls]
        text = "more than 2000 subscribed resource names of one client"
        assert ends == [(grpc.StatusCode.RESOURCE_EXHAUSTED, text)] * 3
        await it.the_other_gets_its_push()


async def test_a_request_of_100_mb_is_refused_by_its_length() -> None:
    async with scene() as it, it.dial() as channel:
        code, text = await end_of(channel.stream_stream(SOTW), bytes(100 * 1024 * 1024))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert str(MAX_REQUEST_BYTES) in text
        await it.the_other_gets_its_push()


async def test_a_stream_on_which_nothing_is_asked_ends() -> None:
    async with scene(XdsLimits(patience=0.2)) as it, it.dial() as channel:
        call = channel.stream_stream(DELTA)()
        assert await ended(call) == (grpc.StatusCode.DEADLINE_EXCEEDED, "no request on this stream")
        await it.the_other_gets_its_push()


async def test_of_1000_streams_most_are_refused_and_the_rest_works() -> None:
    async with scene() as it, it.dial() as channel:
        calls = [channel.stream_stream(DELTA)() for _ in range(1000)]
        allowed = XdsLimits().streams_per_client
        done = asyncio.as_completed([call.code() for call in calls])
        refused = [await next(done) for _ in range(1000 - allowed)]
        assert set(refused) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert it.place.metric("marblemesh_xds_denied_total", reason="too_many_streams") == 1000 - allowed
        await it.the_other_gets_its_push()
        open_ = [call for call in calls if not call.done()]
        assert len(open_) == allowed
        request = DeltaDiscoveryRequest(type_url=SECRET, resource_names_subscribe=["default"])
        await open_[0].write(request.SerializeToString())
        assert await asyncio.wait_for(open_[0].read(), 10) is not grpc.aio.EOF
        for call in calls:
            call.cancel()


async def test_a_storm_of_clients_is_taken_in_turn_without_a_refusal() -> None:
    async with scene(XdsLimits(starts=200, starts_burst=5)) as it:
        marbles = [it.place.town.activate("web") for _ in range(40)]
        channels = [it.place.of(marble.identity) for marble in marbles]
        calls = [channel.stream_stream(SOTW)() for channel in channels]
        given = await asyncio.gather(*(ask_whole(call, SECRET, ["default"]) for call in calls))
        assert [len(response.resources) for response in given] == [1] * 40
        await it.the_other_gets_its_push()
        assert it.place.metric("marblemesh_xds_waiting_streams") == 0
        assert it.place.metric("marblemesh_xds_denied_total", reason="overloaded") == 0
        for channel in channels:
            await channel.close()
