# SPDX-License-Identifier: Apache-2.0
"""How connections end: one direction at a time, cleanly or not, and never later than a timeout."""

from __future__ import annotations

import asyncio
import select
import socket
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from enclave_proxy.counters import Refusal
from enclave_proxy.limits import Limits
from enclave_proxy.relay import Relay
from enclave_proxy.relay_config import RelayConfig, TcpAddress
from tests.kit.mesh_relay import LOOPBACK, App, dial, hang_up, inbound, outbound, port, relay
from tests.kit.pki import marble, shared_ca

MEGABYTE = 1 << 20


async def answer_after_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says what it got, once it knows that nothing more comes."""
    writer.write(await reader.read() + b", all of it")
    await writer.drain()


async def until(fact: str, made: Relay, name: str) -> None:
    async with asyncio.timeout(10):
        while not getattr(made.counters.of(name), fact):
            await asyncio.sleep(0.01)


async def test_an_app_may_finish_sending_and_still_get_an_answer_through_two_relays(tmp_path: Path) -> None:
    ca = shared_ca()
    async with App(tmp_path / "app.sock", answer_after_the_end) as app, relay() as server, relay() as client:
        await server.apply(RelayConfig(inbound=(inbound(ca, app),)))
        await client.apply(RelayConfig(outbound=(outbound(ca, tmp_path / "out.sock", port(server, "in")),)))
        reader, writer = await asyncio.open_unix_connection(tmp_path / "out.sock")
        writer.write(b"question")
        writer.write_eof()
        assert await reader.read() == b"question, all of it"
        await hang_up((reader, writer))
        await client.close(drain=5)
        await server.close(drain=5)
        assert (client.counters.of("out").ended, server.counters.of("in").ended) == ({}, {})


async def test_an_app_may_finish_sending_first_and_still_be_sent_megabytes(tmp_path: Path) -> None:
    ca = shared_ca()
    got = 0

    async def greet_and_listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal got
        writer.write(b"go")
        writer.write_eof()
        while data := await reader.read(65536):
            got += len(data)

    async with App(tmp_path / "app.sock", greet_and_listen) as app, relay() as server, relay() as client:
        await server.apply(RelayConfig(inbound=(inbound(ca, app),)))
        await client.apply(RelayConfig(outbound=(outbound(ca, tmp_path / "out.sock", port(server, "in")),)))
        reader, writer = await asyncio.open_unix_connection(tmp_path / "out.sock")
        assert await reader.read() == b"go"
        for _ in range(32):
            writer.write(bytes(MEGABYTE // 8))
            await writer.drain()
        await hang_up((reader, writer))
        await client.close(drain=5)
        await server.close(drain=5)
    assert got == 4 * MEGABYTE


async def test_a_tls_stream_that_is_cut_off_is_no_end_of_the_data(tmp_path: Path) -> None:
    """TCP ends without a close_notify: somebody on the way may have cut it. The app's own peer gets no clean end."""
    ca = shared_ca()
    async with App(tmp_path / "app.sock") as app, relay() as made:
        await made.apply(RelayConfig(inbound=(inbound(ca, app),)))
        reader, writer = await dial(port(made, "in"), marble(ca, "web"), ca.bundle)
        writer.write(b"half a mess")
        assert await reader.readexactly(11) == b"half a mess"
        with socket.fromfd(writer.get_extra_info("socket").fileno(), socket.AF_INET, socket.SOCK_STREAM) as twin:
            twin.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(5):
            while not made.counters.of("in").ended:
                await asyncio.sleep(0.01)
        assert made.counters.of("in").ended == {Refusal.TRUNCATED: 1}
        writer.transport.abort()


