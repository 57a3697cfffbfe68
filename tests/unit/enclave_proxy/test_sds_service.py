# SPDX-License-Identifier: Apache-2.0
"""The worker's SDS with real gRPC clients on a UNIX socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from enclave_proxy.local_server import LocalServer
from enclave_proxy.sds_service import SERVICE
from sds.discovery import View
from sds.discovery_client import DeltaClient
from sds.latest import Latest
from sds.resources import SECRET
from sds.wire import discovery_pb2
from tests.kit.discovery import view
from tests.kit.local_socket import sds, serving_on

Place = tuple[Path, Latest[View], LocalServer]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    views: Latest[View] = Latest(view(SDS={"default": "1", "ROOTCA": "1"}, CDS={"c": "1"}))
    path = tmp_path / "sds.sock"
    async with serving_on(path, sds(views)) as server:
        yield path, views, server


async def read(call: grpc.aio.StreamStreamCall[bytes, bytes]) -> bytes:
    body = await asyncio.wait_for(call.read(), 10)
    assert isinstance(body, bytes)
    return body


def asking(*names: str) -> bytes:
    return discovery_pb2.DiscoveryRequest(resource_names=names).SerializeToString()


async def test_an_incremental_client_gets_secrets_and_follows_them(place: Place) -> None:
    path, views, _ = place
    client = DeltaClient(discovery_pb2.Node(id="local"))
    client.subscribe(SECRET, ["default", "missing"])
    client.connected()
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        call = channel.stream_stream(f"{SERVICE}/DeltaSecrets")()
        await call.write(client.take())
        update = client.receive_bytes(await read(call))
        assert ([r.name for r in update.resources], update.removed) == (["default"], ("missing",))
        client.ack(update)
        await call.write(client.take())
        await views.publish(view(SDS={"default": "2"}))
        (secret,) = client.receive_bytes(await read(call)).resources
        assert secret.version == "2"


async def test_a_name_that_does_not_exist_yet_is_answered_at_once_and_served_when_it_does(place: Place) -> None:
    path, views, server = place
    client = DeltaClient(discovery_pb2.Node(id="local"))
    client.subscribe(SECRET, ["later"])
    client.connected()
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        call = channel.stream_stream(f"{SERVICE}/DeltaSecrets")()
        await call.write(client.take())
        update = client.receive_bytes(await read(call))
        assert (update.resources, dict(update.errors)) == ((), {"later": (5, "does not exist")})
        assert server.counters.missing == 1
        client.ack(update)
        await call.write(client.take())
        await views.publish(view(SDS={"later": "1"}))
        (secret,) = client.receive_bytes(await read(call)).resources
        assert secret.name == "later"


async def test_a_state_of_the_world_client_may_leave_the_type_out(place: Place) -> None:
    async with grpc.aio.insecure_channel(f"unix:{place[0]}") as channel:
        call = channel.stream_stream(f"{SERVICE}/StreamSecrets")()
        await call.write(asking("ROOTCA"))
        response = discovery_pb2.DiscoveryResponse.FromString(await read(call))
        assert (response.type_url, len(response.resources)) == (SECRET, 1)


async def test_all_names_of_one_request_are_served_each_in_a_response_of_its_own(place: Place) -> None:
    async with grpc.aio.insecure_channel(f"unix:{place[0]}") as channel:
        call = channel.stream_stream(f"{SERVICE}/StreamSecrets")()
        await call.write(asking("ROOTCA", "missing", "default"))
        bodies = []
        for _ in range(2):
            response = discovery_pb2.DiscoveryResponse.FromString(await read(call))
            bodies += [item.value for item in response.resources]
            ack = discovery_pb2.DiscoveryRequest(
                resource_names=["ROOTCA", "missing", "default"],
                version_info=response.version_info,
                response_nonce=response.nonce,
            )
            await call.write(ack.SerializeToString())
        assert sorted(bodies) == [b"ROOTCA@1<>", b"default@1<>"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"\x0a\x05x", grpc.StatusCode.INVALID_ARGUMENT),
        (b"\x22\x01x", grpc.StatusCode.INVALID_ARGUMENT),
        (b"\x0a" * 300_000, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (asking(*map(str, range(257))), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
    ids=["no protobuf", "another type", "too long", "too many names"],
)
async def test_bad_requests_end_their_stream_and_nothing_else(place: Place, body: bytes, code: grpc.StatusCode) -> None:
    async with grpc.aio.insecure_channel(f"unix:{place[0]}") as channel:
        other = channel.stream_stream(f"{SERVICE}/StreamSecrets")()
        await other.write(asking())
        call = channel.stream_stream(f"{SERVICE}/StreamSecrets")()
        await call.write(body)
        assert await asyncio.wait_for(call.code(), 10) is code
        await other.write(asking("default"))
        assert await read(other)


async def test_what_an_envoy_rejects_is_counted_and_said_without_its_content(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    path, _, server = place
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        call = channel.stream_stream(f"{SERVICE}/StreamSecrets")()
        await call.write(asking("default"))
        response = discovery_pb2.DiscoveryResponse.FromString(await read(call))
        nack = discovery_pb2.DiscoveryRequest(resource_names=["default"], response_nonce=response.nonce)
        nack.error_detail.message = "bad: -----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----"
        nack.error_detail.code = 13
        await call.write(nack.SerializeToString())
        async with asyncio.timeout(10):
            while not server.counters.nacks:
                await asyncio.sleep(0.01)
    assert "MIGH" not in caplog.text


async def test_many_clients_at_once(place: Place) -> None:
    path, _, _ = place

    async def one() -> bytes:
        options = (("grpc.use_local_subchannel_pool", 1),)
        async with grpc.aio.insecure_channel(f"unix:{path}", options=options) as channel:
            call = channel.stream_stream(f"{SERVICE}/StreamSecrets")()
            await call.write(asking("default"))
            return await read(call)

    assert len(await asyncio.gather(*(one() for _ in range(50)))) == 50
