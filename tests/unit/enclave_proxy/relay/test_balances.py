# SPDX-License-Identifier: Apache-2.0
"""Where the app's connections go when there are several endpoints, dead ones among them, or a name."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from enclave_proxy.clusters import ClusterCounters, Clusters
from enclave_proxy.counters import Refusal
from enclave_proxy.endpoints import EndpointStatus
from enclave_proxy.relay import Relay
from enclave_proxy.relay_config import DnsTarget, Outbound, RelayConfig, TcpAddress
from sds.ca import CertificateAuthority
from tests.kit.dead_ports import need_ipv6, refusing, silent
from tests.kit.mesh_relay import FAST, App, ask, hang_up, inbound, outbound, port, relay
from tests.kit.pki import marble, shared_ca
from tests.unit.enclave_proxy.relay.test_serves import to_app


@asynccontextmanager
async def backend(tmp_path: Path, name: str, host: str = "127.0.0.1") -> AsyncIterator[tuple[App, TcpAddress]]:
    """An app behind a relay of its own."""
    async with App(tmp_path / f"{name}.app") as app, relay() as server:
        await server.apply(RelayConfig(inbound=(inbound(shared_ca(), app, bind=TcpAddress(host, 0)),)))
        yield app, port(server, "in")


def of(client: Relay, name: str = "out") -> dict[TcpAddress, EndpointStatus]:
    return {e.address: e for cluster in client.clusters.status() if cluster.name == name for e in cluster.endpoints}


def to_name(ca: CertificateAuthority, listen: Path, target: DnsTarget) -> Outbound:
    return replace(outbound(ca, listen), endpoints=target)


async def until_ended(client: Relay) -> None:
    async with asyncio.timeout(5):
        while any(e.in_flight for cluster in client.clusters.status() for e in cluster.endpoints):
            await asyncio.sleep(0.01)


Dead = Callable[[], AbstractContextManager[TcpAddress]]


@pytest.mark.parametrize("dead", [refusing, silent])
async def test_a_dead_endpoint_among_three_costs_no_connection_and_soon_no_time(tmp_path: Path, dead: Dead) -> None:
    out = tmp_path / "out.sock"
    async with backend(tmp_path, "a") as (a, at_a), backend(tmp_path, "b") as (b, at_b), relay() as client:
        with dead() as nobody:
            await client.apply(RelayConfig(outbound=(outbound(shared_ca(), out, nobody, at_a, at_b),)))
            used = 0
            while not (used and of(client)[nobody].ejected_for):
                assert await to_app(out) == b"ping"
                used += 1
            assert of(client)[nobody].failures == 5
            before = replace(client.clusters.counters["out"])
            for _ in range(10):
                assert await to_app(out) == b"ping"
            after = client.clusters.counters["out"]
            assert (after.attempts - before.attempts, after.retries - before.retries) == (10, 0)
            assert (after.failures, after.ejections) == (5, 1)
            assert client.clusters.status()[0].ejected == 1
        assert a.accepted + b.accepted == used + 10
        assert not client.counters.of("out").refused


async def test_an_impostor_among_three_is_ejected_and_gets_nothing(tmp_path: Path) -> None:
    ca, out = shared_ca(), tmp_path / "out.sock"
    async with (
        backend(tmp_path, "a") as (_, at_a),
        backend(tmp_path, "b") as (_, at_b),
        App(tmp_path / "evil.app") as evil,
        relay() as server,
        relay() as client,
    ):
        await server.apply(RelayConfig(inbound=(inbound(ca, evil, identity=marble(ca, "other")),)))
        impostor = port(server, "in")
        await client.apply(RelayConfig(outbound=(outbound(ca, out, impostor, at_a, at_b),)))
        used = 0
        while not (used and of(client)[impostor].ejected_for):
            assert await to_app(out) == b"ping"
            used += 1
        assert client.clusters.counters["out"].failures == 5
        await server.close(drain=2)
        assert server.counters.of("in").received == 0


async def test_who_has_open_connections_gets_fewer_new_ones(tmp_path: Path) -> None:
    out = tmp_path / "out.sock"
    async with backend(tmp_path, "a") as (a, at_a), backend(tmp_path, "b") as (b, at_b), relay() as client:
        await client.apply(RelayConfig(outbound=(outbound(shared_ca(), out, at_a),)))
        kept = [await asyncio.open_unix_connection(out) for _ in range(4)]
        assert [await ask(streams) for streams in kept] == [b"ping"] * 4
        await client.apply(RelayConfig(outbound=(outbound(shared_ca(), out, at_a, at_b),)))
        for _ in range(4):
            kept.append(await asyncio.open_unix_connection(out))
            assert await ask(kept[-1]) == b"ping"
        assert (a.accepted, b.accepted) == (4, 4)
        assert {address: e.in_flight for address, e in of(client).items()} == {at_a: 4, at_b: 4}
        for streams in kept:
            await hang_up(streams)
        await until_ended(client)


async def test_what_is_known_of_an_endpoint_outlives_a_new_configuration_and_not_its_route(tmp_path: Path) -> None:
    ca, out = shared_ca(), tmp_path / "out.sock"
    async with backend(tmp_path, "a") as (_, at_a), backend(tmp_path, "b") as (_, at_b), relay() as client:
        with refusing() as nobody:
            await client.apply(RelayConfig(outbound=(outbound(ca, out, nobody, at_a),)))
            for _ in range(12):
                assert await to_app(out) == b"ping"
            assert of(client)[nobody].ejected_for > 0
            renewed = outbound(ca, out, nobody, at_b, identity=marble(ca, "web"))
            await client.apply(RelayConfig(outbound=(renewed,)))
            assert of(client)[nobody].ejected_for > 0
            await until_ended(client)
            assert set(of(client)) == {nobody, at_b}
            assert await to_app(out) == b"ping"
            await client.apply(RelayConfig())
            assert client.clusters.status() == ()
            assert client.clusters.counters["out"].ejections == 1  # counters never run backwards


async def test_an_endpoint_that_hung_up_in_the_handshake_is_asked_again_if_it_is_the_only_one(tmp_path: Path) -> None:
    """A peer that is just starting again. A wrong name, or silence, is not asked twice."""
    out = tmp_path / "out.sock"
    hung_up = 0

    async def hang_up_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal hung_up
        hung_up += 1
        writer.transport.abort()
        if hung_up == 2:
            listener.close()
            await server.apply(RelayConfig(inbound=(inbound(shared_ca(), app, bind=address),)))

    async with App(tmp_path / "a.app") as app, relay() as server, relay() as client:
        listener = await asyncio.start_server(hang_up_once, "127.0.0.1", 0)
        address = TcpAddress("127.0.0.1", listener.sockets[0].getsockname()[1])
        await client.apply(RelayConfig(outbound=(outbound(shared_ca(), out, address),)))
        assert await to_app(out) == b"ping"
        assert (hung_up, app.accepted) == (2, 1)
        await client.close(2)
        assert client.clusters.counters["out"] == ClusterCounters(attempts=3, retries=2, failures=2)


async def test_the_only_endpoint_is_not_dialled_again_if_it_is_silent_or_somebody_else(tmp_path: Path) -> None:
    ca, out = shared_ca(), tmp_path / "out.sock"
    limits = replace(FAST, connect_timeout=0.2)
    async with App(tmp_path / "evil.app") as evil, relay() as server, relay(limits) as client:
        await server.apply(RelayConfig(inbound=(inbound(ca, evil, identity=marble(ca, "other")),)))
        with silent() as nobody:
            for endpoint, reason in (
                (nobody, Refusal.UPSTREAM_UNAVAILABLE),
                (port(server, "in"), Refusal.PEER_NOT_ALLOWED),
            ):
                await client.apply(RelayConfig(outbound=(outbound(ca, out, endpoint),)))
                assert await to_app(out) == b""
                assert client.counters.of("out").refused.pop(reason) == 1
        assert client.clusters.counters["out"].attempts == 2


async def test_want_of_descriptors_is_not_held_against_the_peer(tmp_path: Path) -> None:
    out = tmp_path / "out.sock"
    route = outbound(shared_ca(), out)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with backend(tmp_path, "a") as (_, at_a), relay(replace(FAST, endpoint_wait=5)) as client:
        await client.apply(RelayConfig(outbound=(route,)))
        streams = await asyncio.open_unix_connection(out)
        while not client.counters.of("out").handshakes:
            await asyncio.sleep(0)
        lowest = os.dup(0)
        os.close(lowest)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
            await client.apply(RelayConfig(outbound=(replace(route, endpoints=(at_a,)),)))
            assert await ask(streams) == b""
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await hang_up(streams)
        assert client.counters.of("out").refused == {Refusal.UPSTREAM_UNAVAILABLE: 1}
        assert client.clusters.counters["out"] == ClusterCounters(attempts=3, retries=2)
        assert await to_app(out) == b"ping"


def with_names(client: Relay, names: dict[str, Sequence[str]]) -> None:
    """Let a relay ask these instead of the system."""

    async def lookup(host: str) -> Sequence[str]:
        return names[host]

    bugs: list[BaseException] = []
    client.clusters = Clusters(bugs.append, lookup=lookup)


async def test_a_name_that_moves_is_followed_by_new_connections_and_old_ones_stay(tmp_path: Path) -> None:
    ca, out = shared_ca(), tmp_path / "out.sock"
    names: dict[str, Sequence[str]] = {"db.test": ["127.0.0.1"]}
    async with backend(tmp_path, "a") as (a, at_a), App(tmp_path / "b.app") as b, relay() as second, relay() as client:
        await second.apply(RelayConfig(inbound=(inbound(ca, b, bind=TcpAddress("127.0.0.2", at_a.port)),)))
        with_names(client, names)
        await client.apply(RelayConfig(outbound=(to_name(ca, out, DnsTarget("db.test", at_a.port)),)))
        old = await asyncio.open_unix_connection(out)
        assert await ask(old) == b"ping"
        names["db.test"] = ["127.0.0.2"]
        client.clusters.resolver.retain(())  # as if the answer had become old
        assert await to_app(out) == b"ping"
        assert await ask(old) == b"ping"
        assert (a.accepted, b.accepted) == (1, 1)
        assert client.clusters.status()[0].resolved_from == "db.test"
        assert of(client)[TcpAddress("127.0.0.1", at_a.port)].in_flight == 1
        await hang_up(old)
        await until_ended(client)
        assert list(of(client)) == [TcpAddress("127.0.0.2", at_a.port)]


@pytest.mark.parametrize("live", ["::1", "127.0.0.1"])
async def test_of_a_name_with_both_families_the_one_that_answers_serves_and_the_other_is_ejected(
    tmp_path: Path, live: str
) -> None:
    need_ipv6()
    ca, out = shared_ca(), tmp_path / "out.sock"
    dead = {"::1": "127.0.0.1", "127.0.0.1": "::1"}[live]
    async with backend(tmp_path, "a", live) as (_, at_a), relay() as client:
        with_names(client, {"db.test": [dead, live]})
        await client.apply(RelayConfig(outbound=(to_name(ca, out, DnsTarget("db.test", at_a.port)),)))
        for _ in range(7):
            assert await to_app(out) == b"ping"
        assert client.clusters.counters["out"] == ClusterCounters(attempts=12, retries=5, failures=5, ejections=1)
        assert of(client)[TcpAddress(dead, at_a.port)].ejected_for > 0


async def test_while_both_families_answer_the_systems_first_choice_gets_all(tmp_path: Path) -> None:
    need_ipv6()
    ca, out = shared_ca(), tmp_path / "out.sock"
    async with (
        backend(tmp_path, "a", "::1") as (a, at_a),
        App(tmp_path / "b.app") as b,
        relay() as v4,
        relay() as client,
    ):
        await v4.apply(RelayConfig(inbound=(inbound(ca, b, bind=TcpAddress("127.0.0.1", at_a.port)),)))
        with_names(client, {"db.test": ["::1", "127.0.0.1"]})
        await client.apply(RelayConfig(outbound=(to_name(ca, out, DnsTarget("db.test", at_a.port)),)))
        for _ in range(6):
            assert await to_app(out) == b"ping"
        assert (a.accepted, b.accepted) == (6, 0)


async def test_a_name_without_address_is_refused_and_says_so(tmp_path: Path) -> None:
    ca, out = shared_ca(), tmp_path / "out.sock"
    async with relay() as client:
        await client.apply(RelayConfig(outbound=(to_name(ca, out, DnsTarget("x" * 64 + ".test", 1)),)))
        assert await to_app(out) == b""
        assert client.counters.of("out").refused == {Refusal.NO_ENDPOINT: 1}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_an_app_behind_a_name_is_found_on_whichever_address_it_listens(tmp_path: Path, host: str) -> None:
    """`localhost` is both; an app often listens on one of them only."""
    need_ipv6()
    ca, out = shared_ca(), tmp_path / "out.sock"

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(4))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with App(tmp_path / "unused.app") as unused, relay() as server, relay() as client:
        app = await asyncio.start_server(echo, host, 0)
        at = TcpAddress("both.test", app.sockets[0].getsockname()[1])
        with_names(server, {"both.test": ["::1", "127.0.0.1"]})
        await server.apply(RelayConfig(inbound=(replace(inbound(ca, unused), upstream=at),)))
        await client.apply(RelayConfig(outbound=(outbound(ca, out, port(server, "in")),)))
        assert await to_app(out) == b"ping"
        app.close()
        await app.wait_closed()
