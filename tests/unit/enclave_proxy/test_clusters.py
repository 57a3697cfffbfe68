# SPDX-License-Identifier: Apache-2.0
"""What one dial takes and gives back, and what an operator sees of it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_proxy.cluster_views import cluster_dump
from enclave_proxy.clusters import Attempts, Cluster, ClusterCounters, Clusters
from enclave_proxy.endpoints import Balancer
from enclave_proxy.relay import Relay
from enclave_proxy.relay_config import Outbound, TcpAddress, UnixAddress
from sds.logs import get_logger
from tests.kit.mesh_relay import only
from tests.kit.pki import marble, shared_ca
from tests.unit.enclave_proxy.test_admin import get, served, starting
from tests.unit.enclave_proxy.test_outliers import Clock

A, B, C = (TcpAddress(host, 443) for host in ("10.0.0.1", "10.0.0.2", "fd00::1"))


def cluster(*addresses: TcpAddress, ipv6: bool | None = None) -> Cluster:
    balancer = Balancer(Clock(), random.Random(5).random)
    balancer.update(addresses)
    return Cluster(balancer, ClusterCounters(), addresses, ipv6)


def in_flight(of: Cluster) -> dict[TcpAddress, int]:
    return {status.address: status.in_flight for status in of.balancer.status()}


def test_a_dial_tries_each_endpoint_once_and_no_more_than_it_may() -> None:
    attempts = Attempts(cluster(A, B), 3)
    assert {attempts.next(), attempts.next()} == {A, B}
    assert attempts.next() is None
    assert attempts.again()
    assert attempts.next() in (A, B)
    assert attempts.next() is None
    assert not attempts.again()


def test_families_take_turns_beginning_with_the_preferred_one() -> None:
    for ipv6 in (True, False):
        attempts = Attempts(cluster(A, B, C, ipv6=ipv6), 3)
        order = [attempts.next() for _ in range(3)]
        assert order.index(C) == (0 if ipv6 else 1)


def test_who_was_only_not_needed_can_be_tried_when_the_winner_turns_out_to_be_nobody() -> None:
    made = cluster(A, B)
    attempts = Attempts(made, 3)
    first, second = attempts.next(), attempts.next()
    assert first is not None
    assert second is not None
    attempts.connected(second)
    attempts.failed(second)
    assert attempts.next() == first
    attempts.close()
    assert in_flight(made) == {A: 0, B: 0}


@given(
    st.lists(st.sampled_from([A, B, C]), unique=True),
    st.integers(1, 5),
    st.lists(st.sampled_from(["next", "failed", "drop", "connected", "again"]), max_size=25),
    st.randoms(use_true_random=False),
)
@settings(max_examples=150, deadline=None)
def test_whatever_happens_a_dial_gives_back_what_it_took(
    addresses: list[TcpAddress], limit: int, steps: list[str], source: random.Random
) -> None:
    made = cluster(*addresses)
    attempts = Attempts(made, limit)
    held: list[TcpAddress] = []
    for step in steps:
        if step == "next" and (address := attempts.next()) is not None:
            held.append(address)
        elif step in ("failed", "drop", "connected") and held:
            address = source.choice(held)
            getattr(attempts, step)(address)
            held = [address] if step == "connected" else [other for other in held if other != address]
        elif step == "again" and not held:
            attempts.again()
        assert in_flight(made) == {address: held.count(address) for address in addresses}
    attempts.close()
    assert set(in_flight(made).values()) <= {0}
    assert made.counters.attempts <= limit


@asynccontextmanager
async def one_cluster(*addresses: TcpAddress) -> AsyncIterator[tuple[Clusters, Cluster]]:
    ca = shared_ca()
    bugs: list[BaseException] = []
    clusters = Clusters(bugs.append, clock=Clock(), random=random.Random(1).random)
    route = Outbound("outbound|db|5432", UnixAddress("/run/x"), addresses, marble(ca), ca.bundle, only(ca, "backend"))
    try:
        yield clusters, await clusters.locate(route, 1)
    finally:
        await clusters.close()
        assert bugs == []


async def test_an_admitted_peer_is_in_flight_until_its_connection_ends() -> None:
    async with one_cluster(A) as (_, made):
        attempts = Attempts(made, 1)
        address = attempts.next()
        assert address is not None
        ended = asyncio.Event()

        async def connection() -> None:
            await ended.wait()

        task = asyncio.get_running_loop().create_task(connection())
        attempts.keep(address, task)
        attempts.close()
        assert in_flight(made) == {A: 1}
        ended.set()
        await task
        assert in_flight(made) == {A: 0}


async def test_the_clusters_page_and_the_metrics_show_who_is_out() -> None:
    async with one_cluster(A, B) as (clusters, made):
        for _ in range(5):
            attempts = Attempts(made, 2)
            while (address := attempts.next()) == B:
                pass
            assert address == A
            attempts.failed(A)
            attempts.close()
        health = starting()
        relay = health.relay = Relay(get_logger("relay"))
        relay.counters.dials, relay.counters.names = clusters.counters, clusters.resolver.counters
        relay.clusters = health.clusters = clusters
        async with served(health) as client:
            status, page = await get(client, "/clusters")
            _, metrics = await get(client, "/metrics")
    assert status == 200
    (shown,) = json.loads(page)
    assert (shown["name"], shown["resolved_from"], shown["ejected"]) == ("outbound|db|5432", None, 1)
    assert (shown["failures"], shown["ejections"]) == (5, 1)
    by_address = {entry.pop("address"): entry for entry in shown["endpoints"]}
    assert by_address["10.0.0.2:443"] == {"in_flight": 0, "failures_in_a_row": 0, "ejected_for_seconds": 0.0}
    assert by_address["10.0.0.1:443"]["failures_in_a_row"] == 5
    assert 30 <= by_address["10.0.0.1:443"]["ejected_for_seconds"] <= 33
    for line in (
        'marblemesh_worker_endpoints{listener="outbound|db|5432"} 2.0',
        'marblemesh_worker_endpoints_ejected{listener="outbound|db|5432"} 1.0',
        'marblemesh_worker_dial_failures_total{listener="outbound|db|5432"} 5.0',
        'marblemesh_worker_endpoint_ejections_total{listener="outbound|db|5432"} 1.0',
        "marblemesh_worker_name_lookups_total 0.0",
    ):
        assert line in metrics
    assert "10.0.0.1" not in metrics


async def test_before_anything_was_dialled_there_is_nothing_to_show() -> None:
    async with served(starting()) as client:
        assert await get(client, "/clusters") == (200, "[]")
    clusters = Clusters(pytest.fail)
    assert cluster_dump(clusters.status()) == []
    await clusters.close()