async def test_an_app_behind_tcp_sees_a_stream_that_is_cut_off_as_a_reset(tmp_path: Path) -> None:
    """A FIN would say that this is all."""
    ca = shared_ca()
    ends: asyncio.Queue[BaseException | bytes] = asyncio.Queue()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            ends.put_nowait(await reader.read())
        except ConnectionError as e:
            ends.put_nowait(e)
        writer.close()

    async with App(tmp_path / "unused.sock") as unused, relay() as made:
        server = await asyncio.start_server(listen, "127.0.0.1", 0)
        where = TcpAddress("127.0.0.1", server.sockets[0].getsockname()[1])
        await made.apply(RelayConfig(inbound=(replace(inbound(ca, unused), upstream=where),)))
        for cut in (True, False):
            _, writer = await dial(port(made, "in"), marble(ca, "web"), ca.bundle)
            writer.write(b"half a mess")
            await until("active", made, "in")
            if cut:
                writer.transport.abort()
                assert isinstance(await asyncio.wait_for(ends.get(), 10), ConnectionResetError)
            else:
                writer.close()
                assert await asyncio.wait_for(ends.get(), 10) == b"half a mess"
        server.close()
        await server.wait_closed()


async def test_an_app_that_dials_over_tcp_sees_a_reset_if_its_peer_breaks_or_is_not_there(tmp_path: Path) -> None:
    ca = shared_ca()
    leaving = asyncio.Event()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"half a mess")
        await leaving.wait()

    async with App(tmp_path / "app.sock", speak) as app, relay() as server, relay() as client:
        await server.apply(RelayConfig(inbound=(inbound(ca, app),)))
        await client.apply(RelayConfig(outbound=(outbound(ca, LOOPBACK, port(server, "in")),)))
        address = port(client, "out")
        reader, writer = await asyncio.open_connection(address.host, address.port)
        assert await reader.readexactly(11) == b"half a mess"
        await server.close()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 10)
        writer.close()
        reader, writer = await asyncio.open_connection(address.host, address.port)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 10)
        writer.close()
        leaving.set()


async def test_an_app_that_dials_over_tcp_sees_a_reset_if_too_many_connections_are_open(tmp_path: Path) -> None:
    ca = shared_ca()
    limits = (Limits(connections=1), Limits(listener_connections=1))
    async with App(tmp_path / "app.sock") as app, relay() as server:
        await server.apply(RelayConfig(inbound=(inbound(ca, app),)))
        for limit in limits:
            async with relay(limit) as client:
                await client.apply(RelayConfig(outbound=(outbound(ca, LOOPBACK, port(server, "in")),)))
                address = port(client, "out")
                first = await asyncio.open_connection(address.host, address.port)
                await until("active", client, "out")
                reader, writer = await asyncio.open_connection(address.host, address.port)
                with pytest.raises(ConnectionResetError):
                    await asyncio.wait_for(reader.read(), 10)
                writer.close()
                await hang_up(first)


async def test_an_app_on_a_unix_socket_sees_an_end_of_one_direction_only_if_it_was_meant(tmp_path: Path) -> None:
    """There is no reset between UNIX sockets, but one that is hung up is told from one that goes on listening."""
    ca = shared_ca()
    ends: asyncio.Queue[bool] = asyncio.Queue()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        poll = select.poll()
        poll.register(writer.get_extra_info("socket").fileno(), 0)
        ends.put_nowait(bool(poll.poll(0)))

    async with App(tmp_path / "app.sock", listen) as app, relay() as server, relay() as client:
        await server.apply(RelayConfig(inbound=(inbound(ca, app),)))
        await client.apply(RelayConfig(outbound=(outbound(ca, tmp_path / "out.sock", port(server, "in")),)))
        _, writer = await asyncio.open_unix_connection(tmp_path / "out.sock")
        writer.write(b"all of it")
        writer.write_eof()
        assert await asyncio.wait_for(ends.get(), 10) is False
        writer.close()
        _, writer = await dial(port(server, "in"), marble(ca, "web"), ca.bundle)
        writer.write(b"half a mess")
        await until("active", server, "in")
        writer.transport.abort()
        assert await asyncio.wait_for(ends.get(), 10) is True


