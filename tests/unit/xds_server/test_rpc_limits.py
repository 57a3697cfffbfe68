# SPDX-License-Identifier: Apache-2.0
"""Who is sent away from the own gRPC transport: who is idle, silent, greedy or rude; and how it stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from tests.kit.rpc_handlers import ECHO, HANDLERS, LISTEN, SINK, WAIT, Echoing
from tests.kit.rpc_port import Opened, opened
from xds_server.rpc import Call
from xds_server.rpc_port import LinkTimes
from xds_server.rpc_server import PortLimits


@pytest.fixture
async def port() -> AsyncIterator[Opened]:
    async with opened(HANDLERS) as there:
        yield there


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
