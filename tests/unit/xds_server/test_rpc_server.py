# SPDX-License-Identifier: Apache-2.0
"""The own gRPC transport on real sockets and real TLS: messages both ways, and who gets in."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from sds.tls import client_context
from tests.kit.rpc_handlers import ECHO, FALL, HANDLERS, LISTEN, SINK, WAIT, Echoing
from tests.kit.rpc_peer import GREETING, framed, open_stream
from tests.kit.rpc_port import Opened, head_of, opened
from tests.kit.xds_mesh import Town, manifest
from xds_server.rpc import Call, CallEnded
from xds_server.rpc_call import RpcCall
from xds_server.rpc_frames import frame
from xds_server.rpc_h2 import Connection
from xds_server.rpc_link import Link
from xds_server.rpc_port import LinkTimes
from xds_server.rpc_server import PortLimits
from xds_server.rpc_stream import Stream


@pytest.fixture
async def port() -> AsyncIterator[Opened]:
    async with opened(HANDLERS) as there:
        yield there


@pytest.mark.parametrize("path", [ECHO, LISTEN])
async def test_messages_go_both_ways_through_a_task_and_through_a_receiver(port: Opened, path: str) -> None:
    sizes = [0, 1, 20_000, 300_000, 5]
    bodies = [bytes((n,)) * size for n, size in enumerate(sizes)]
    async with await port.dial() as client:
        number = await client.call(path)
        for body in bodies:
            sent = 0
            data = framed(body)
            while sent < len(data):
                room = min(client.h2.local_flow_control_window(number), 16384)
                if not room:
                    await client.hear()
                    continue
                client.h2.send_data(number, data[sent : sent + room])
                sent += room
                await client.flush()
        client.h2.end_stream(number)
        await client.flush()
        answer = await client.answer(number)
    assert answer.body == b"".join(map(framed, bodies))
    assert answer.status == (b"0", b"")


async def test_an_idle_stream_of_a_receiver_has_no_task(port: Opened) -> None:
    before = len(asyncio.all_tasks())
    async with await port.dial() as client:
        number = await client.call(LISTEN, b"x")
        await client.body(number, 6)
        assert len(asyncio.all_tasks()) == before
        assert Echoing.open == 1
    while Echoing.open:
        await asyncio.sleep(0.001)


async def test_a_connection_that_is_over_leaves_nothing_for_the_garbage_collector() -> None:
    ours = (Link, Connection, Stream, RpcCall, Echoing)

    def alive() -> int:
        return sum(isinstance(thing, ours) for thing in gc.get_objects())

    times = LinkTimes(handshake=0.1, write=0.1, idle=0.1, pong=0.1, tick=0.01)  # who keeps the time lets go, too
    async with opened(HANDLERS, times=times) as port:
        gc.collect()
        gc.disable()
        try:
            async with await port.dial() as client:
                for path in (LISTEN, ECHO):
                    await client.body(await client.call(path, b"x"), 6)
                assert alive() > 4
            while port.port.connections:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.3)
            assert alive() == 0
        finally:
            gc.enable()


@pytest.mark.parametrize("path", [FALL, LISTEN])
@pytest.mark.parametrize(
    ("body", "status"), [(b"politely", (b"10", b"no more")), (b"fall", (b"13", b"internal error"))]
)
async def test_an_rpc_error_is_told_and_the_text_of_a_bug_is_not(
    port: Opened, path: str, body: bytes, status: tuple[bytes, bytes]
) -> None:
    async with await port.dial() as client:
        answer = await client.answer(await client.call(path, body))
        assert answer.status == status
        again = await client.call(ECHO, b"still here")
        assert await client.body(again, 15) == framed(b"still here")


async def test_an_unknown_method_is_unimplemented(port: Opened) -> None:
    async with await port.dial() as client:
        answer = await client.answer(await client.call("/t/Nothing"))
    assert answer.status == (b"12", b"no such method")


async def test_a_handler_whose_client_has_left_is_cancelled_and_one_that_writes_is_told() -> None:
    ended: asyncio.Queue[str] = asyncio.Queue()

    async def waits(_call: Call) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.put_nowait("cancelled")

    async def writes(call: Call) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        try:
            await call.write(b"x")
        except CallEnded:
            ended.put_nowait("told")
            raise

    async with opened({WAIT: waits, SINK: writes}) as port:
        for path, how in ((WAIT, "cancelled"), (SINK, "told")):
            async with await port.dial() as client:
                await client.call(path, b"x")
                await asyncio.sleep(0.02)
            assert await asyncio.wait_for(ended.get(), 10) == how


# ---- who gets in


async def come(port: Opened, context: ssl.SSLContext) -> None:
    """Connect and ask; raises whatever the client finds."""
    async with await port.dial(context) as client:
        await client.call(ECHO, b"x")
        if not await client.hear():
            raise ConnectionResetError


async def test_without_a_certificate_of_the_mesh_nobody_gets_through_the_handshake(port: Opened) -> None:
    stranger = Town(manifest({}, {"web": []})).activate("web")
    for identity in (None, stranger.identity):
        with pytest.raises((ssl.SSLError, ConnectionError)):  # the alert, if it comes before the end
            await come(port, port.context(identity))
    assert [reason.split()[0].lower() for reason in port.refused] == ["peer_did_not_return_a_certificate", "client"]


async def test_a_client_hears_the_alert_that_says_what_is_wrong_with_its_certificate(port: Opened) -> None:
    stranger = Town(manifest({}, {"web": []})).activate("web")
    async with await port.dial(port.context(stranger.identity)) as client:
        await client.call(ECHO, *[b"x"] * 100)  # what is still under way must not turn the alert into a reset
        with pytest.raises(ssl.SSLError, match="unknown ca"):
            await client.until_closed()


async def test_a_client_that_does_not_speak_http2_is_sent_away(port: Opened) -> None:
    context = port.context(port.town.activate("web").identity, alpn="http/1.1")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await come(port, context)
    assert port.refused == ["client did not offer h2 by ALPN"]


async def test_tls_1_2_is_spoken_with_who_has_nothing_newer(port: Opened) -> None:
    context = port.context(port.town.activate("web").identity)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with await port.dial(context) as client:
        tls = client.writer.get_extra_info("ssl_object")
        assert (tls.version(), tls.cipher()[0][:5]) == ("TLSv1.2", "ECDHE")
        number = await client.call(ECHO, b"x")
        assert await client.body(number, 6) == framed(b"x")


async def test_every_handshake_takes_the_certificates_that_are_current(port: Opened) -> None:
    context = port.context(port.town.activate("web").identity)
    async with await port.dial(context) as before:
        stranger = Town(manifest({}, {"web": []}))
        port.tls.trust(stranger.ca.bundle.pem)
        number = await before.call(ECHO, b"x")
        assert await before.body(number, 6), "who is connected stays"
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await come(port, context)
        trusted = client_context(stranger.activate("web").identity, stranger.ca.bundle)
        trusted.verify_mode = ssl.CERT_NONE
        trusted.set_alpn_protocols(["h2"])
        async with await port.dial(trusted) as client:
            number = await client.call(ECHO, b"y")
            assert await client.body(number, 6) == framed(b"y")


async def test_a_storm_waits_its_turn_and_nobody_is_refused() -> None:
    async with opened(HANDLERS, limits=PortLimits(handshakes=4, connections_per_certificate=1000)) as port:
        context = port.context(port.town.activate("web").identity)

        async def ask() -> bytes:
            async with await port.dial(context) as client:
                return await client.body(await client.call(ECHO, b"x"), 6)

        assert await asyncio.gather(*(ask() for _ in range(150))) == [framed(b"x")] * 150
        assert port.refused == []


async def test_no_handshake_is_made_for_who_has_left_before_its_turn() -> None:
    async with opened(HANDLERS, limits=PortLimits(handshakes=2)) as port:
        hello = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        hello.check_hostname = False
        out = ssl.MemoryBIO()
        with suppress(ssl.SSLWantReadError):
            hello.wrap_bio(ssl.MemoryBIO(), out).do_handshake()
        first = out.read()
        clients = [socket.create_connection(("127.0.0.1", port.number)) for _ in range(6)]
        for sock in clients:
            sock.sendall(first)
        while port.port._handshakes.waiting < 5:
            await asyncio.sleep(0.001)
        for sock in clients[1:]:
            sock.close()
        clients[0].close()
        while port.port.connections:
            await asyncio.sleep(0.001)
        assert port.refused.count("client left before its turn came") == 5


async def test_a_handshake_of_a_byte_now_and_then_ends_as_a_silent_one_does() -> None:
    times = LinkTimes(handshake=0.5, tick=0.05)
    async with opened(HANDLERS, times=times) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port.number)
        writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        ended = asyncio.get_running_loop().create_task(reader.read())
        async with asyncio.timeout(20):
            while not ended.done():
                writer.write(b"x")
                await asyncio.wait((ended,), timeout=0.02)
        with suppress(ConnectionError):
            assert await ended == b""
        writer.transport.abort()
        assert port.refused == ["handshake took too long"]


async def test_who_begins_handshakes_and_does_not_go_on_keeps_nobody_out() -> None:
    times = LinkTimes(handshake=0.5, tick=0.05)
    async with opened(HANDLERS, limits=PortLimits(handshakes=4), times=times) as port:
        hello = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        hello.check_hostname = False
        out = ssl.MemoryBIO()
        with suppress(ssl.SSLWantReadError):
            hello.wrap_bio(ssl.MemoryBIO(), out).do_handshake()
        first = out.read()
        idle = [socket.create_connection(("127.0.0.1", port.number)) for _ in range(8)]
        for sock in idle[:6]:
            sock.sendall(first)
        async with await port.dial() as client:  # when the first ones' time is over
            number = await client.call(ECHO, b"x")
            assert await client.body(number, 6)
        while len(port.refused) < 8:
            await asyncio.sleep(0.01)
        for sock in idle:
            sock.close()
        assert set(port.refused) == {"handshake took too long"}


async def test_bytes_that_come_one_by_one_reach_nobody_else() -> None:
    async with opened(HANDLERS, limits=PortLimits(connections_per_certificate=100)) as port:
        context = port.context(port.town.activate("web").identity)

        async def slowly(text: bytes) -> bytes:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = context.wrap_bio(incoming, outgoing)
            reader, writer = await asyncio.open_connection("127.0.0.1", port.number)

            async def pass_on() -> None:
                data = outgoing.read()
                for position in range(0, len(data), 7):
                    writer.write(data[position : position + 7])
                    await writer.drain()
                    await asyncio.sleep(0)

            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await pass_on()
                    incoming.write(await reader.read(1000))
            tls.write(GREETING + open_stream(fields=head_of(ECHO)) + frame(0, 0, 1, framed(text)))
            await pass_on()
            heard = b""
            while framed(text) not in heard:
                try:
                    heard += tls.read(1 << 16)
                except ssl.SSLWantReadError:
                    incoming.write(await reader.read(1000))
            writer.close()
            return heard

        texts = [b"marble-%03d" % n for n in range(20)]
        for text, heard in zip(texts, await asyncio.gather(*map(slowly, texts)), strict=True):
            assert heard.count(b"marble-") == heard.count(text) == 1
