# SPDX-License-Identifier: Apache-2.0
"""The own gRPC transport on real sockets and real TLS: who gets in, who waits, who is sent away, and what it costs."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from sds.tls import client_context
from tests.kit.rpc_peer import GREETING, framed, open_stream
from tests.kit.rpc_port import Opened, head_of, opened
from tests.kit.xds_mesh import Town, manifest
from xds_server.rpc import Call, CallEnded, Handler, RpcError
from xds_server.rpc_frames import frame
from xds_server.rpc_port import LinkTimes
from xds_server.rpc_server import PortLimits

if TYPE_CHECKING:
    from xds_server.rpc import Receiver

ECHO, SINK, FALL, WAIT, LISTEN = "/t/Echo", "/t/Sink", "/t/Fall", "/t/Wait", "/t/Listen"


async def echo(call: Call) -> None:
    while (body := await call.read()) is not None:
        await call.write(body)


async def fall(call: Call) -> None:
    body = await call.read()
    if body == b"politely":
        raise RpcError("ABORTED", "no more")
    raise RuntimeError("secret=hunter2")


async def wait(_call: Call) -> None:
    await asyncio.Event().wait()


class Echoing:
    """A Receiver that sends back what it gets, and falls over when told to."""

    open = 0

    def __init__(self, call: Call) -> None:
        self.call = call
        self.waiting: list[bytes] = []
        self.over = False
        Echoing.open += 1

    def received(self, body: bytes) -> None:
        if body == b"politely":
            raise RpcError("ABORTED", "no more")
        if body == b"fall":
            raise RuntimeError("secret=hunter2")
        self.waiting.append(body)
        if len(self.waiting) == 1:
            self.go_on()

    def go_on(self) -> None:
        while self.waiting and self.call.send(self.waiting[0]):
            del self.waiting[0]
        if self.over and not self.waiting:
            self.call.finish()

    def writable(self) -> None:
        del self.waiting[0]
        self.go_on()

    def half_closed(self) -> None:
        self.over = True
        if not self.waiting:
            self.call.finish()

    def closed(self) -> None:
        Echoing.open -= 1


async def listen(call: Call) -> Receiver:
    return Echoing(call)


HANDLERS: dict[str, Handler] = {ECHO: echo, FALL: fall, WAIT: wait, LISTEN: listen}


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


# ---- who is sent away


async def test_a_connection_without_a_call_ends_and_one_with_a_quiet_call_stays() -> None:
    times = LinkTimes(handshake=0.5, idle=0.3, ping=0.3, pong=0.3, tick=0.05)
    async with opened(HANDLERS, times=times) as port, await port.dial() as quiet, await port.dial() as idle:
        number = await quiet.call(LISTEN, b"x")
        await idle.flush()
        await idle.until_closed()
        assert idle.goaway == 0
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                while await quiet.hear():  # pings
                    pass
        await quiet.say(number, b"y")
        assert await quiet.body(number, 12)


async def test_a_peer_that_does_not_answer_a_ping_is_let_go() -> None:
    async with (
        opened(HANDLERS, times=LinkTimes(handshake=0.5, ping=0.3, pong=0.3, tick=0.05)) as port,
        await port.dial() as client,
    ):
        await client.body(await client.call(LISTEN, b"x"), 6)
        while port.port.connections:  # it reads nothing any more
            await asyncio.sleep(0.02)
        assert Echoing.open == 0


async def test_a_peer_that_does_not_read_is_let_go_and_holds_little_meanwhile() -> None:
    async def pour(call: Call) -> None:
        while True:
            await call.write(bytes(1 << 20))

    async with (
        opened({SINK: pour}, times=LinkTimes(handshake=0.5, write=0.3, tick=0.05)) as port,
        await port.dial() as client,
    ):
        client.h2.increment_flow_control_window(2**31 - 1 - 65535)
        number = await client.call(SINK)
        client.h2.increment_flow_control_window(2**31 - 1 - 65535, number)
        await client.flush()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        (link,) = port.port._links
        while not link._unsent:
            await asyncio.sleep(0.01)
        assert len(link._unsent) < 1 << 20
        while port.port.connections:
            await asyncio.sleep(0.02)


async def test_one_certificate_has_so_many_connections_and_others_have_theirs() -> None:
    async with opened(HANDLERS, limits=PortLimits(connections_per_certificate=2)) as port:
        greedy = port.context(port.town.activate("web").identity)
        async with await port.dial(greedy) as one, await port.dial(greedy) as two, await port.dial(greedy) as three:
            for client in (one, two):
                assert await client.body(await client.call(ECHO, b"x"), 6)
            await three.until_closed()
            async with await port.dial() as other:
                assert await other.body(await other.call(ECHO, b"x"), 6)
        assert port.refused == ["too many connections of one certificate"]


async def test_a_rule_broken_on_one_connection_is_no_matter_on_another(port: Opened) -> None:
    async with await port.dial() as good, await port.dial() as bad:
        number = await good.call(ECHO, b"x")
        bad.writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await bad.until_closed()
        assert bad.goaway == 1
        assert await good.body(number, 6)


async def test_stopping_tells_every_call_to_come_back_and_closes(port: Opened) -> None:
    async with await port.dial() as client:
        numbers = [await client.call(WAIT), await client.call(LISTEN, b"x")]
        await client.body(numbers[1], 6)
        stop = asyncio.ensure_future(port.port.stop(0))
        for number in numbers:
            assert (await client.answer(number)).status[0] == b"14"
        await client.until_closed()
        await stop
        assert client.goaway == 0
    with pytest.raises(ConnectionRefusedError):
        await port.dial()


async def test_a_taken_port_and_a_strange_address_are_said_at_once(port: Opened) -> None:
    for host, number in (("127.0.0.1", port.number), ("192.0.2.1", 0)):
        async with opened({}) as other:
            with pytest.raises(OSError, match="cannot listen on"):
                await other.port.start(host, number)
