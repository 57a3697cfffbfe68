# SPDX-License-Identifier: Apache-2.0
"""What an admitted connection gets: all of its bytes, both ways, within bounded memory, until either side ends."""

from __future__ import annotations

import asyncio
import hashlib
import random
from pathlib import Path

from enclave_proxy.counters import Refusal
from enclave_proxy.relay_config import DnsTarget, Outbound, PeerRule, RelayConfig, SanMatcher, TcpAddress, UnixAddress
from sds.ca import CertificateAuthority
from sds.tls import client_context
from tests.kit.mesh_relay import App, ask, dial, hang_up, inbound, only, outbound, port, relay, try_to_ask
from tests.kit.pki import marble, odd_leaf, other_ca, shared_ca

MEGABYTE = 1 << 20


async def to_app(path: Path, message: bytes = b"ping") -> bytes:
    """What the app behind `path` gets from its outbound listener."""
    streams = await asyncio.open_unix_connection(path)
    try:
        return await ask(streams, message)
    finally:
        await hang_up(streams)


async def test_a_marble_talks_to_another_through_two_relays(tmp_path: Path) -> None:
    ca = shared_ca()
    async with App(tmp_path / "app.sock") as app, relay() as server, relay() as client:
        await server.apply(RelayConfig(inbound=(inbound(ca, app),)))
        await client.apply(RelayConfig(outbound=(outbound(ca, tmp_path / "out.sock", port(server, "in")),)))
        assert await to_app(tmp_path / "out.sock", b"x" * 1000) == b"x" * 1000
        await client.close(drain=5)
        await server.close(drain=5)
        counters = client.counters.of("out")
        assert (counters.accepted, counters.established, counters.active) == (1, 1, 0)
        assert (counters.received, counters.sent) == (1000, 1000)
        assert server.counters.of("in").received == 1000


async def test_large_data_survives_both_ways_at_once(tmp_path: Path) -> None:
    ca = shared_ca()
    data = random.Random(1).randbytes(8 * MEGABYTE)
    async with App(tmp_path / "app.sock") as app, relay() as server, relay() as client:
        await server.apply(RelayConfig(inbound=(inbound(ca, app),)))
        await client.apply(RelayConfig(outbound=(outbound(ca, tmp_path / "out.sock", port(server, "in")),)))
        reader, writer = await asyncio.open_unix_connection(tmp_path / "out.sock")

        async def send() -> None:
            for start in range(0, len(data), 100_000):
                writer.write(data[start : start + 100_000])
                await writer.drain()

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            got = await reader.readexactly(len(data))
        assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
        await hang_up((reader, writer))


async def test_everything_an_app_wrote_before_it_closed_arrives(tmp_path: Path) -> None:
    """A slow reader gets the tail too: the relay flushes before it closes."""
    ca = shared_ca()
    data = random.Random(2).randbytes(4 * MEGABYTE)

    async def say_and_leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(4)
        writer.write(data)
        await writer.drain()

    async with App(tmp_path / "app.sock", say_and_leave) as app, relay() as server, relay() as client:
        await server.apply(RelayConfig(inbound=(inbound(ca, app),)))
        await client.apply(RelayConfig(outbound=(outbound(ca, tmp_path / "out.sock", port(server, "in")),)))
        reader, writer = await asyncio.open_unix_connection(tmp_path / "out.sock")
        writer.write(b"go!!")
        assert await reader.read() == data
        await hang_up((reader, writer))


async def test_the_end_of_a_peer_reaches_the_app(tmp_path: Path) -> None:
    ca = shared_ca()
    ended = asyncio.Event()

    async def until_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b"bye"
        ended.set()

    async with App(tmp_path / "app.sock", until_end) as app, relay() as made:
        await made.apply(RelayConfig(inbound=(inbound(ca, app),)))
        streams = await dial(port(made, "in"), marble(ca, "web"), ca.bundle)
        streams[1].write(b"bye")
        await hang_up(streams)
        await asyncio.wait_for(ended.wait(), 5)