async def test_what_an_app_said_before_it_left_arrives_though_its_peer_still_sends(tmp_path: Path) -> None:
    ca = shared_ca()
    last_words = b"enough: " + bytes(2 * MEGABYTE)

    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(4)
        writer.write(last_words)
        await writer.drain()

    async with App(tmp_path / "app.sock", leave) as app, relay() as server, relay() as client:
        await server.apply(RelayConfig(inbound=(inbound(ca, app),)))
        await client.apply(RelayConfig(outbound=(outbound(ca, tmp_path / "out.sock", port(server, "in")),)))
        reader, writer = await asyncio.open_unix_connection(tmp_path / "out.sock")
        writer.write(b"go!!" + bytes(300_000))
        assert await reader.read() == last_words
        await hang_up((reader, writer))


async def test_an_idle_connection_is_ended_and_one_that_is_used_is_not(tmp_path: Path) -> None:
    ca = shared_ca()
    async with App(tmp_path / "app.sock") as app, relay(Limits(idle_timeout=0.4)) as made:
        await made.apply(RelayConfig(inbound=(inbound(ca, app),)))
        idle = await dial(port(made, "in"), marble(ca, "web"), ca.bundle)
        used = await dial(port(made, "in"), marble(ca, "web"), ca.bundle)

        async def use() -> None:
            while not made.counters.of("in").ended:
                used[1].write(b"x")
                assert await used[0].readexactly(1) == b"x"
                await asyncio.sleep(0.02)

        await asyncio.wait_for(use(), 10)
        assert made.counters.of("in").ended == {Refusal.IDLE: 1}
        assert await idle[0].read() == b""
        assert made.counters.of("in").active == 1
        idle[1].transport.abort()
        await hang_up(used)


async def test_no_connection_outlives_its_lifetime_however_busy(tmp_path: Path) -> None:
    ca = shared_ca()
    async with App(tmp_path / "app.sock") as app, relay(Limits(lifetime=0.4)) as made:
        await made.apply(RelayConfig(inbound=(inbound(ca, app),)))
        reader, writer = await dial(port(made, "in"), marble(ca, "web"), ca.bundle)

        async def use() -> None:
            while not made.counters.of("in").ended:
                writer.write(b"x")
                if await reader.read(1) != b"x":
                    return

        with suppress(ConnectionError):  # it is cut off in the middle of whatever it does
            await asyncio.wait_for(use(), 10)
        await until("ended", made, "in")
        assert made.counters.of("in").ended == {Refusal.LIFETIME: 1}
        writer.transport.abort()


async def test_a_forgotten_half_of_a_connection_is_ended(tmp_path: Path) -> None:
    ca = shared_ca()
    limits = Limits(half_closed_timeout=0.3)

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        await asyncio.Event().wait()

    async with App(tmp_path / "app.sock", never) as app, relay(limits) as server, relay() as client:
        await server.apply(RelayConfig(inbound=(inbound(ca, app),)))
        await client.apply(RelayConfig(outbound=(outbound(ca, tmp_path / "out.sock", port(server, "in")),)))
        reader, writer = await asyncio.open_unix_connection(tmp_path / "out.sock")
        writer.write_eof()
        await until("ended", server, "in")
        assert server.counters.of("in").ended == {Refusal.IDLE: 1}
        await hang_up((reader, writer))


async def test_a_listener_has_a_limit_of_its_own(tmp_path: Path) -> None:
    ca = shared_ca()
    async with App(tmp_path / "app.sock") as app, relay(Limits(listener_connections=1)) as made:
        await made.apply(RelayConfig(inbound=(inbound(ca, app), inbound(ca, app, name="other"))))
        first = await dial(port(made, "in"), marble(ca, "web"), ca.bundle)
        other = await dial(port(made, "other"), marble(ca, "web"), ca.bundle)
        with socket.create_connection((port(made, "in").host, port(made, "in").port)) as second:
            second.setblocking(False)
            loop = asyncio.get_running_loop()
            assert await asyncio.wait_for(loop.sock_recv(second, 1), 5) == b""
        assert made.counters.of("in").refused == {Refusal.LIMIT: 1}
        assert made.counters.of("other").refused == {}
        await hang_up(first)
        await hang_up(other)
