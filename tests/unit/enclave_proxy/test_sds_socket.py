# SPDX-License-Identifier: Apache-2.0
"""The worker's SDS socket with real gRPC clients on a UNIX socket."""

from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from enclave_proxy.sds_socket import SERVICE, SdsSocket, SocketInUseError
from sds.discovery import View
from sds.discovery_client import DeltaClient
from sds.latest import Latest
from sds.logs import get_logger
from sds.resources import SECRET
from sds.wire import discovery_pb2
from tests.kit.discovery import view

Place = tuple[Path, Latest[View]]


def server(views: Latest[View] | None = None) -> SdsSocket:
    return SdsSocket(views or Latest[View]({}), get_logger("test"))


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    views: Latest[View] = Latest(view(SDS={"default": "1", "ROOTCA": "1"}, CDS={"c": "1"}))
    sds = server(views)
    await sds.start(tmp_path / "sds.sock")
    yield tmp_path / "sds.sock", views
    await sds.stop()


async def read(call: grpc.aio.StreamStreamCall[bytes, bytes]) -> bytes:
    body = await asyncio.wait_for(call.read(), 10)
    assert isinstance(body, bytes)
    return body


async def test_an_incremental_client_gets_secrets_and_follows_them(place: Place) -> None:
    path, views = place
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


async def test_a_state_of_the_world_client_may_leave_the_type_out(place: Place) -> None:
    path, _ = place
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        call = channel.stream_stream(f"{SERVICE}/StreamSecrets")()
        await call.write(discovery_pb2.DiscoveryRequest(resource_names=["ROOTCA"]).SerializeToString())
        response = discovery_pb2.DiscoveryResponse.FromString(await read(call))
        assert (response.type_url, len(response.resources)) == (SECRET, 1)


@pytest.mark.parametrize(
    ("body", "code"),
    [(b"\x0a\x05x", grpc.StatusCode.INVALID_ARGUMENT), (b"\x22\x01x", grpc.StatusCode.INVALID_ARGUMENT)],
    ids=["no protobuf", "another type"],
)
async def test_bad_requests_end_their_stream_and_nothing_else(place: Place, body: bytes, code: grpc.StatusCode) -> None:
    path, _ = place
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        call = channel.stream_stream(f"{SERVICE}/StreamSecrets")()
        await call.write(body)
        assert await asyncio.wait_for(call.code(), 10) is code
        again = channel.stream_stream(f"{SERVICE}/StreamSecrets")()
        await again.write(discovery_pb2.DiscoveryRequest(resource_names=["default"]).SerializeToString())
        assert await read(again)


async def test_many_clients_at_once(place: Place) -> None:
    path, _ = place

    async def one() -> bytes:
        options = (("grpc.use_local_subchannel_pool", 1),)
        async with grpc.aio.insecure_channel(f"unix:{path}", options=options) as channel:
            call = channel.stream_stream(f"{SERVICE}/StreamSecrets")()
            await call.write(discovery_pb2.DiscoveryRequest(resource_names=["default"]).SerializeToString())
            return await read(call)

    assert len(await asyncio.gather(*(one() for _ in range(50)))) == 50


async def test_only_the_owner_may_connect(place: Place) -> None:
    assert stat.S_IMODE(place[0].stat().st_mode) == 0o600


async def test_a_second_server_does_not_take_the_socket(place: Place) -> None:
    with pytest.raises(SocketInUseError, match="another process"):
        await server().start(place[0])


async def test_a_server_without_our_lock_is_not_pushed_aside(tmp_path: Path) -> None:
    path = tmp_path / "sds.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        other.listen(1)
        with pytest.raises(SocketInUseError, match="somebody answers"):
            await server().start(path)


async def test_a_socket_that_nobody_answers_on_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "sds.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    sds = server()
    await sds.start(path)
    await sds.stop()
    assert not path.exists()


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "sds.sock"
    path.write_text("precious")
    with pytest.raises(SocketInUseError, match="no socket"):
        await server().start(path)
    assert path.read_text() == "precious"


async def test_after_a_stop_the_path_is_free_again(tmp_path: Path) -> None:
    for _ in range(2):
        sds = server()
        await sds.start(tmp_path / "sds.sock")
        await sds.stop()
