# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Server, Stream

from enclave_proxy.activation_client import ACTIVATE, ActivationClient, public_key_bytes
from enclave_proxy.config import HostPort
from enclave_proxy.errors import ActivationRefused, ActivationUnavailable, CoordinatorNotTrusted, ParametersError
from enclave_proxy.grpc_channel import RawCodec
from enclave_proxy.own_certificate import OwnCertificate
from sds.tls import server_context
from sds.wire.marble_pb2 import ActivationRequest, ActivationResponse, Parameters
from tests.kit.pki import now

SERVER = OwnCertificate.create(("localhost",), ("127.0.0.1",), now())
OWN = OwnCertificate.create(("web.mesh",), ("127.0.0.1",), now())
REPLY = ActivationResponse(parameters=Parameters(env={"A": b"1"})).SerializeToString()

Behaviour = Callable[[Stream[bytes, bytes]], Awaitable[None]]


@asynccontextmanager
async def marble_api(behave: Behaviour, alpn: str = "h2") -> AsyncIterator[HostPort]:
    """A Marble API that behaves as told. (The real one, which also asks for our certificate, is met end to end.)"""
    context = server_context(SERVER.identity, None, require_client_certificate=False)
    context.set_alpn_protocols([alpn])

    class Service:
        def __mapping__(self) -> dict[str, Handler]:
            return {ACTIVATE: Handler(behave, Cardinality.UNARY_UNARY, bytes, bytes)}

    server = Server([Service()], codec=RawCodec())
    await server.start("127.0.0.1", 0, ssl=context)
    assert server._server is not None
    try:
        yield HostPort("127.0.0.1", server._server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await server.wait_closed()


def answers(reply: bytes) -> Behaviour:
    async def behave(stream: Stream[bytes, bytes]) -> None:
        await stream.recv_message()
        await stream.send_message(reply)

    return behave


def refuses(status: Status) -> Behaviour:
    async def behave(stream: Stream[bytes, bytes]) -> None:
        raise GRPCError(status, "the reason")

    return behave


async def test_the_request_says_who_asks_and_the_reply_is_parameters() -> None:
    seen: list[ActivationRequest] = []

    async def behave(stream: Stream[bytes, bytes]) -> None:
        seen.append(ActivationRequest.FromString(await stream.recv_message() or b""))
        await stream.send_message(REPLY)

    async with marble_api(behave) as address:
        parameters = await ActivationClient(address, OWN).activate(b"quote", "web", "u")
    assert dict(parameters.env) == {"A": b"1"}
    (request,) = seen
    assert (request.quote, request.csr, request.marble_type, request.uuid) == (b"quote", OWN.csr, "web", "u")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (Status.FAILED_PRECONDITION, ActivationUnavailable),
        (Status.UNAVAILABLE, ActivationUnavailable),
        (Status.PERMISSION_DENIED, ActivationRefused),
        (Status.INVALID_ARGUMENT, ActivationRefused),
        (Status.UNAUTHENTICATED, ActivationRefused),
        (Status.INTERNAL, ActivationRefused),
        (Status.UNIMPLEMENTED, ActivationRefused),
    ],
)
async def test_the_answer_decides_whether_asking_again_helps(status: Status, kind: type[Exception]) -> None:
    async with marble_api(refuses(status)) as address:
        with pytest.raises(kind, match=f"{status.name}: the reason"):
            await ActivationClient(address, OWN).activate(b"", "web", "u")


async def test_nobody_there_is_a_reason_to_ask_again() -> None:
    async with marble_api(answers(REPLY)) as address:
        pass
    with pytest.raises(ActivationUnavailable, match=r"no Coordinator at 127\.0\.0\.1:\d+: connection refused"):
        await ActivationClient(address, OWN).activate(b"", "web", "u")


async def test_the_pinned_key_is_demanded_before_a_quote_is_sent() -> None:
    asked: list[bytes | None] = []

    async def behave(stream: Stream[bytes, bytes]) -> None:
        asked.append(await stream.recv_message())
        await stream.send_message(REPLY)

    async with marble_api(behave) as address:
        await ActivationClient(address, OWN, public_key_bytes(SERVER.identity.leaf)).activate(b"q", "web", "u")
        with pytest.raises(CoordinatorNotTrusted, match="does not have the key of the attested Coordinator"):
            await ActivationClient(address, OWN, public_key_bytes(OWN.identity.leaf)).activate(b"q", "web", "u")
    assert len(asked) == 1


async def test_a_server_that_does_not_speak_http2_is_told_apart() -> None:
    async with marble_api(answers(REPLY), alpn="http/1.1") as address:
        with pytest.raises(ActivationUnavailable, match=r"does not speak HTTP/2 \(ALPN h2\)"):
            await ActivationClient(address, OWN).activate(b"", "web", "u")


async def test_a_reply_that_is_no_message_is_refused() -> None:
    async with marble_api(answers(b"\xff\xff")) as address:
        with pytest.raises(ParametersError, match="is not an ActivationResponse"):
            await ActivationClient(address, OWN).activate(b"", "web", "u")


@pytest.mark.parametrize("head", [struct.pack(">BI", 0, 4 * 1024 * 1024 + 1), struct.pack(">BI", 1, 10)])
async def test_a_reply_beyond_the_limit_is_refused_before_it_is_read(head: bytes) -> None:
    async def behave(stream: Stream[bytes, bytes]) -> None:
        await stream.recv_message()
        await stream.send_initial_metadata()
        await stream._stream.send_data(head)
        await asyncio.Event().wait()  # and not one byte more

    async with marble_api(behave) as address:
        with pytest.raises(ActivationUnavailable, match="at most 4194304 are accepted"):
            await ActivationClient(address, OWN).activate(b"", "web", "u")


async def test_a_reply_without_a_message_is_a_reason_to_ask_again() -> None:
    async def behave(stream: Stream[bytes, bytes]) -> None:
        await stream.send_trailing_metadata(status=Status.UNAVAILABLE, status_message="draining")

    async with marble_api(behave) as address:
        with pytest.raises(ActivationUnavailable, match="UNAVAILABLE: draining"):
            await ActivationClient(address, OWN).activate(b"", "web", "u")


async def test_plain_tcp_is_a_reason_to_ask_again_and_not_a_hang() -> None:
    async def slam(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(slam, "127.0.0.1", 0)
    async with server:
        address = HostPort("127.0.0.1", server.sockets[0].getsockname()[1])
        with pytest.raises(ActivationUnavailable, match="no Coordinator at"):
            await ActivationClient(address, OWN).activate(b"", "web", "u")


def test_a_context_of_ours_has_no_name_check_to_mislead_anybody() -> None:
    context = ActivationClient(HostPort("h", 1), OWN)._context()
    assert context.verify_mode is ssl.CERT_NONE
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
