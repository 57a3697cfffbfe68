# SPDX-License-Identifier: Apache-2.0
"""The own gRPC transport with other people's gRPC clients: grpclib, and grpcio's two. (A stock Envoy and our worker:
tests/e2e.)"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import grpc
import grpc.aio
import pytest
from grpclib.client import Channel
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError

from enclave_proxy.grpc_channel import RawCodec
from sds.identity import COORDINATOR_DNS_NAME
from sds.material import Identity
from tests.kit.rpc_handlers import ECHO, FALL, HANDLERS, LISTEN
from tests.kit.rpc_port import Opened, opened

SIZES = (0, 1, 20_000, 300_000, 2_000_000)
OPTIONS = (
    ("grpc.ssl_target_name_override", COORDINATOR_DNS_NAME),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
)


@pytest.fixture
async def port() -> AsyncIterator[Opened]:
    async with opened(HANDLERS) as there:
        yield there


def credentials(port: Opened, identity: Identity) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(port.town.ca.chain_pem, identity.key.pem, identity.chain)


async def fall(channel: Channel) -> None:
    async with channel.request(FALL, Cardinality.STREAM_STREAM, bytes, bytes) as stream:
        await stream.send_message(b"politely", end=True)
        await stream.recv_message()


@pytest.mark.parametrize("path", [ECHO, LISTEN])
async def test_grpclib(port: Opened, path: str) -> None:
    context = port.context(port.town.activate("web").identity)
    channel = Channel("127.0.0.1", port.number, codec=RawCodec(), ssl=context)
    try:
        async with channel.request(path, Cardinality.STREAM_STREAM, bytes, bytes) as stream:
            for size in SIZES:
                await stream.send_message(bytes(size))
                assert await stream.recv_message() == bytes(size)
            await stream.end()
            assert await stream.recv_message() is None
        with pytest.raises(GRPCError) as caught:
            await fall(channel)
        assert (caught.value.status, caught.value.message) == (Status.ABORTED, "no more")
    finally:
        channel.close()


@pytest.mark.parametrize("path", [ECHO, LISTEN])
async def test_grpcio_with_asyncio(port: Opened, path: str) -> None:
    identity = port.town.activate("web").identity
    target = f"127.0.0.1:{port.number}"
    async with grpc.aio.secure_channel(target, credentials(port, identity), OPTIONS) as channel:
        call = channel.stream_stream(path)()
        for size in SIZES:
            await call.write(bytes(size))
            assert await call.read() == bytes(size)
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(FALL)(b"politely")
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.ABORTED, "no more")


async def test_grpcio_with_threads(port: Opened) -> None:
    identity = port.town.activate("web").identity

    def talk() -> list[bytes]:
        def bodies() -> Iterator[bytes]:
            yield from (b"one", b"two", bytes(100_000))

        with grpc.secure_channel(f"127.0.0.1:{port.number}", credentials(port, identity), OPTIONS) as channel:
            return list(channel.stream_stream(ECHO)(bodies(), timeout=20))

    assert await asyncio.to_thread(talk) == [b"one", b"two", bytes(100_000)]


async def test_many_calls_of_one_client_at_once(port: Opened) -> None:
    identity = port.town.activate("web").identity
    target = f"127.0.0.1:{port.number}"
    async with grpc.aio.secure_channel(target, credentials(port, identity), OPTIONS) as channel:

        async def ask(number: int) -> bytes:
            call = channel.stream_stream(ECHO if number % 2 else LISTEN)()
            await call.write(b"%d" % number * 5000)
            answer = await call.read()
            call.cancel()
            return bytes(answer)

        answers = await asyncio.gather(*map(ask, range(200)))  # more than may be open at a time: the client waits
    assert answers == [b"%d" % number * 5000 for number in range(200)]