async def test_a_slow_reader_stops_the_sender_within_bounded_memory(tmp_path: Path) -> None:
    """64 MiB are offered; what the kernel's and the relay's buffers take must be far less before anybody reads."""
    ca = shared_ca()
    offered = 64 * MEGABYTE
    stalled = asyncio.Event()
    taken = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        chunk = bytes(MEGABYTE // 4)
        writer.transport.set_write_buffer_limits(high=0)
        await reader.readexactly(4)
        while taken < offered:
            writer.write(chunk)
            try:
                async with asyncio.timeout(0.5):
                    await writer.drain()
            except TimeoutError:
                stalled.set()
                await writer.drain()
            taken += len(chunk)

    async with App(tmp_path / "app.sock", pour) as app, relay() as made:
        await made.apply(RelayConfig(inbound=(inbound(ca, app),)))
        reader, writer = await dial(port(made, "in"), marble(ca, "web"), ca.bundle)
        writer.write(b"go!!")
        await asyncio.wait_for(stalled.wait(), 20)
        assert taken < 24 * MEGABYTE
        # Only what left the relay through the socket has been counted; nothing is hoarded inside.
        assert made.counters.of("in").sent <= taken + MEGABYTE
        received = 0
        while received < offered:
            received += len(await reader.read(MEGABYTE))
        assert received == offered
        await hang_up((reader, writer))


async def test_an_outbound_app_is_refused_when_the_peer_is_someone_else(tmp_path: Path) -> None:
    """The name is checked before a single byte of the app leaves: the impostor sees a handshake and an end."""
    ca = shared_ca()
    async with App(tmp_path / "app.sock") as app, relay() as server, relay() as client:
        impostor = inbound(ca, app, identity=marble(ca, "backend-old"), peers=PeerRule())
        await server.apply(RelayConfig(inbound=(impostor,)))
        await client.apply(RelayConfig(outbound=(outbound(ca, tmp_path / "out.sock", port(server, "in")),)))
        assert await to_app(tmp_path / "out.sock", b"secret") == b""
        assert client.counters.of("out").refused == {Refusal.PEER_NOT_ALLOWED: 1}
        await server.close(drain=2)
        assert server.counters.of("in").received == 0


async def test_a_server_of_another_ca_is_refused(tmp_path: Path) -> None:
    ca, foreign = shared_ca(), other_ca()
    async with App(tmp_path / "app.sock") as app, relay() as server, relay() as client:
        theirs = inbound(foreign, app, identity=marble(foreign, "backend"), peers=PeerRule())
        await server.apply(RelayConfig(inbound=(theirs,)))
        await client.apply(RelayConfig(outbound=(outbound(ca, tmp_path / "out.sock", port(server, "in")),)))
        assert await to_app(tmp_path / "out.sock") == b""
        assert client.counters.of("out").refused == {Refusal.UNTRUSTED: 1}
        assert app.accepted == 0


async def test_a_dead_endpoint_and_an_impostor_are_passed_over(tmp_path: Path) -> None:
    ca = shared_ca()
    dead = TcpAddress("127.0.0.1", 1)
    async with App(tmp_path / "app.sock") as app, relay() as server, relay() as client:
        real = inbound(ca, app)
        impostor = inbound(ca, app, identity=marble(ca, "other"), name="impostor")
        await server.apply(RelayConfig(inbound=(real, impostor)))
        endpoints = (dead, port(server, "impostor"), port(server, "in"))
        await client.apply(RelayConfig(outbound=(outbound(ca, tmp_path / "out.sock", *endpoints),)))
        for _ in range(3):
            assert await to_app(tmp_path / "out.sock") == b"ping"
        assert not client.counters.of("out").refused


async def test_connections_go_to_the_endpoints_in_turn(tmp_path: Path) -> None:
    ca = shared_ca()
    async with App(tmp_path / "a.sock") as a, App(tmp_path / "b.sock") as b, relay() as server, relay() as client:
        await server.apply(RelayConfig(inbound=(inbound(ca, a, name="a"), inbound(ca, b, name="b"))))
        route = outbound(ca, tmp_path / "out.sock", port(server, "a"), port(server, "b"))
        await client.apply(RelayConfig(outbound=(route,)))
        for _ in range(4):
            assert await to_app(tmp_path / "out.sock") == b"ping"
        assert (a.accepted, b.accepted) == (2, 2)


async def test_an_app_waits_for_its_first_endpoint(tmp_path: Path) -> None:
    ca = shared_ca()
    async with App(tmp_path / "app.sock") as app, relay() as server, relay() as client:
        await server.apply(RelayConfig(inbound=(inbound(ca, app),)))
        await client.apply(RelayConfig(outbound=(outbound(ca, tmp_path / "out.sock"),)))
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(to_app(tmp_path / "out.sock"))
            while not client.counters.of("out").handshakes:
                await asyncio.sleep(0)
            await client.apply(RelayConfig(outbound=(outbound(ca, tmp_path / "out.sock", port(server, "in")),)))
        assert answer.result() == b"ping"


async def test_without_any_endpoint_the_app_is_refused_in_bounded_time(tmp_path: Path) -> None:
    ca = shared_ca()
    async with relay() as client:
        await client.apply(RelayConfig(outbound=(outbound(ca, tmp_path / "out.sock"),)))
        assert await to_app(tmp_path / "out.sock") == b""
        assert client.counters.of("out").refused == {Refusal.NO_ENDPOINT: 1}


async def test_a_name_is_resolved_when_it_is_dialled(tmp_path: Path) -> None:
    ca = shared_ca()
    async with App(tmp_path / "app.sock") as app, relay() as server, relay() as client:
        await server.apply(RelayConfig(inbound=(inbound(ca, app),)))
        target = DnsTarget("localhost", port(server, "in").port)
        listen = UnixAddress(str(tmp_path / "out.sock"))
        route = Outbound("out", listen, target, marble(ca, "web"), ca.bundle, only(ca, "backend"), "")
        await client.apply(RelayConfig(outbound=(route,)))
        assert await to_app(tmp_path / "out.sock") == b"ping"


async def test_a_gateway_is_admitted_by_its_own_certificate_and_vouches_for_nobody_else(tmp_path: Path) -> None:
    """A certificate without the CA flag in the bundle admits itself; whoever it signs is a stranger."""
    ca = shared_ca()
    gateway = odd_leaf(ca, uris=["spiffe://edge.test/gw"], self_signed=True)
    fake_ca = CertificateAuthority(gateway.leaf, gateway.leaf, gateway.leaf, gateway.key, gateway.key)
    forged = odd_leaf(fake_ca, uris=["spiffe://edge.test/gw"])
    bundle = type(ca.bundle)(ca.bundle.pem + gateway.chain)
    rule = PeerRule((SanMatcher("uri", exact="spiffe://edge.test/gw"),))
    async with App(tmp_path / "app.sock") as app, relay() as made:
        await made.apply(RelayConfig(inbound=(inbound(ca, app, bundle=bundle, peers=rule),)))
        assert await try_to_ask(port(made, "in"), client_context(gateway, ca.bundle)) == b"ping"
        assert await try_to_ask(port(made, "in"), client_context(forged, ca.bundle)) == b""
        assert app.accepted == 1
