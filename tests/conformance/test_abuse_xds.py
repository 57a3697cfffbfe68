# SPDX-License-Identifier: Apache-2.0
"""Whatever an activated Marble sends to the xDS port neither bloats a Coordinator nor keeps others from their pushes; a
process of its own, so that its memory is its own."""

from __future__ import annotations

import asyncio
import signal
import uuid as uuids
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from sds.attestation.simulated import SimulatedPlatform
from sds.identity import COORDINATOR_DNS_NAME
from sds.resources import SECRET
from sds.wire.discovery_pb2 import DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse, Node
from tests.conformance.test_abuse import peak
from tests.kit.coordinator import APP, manifest
from tests.kit.coordinator_process import CoordinatorProcess, coordinator
from tests.kit.marble_client import MarbleCredentials, activate
from tests.kit.xds_port import ADS, end_of, ended
from xds_server.activation import CHAIN, COORDINATOR_ROOT_CA, PRIVATE_KEY

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

SOTW, DELTA = f"/{ADS}/StreamAggregatedResources", f"/{ADS}/DeltaAggregatedResources"
# More than all attacks below were measured to take (36 MiB), less than what they would without limits.
GROWTH_MIB = 80
LONG = "x" * 500


@dataclass
class Honest:
    """A Marble that keeps to the rules: it has its secret, and acknowledges what comes."""

    process: CoordinatorProcess
    call: grpc.aio.StreamStreamCall

    async def hear(self) -> None:
        answer = DiscoveryResponse.FromString(await asyncio.wait_for(self.call.read(), 30))
        assert len(answer.resources) == 1
        ack = DiscoveryRequest(type_url=SECRET, resource_names=["default"], response_nonce=answer.nonce)
        await self.call.write(ack.SerializeToString())

    async def gets_the_next_push(self) -> None:
        self.process.process.send_signal(signal.SIGHUP)  # renews every identity
        await self.hear()


@dataclass
class Scene:
    """A Coordinator with two Marbles: a channel of the one, and the other."""

    process: CoordinatorProcess
    attacker: grpc.aio.Channel
    honest: Honest


async def dial(process: CoordinatorProcess, platform: SimulatedPlatform) -> grpc.aio.Channel:
    """The xDS port, as a Marble that was just activated."""
    who = MarbleCredentials.make()
    quote = who.quote(platform.issuer(APP))
    env = (await activate("127.0.0.1", process.port("mesh"), who, quote, "web", str(uuids.uuid4()))).env
    credentials = grpc.ssl_channel_credentials(env[COORDINATOR_ROOT_CA], env[PRIVATE_KEY], env[CHAIN])
    options = (
        ("grpc.ssl_target_name_override", COORDINATOR_DNS_NAME),
        ("grpc.enable_retries", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_send_message_length", -1),
    )
    return grpc.aio.secure_channel(f"127.0.0.1:{process.port('xds')}", credentials, options)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    directory = tmp_path_factory.mktemp("platform")
    platform = SimulatedPlatform.open(directory, datetime.now(UTC))
    async with coordinator(directory) as process:
        await process.set_manifest(manifest())
        async with await dial(process, platform) as attacker, await dial(process, platform) as other:
            honest = Honest(process, other.stream_stream(SOTW)())
            request = DiscoveryRequest(type_url=SECRET, resource_names=["default"])
            await honest.call.write(request.SerializeToString())
            await honest.hear()
            before = peak(process)
            yield Scene(process, attacker, honest)
            assert peak(process) - before < GROWTH_MIB
            assert not [line for line in process.lines if "exception" in line or "Traceback" in line["event"]]


async def test_requests_of_100_mb(scene: Scene) -> None:
    for _ in range(2):
        code, _ = await end_of(scene.attacker.stream_stream(SOTW), bytes(100 * 1024 * 1024))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        await scene.honest.gets_the_next_push()


async def test_as_many_long_names_as_a_request_can_hold_on_many_streams(scene: Scene) -> None:
    names = [f"{number:04}{LONG}" for number in range(4000)]
    body = DeltaDiscoveryRequest(type_url=SECRET, resource_names_subscribe=names).SerializeToString()
    calls = [scene.attacker.stream_stream(DELTA)() for _ in range(6)]
    for call in calls:
        await call.write(body)
        assert await asyncio.wait_for(call.read(), 30) is not grpc.aio.EOF  # none of them exists
    await scene.honest.gets_the_next_push()
    assert {code for code, _ in await asyncio.gather(*map(ended, calls))} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    await scene.honest.gets_the_next_push()


async def test_many_large_requests_at_once(scene: Scene) -> None:
    body = bytes(3 * 1024 * 1024)
    ends = await asyncio.gather(*(end_of(scene.attacker.stream_stream(DELTA), body) for _ in range(30)))
    assert {code for code, _ in ends} <= {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT}
    await scene.honest.gets_the_next_push()


async def test_clients_that_say_much_about_themselves(scene: Scene) -> None:
    body = DiscoveryRequest(type_url=SECRET, node=Node(id=LONG * 4000)).SerializeToString()
    for _ in range(5):
        code, _ = await end_of(scene.attacker.stream_stream(SOTW), body)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
    await scene.honest.gets_the_next_push()


async def test_streams_that_are_opened_and_left(scene: Scene) -> None:
    for _ in range(10):
        calls = [scene.attacker.stream_stream(DELTA)() for _ in range(200)]
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.gather(*map(ended, calls), return_exceptions=True)
    await scene.honest.gets_the_next_push()


async def test_answers_without_end_to_what_was_never_sent(scene: Scene) -> None:
    call = scene.attacker.stream_stream(SOTW)()
    body = DiscoveryRequest(type_url=SECRET, resource_names=["default"], response_nonce="nonsense").SerializeToString()
    with suppress(grpc.aio.AioRpcError):  # on a slow machine its stream is ended before all of them are out
        for _ in range(2000):
            await call.write(body)
    await scene.honest.gets_the_next_push()
    call.cancel()
