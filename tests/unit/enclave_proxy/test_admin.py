# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace

import aiohttp
import pytest

from enclave_proxy.admin import MAX_CONNECTIONS, Admin
from enclave_proxy.config import HostPort
from enclave_proxy.counters import Refusal, RelayCounters
from enclave_proxy.errors import StartError
from enclave_proxy.health import Health
from sds.material import Identity
from sds.resources import CLUSTER, LISTENER, SECRET, identity_secret
from tests.kit.manifests import certificate
from tests.kit.pki import marble, now
from tests.kit.pushes import TLS, snapshot
from tests.unit.enclave_proxy.test_session import FakeRelay, Talk

LOOPBACK = HostPort("127.0.0.1", 0)


@asynccontextmanager
async def served(health: Health, *, numbers_only: bool = False) -> AsyncIterator[aiohttp.ClientSession]:
    admin = await Admin.start(health, LOOPBACK, numbers_only=numbers_only)
    try:
        async with aiohttp.ClientSession(f"http://{admin.address}") as client:
            yield client
    finally:
        await admin.stop()


async def get(client: aiohttp.ClientSession, path: str) -> tuple[int, str]:
    async with client.get(path) as reply:
        return reply.status, await reply.text()


def starting() -> Health:
    return Health("web", "u-u-i-d", simulation=True, now=now)


@dataclass
class Counted:
    """A relay, as far as numbers go."""

    counters: RelayCounters = field(default_factory=RelayCounters)

    def look(self) -> None:
        self.counters.cpu["1"] = 1.5


async def running() -> tuple[Health, Talk]:
    talk = Talk()
    await talk.configure()
    health = starting()
    relay = Counted()
    health.store, health.session, health.relay, health.app.running = talk.store, talk.session, relay, True
    numbers = relay.counters.of("inbound|8080")
    numbers.accepted, numbers.received = 7, 512
    numbers.refused[Refusal.PLAINTEXT] = 2
    numbers.ended[Refusal.REVOKED] = 3
    return health, talk


def secrets_of(*identities: Identity) -> list[str]:
    """Every line of the keys, so that part of one would be noticed too."""
    return [line for i in identities for line in i.key.pem.decode().splitlines() if "KEY-----" not in line]


async def test_a_worker_without_identity_lives_but_is_not_ready() -> None:
    async with served(starting()) as client:
        assert await get(client, "/livez") == (200, "ok\n")
        assert await get(client, "/readyz") == (503, "no identity yet: waiting for the coordinator\n")
        assert (await get(client, "/certs")) == (200, "{}")
        status, text = await get(client, "/metrics")
        assert (status, "marblemesh_worker_ready 0.0" in text) == (200, True)


async def test_readiness_needs_identity_configuration_and_app_but_no_coordinator() -> None:
    health, talk = await running()
    assert not talk.session.status.connected
    async with served(health) as client:
        assert (await get(client, "/readyz"))[0] == 200
        health.app.running = False
        assert (await get(client, "/readyz")) == (503, "the app is not running\n")
        health.app.running, health.ending = True, True
        assert (await get(client, "/readyz")) == (503, "ending\n")
        health.ending, health.now = False, lambda: now() + timedelta(days=1)
        assert (await get(client, "/readyz")) == (503, "the identity has expired\n")


async def test_readiness_says_which_listeners_are_missing_and_why() -> None:
    refusing = Talk(FakeRelay(refuse="cannot listen on 127.0.0.1:8080: Address already in use"))
    health, talk = await running()
    tls = {**TLS, "web": {"Incoming": [{"Port": "8080"}, {"Port": "9090", "Peers": ["g"]}]}}
    more = snapshot(tls, Gateways={"g": {"Certificate": certificate()}}).marble_routes("web", "127.0.0.1")
    await talk.push(CLUSTER, more.clusters.values())
    await talk.push(LISTENER, more.listeners.values())
    await refusing.push(CLUSTER, more.clusters.values())
    await refusing.push(LISTENER, [more.listeners["inbound|8080"]])
    async with served(health) as client:
        status, text = await get(client, "/readyz")
        assert status == 503
        assert text.startswith("listeners not live: inbound|9090: inbound|9090: ")
        assert "no secret 'ROOTCA|9090' yet" in text
        health.app.running = False
        assert (await get(client, "/readyz"))[1].splitlines()[1] == "the app is not running"
        health.session = refusing.session
        assert "no configuration in force yet: cannot listen on 127.0.0.1:8080" in (await get(client, "/readyz"))[1]


async def test_readiness_says_why_the_app_may_talk_around_the_worker() -> None:
    health, _ = await running()
    health.capture = capturing = SimpleNamespace(problem=None)
    async with served(health) as client:
        assert (await get(client, "/readyz"))[0] == 200
        capturing.problem = "somebody's rules come before ours"
        assert (await get(client, "/readyz")) == (503, "somebody's rules come before ours\n")


async def test_a_marble_that_was_turned_out_is_not_ready_and_says_why() -> None:
    health, _ = await running()
    health.revoked = "revoked: for a test"
    async with served(health) as client:
        assert (await get(client, "/readyz")) == (503, "revoked: for a test\n")
        assert "marblemesh_worker_revoked 1.0" in (await get(client, "/metrics"))[1]


async def test_metrics_show_what_was_counted() -> None:
    health, talk = await running()
    await talk.push(SECRET)
    async with served(health) as client:
        _, text = await get(client, "/metrics")
    for line in (
        'marblemesh_worker_info{marble_type="web",simulation="true",uuid="u-u-i-d"} 1.0',
        "marblemesh_worker_ready 1.0",
        'marblemesh_worker_connections_accepted_total{listener="inbound|8080"} 7.0',
        'marblemesh_worker_bytes_total{direction="received",listener="inbound|8080"} 512.0',
        'marblemesh_worker_connections_refused_total{listener="inbound|8080",reason="plaintext"} 2.0',
        'marblemesh_worker_connections_ended_total{listener="inbound|8080",reason="revoked"} 3.0',
        "marblemesh_worker_revoked 0.0",
        "marblemesh_worker_control_plane_connected 0.0",
        'marblemesh_worker_xds_updates_total{type="Listener"} 1.0',
        'marblemesh_worker_certificate_expiry_timestamp_seconds{certificate="identity"} ',
    ):
        assert line in text


async def test_no_page_shows_a_key() -> None:
    health, talk = await running()
    renewed = marble(talk.ca)
    before = talk.store.credentials.identity
    await talk.push(SECRET, [identity_secret("default", renewed)])
    await talk.push(SECRET, [identity_secret("ROOTCA", renewed)])  # refused, with a reason that is shown
    talk.session.status.last_error = renewed.key.pem.decode()
    async with served(health) as client:
        pages = [(await get(client, path))[1] for path in ("/config_dump", "/certs", "/metrics", "/readyz")]
    assert "inbound|8080" in pages[0]
    assert "expected a TrustBundle" in pages[0]
    for secret in secrets_of(before, renewed):
        assert not any(secret in page for page in pages)


async def test_where_the_host_reads_loopback_only_numbers_are_served() -> None:
    health, _ = await running()
    async with served(health, numbers_only=True) as client:
        assert [(await get(client, p))[0] for p in ("/metrics", "/readyz", "/certs", "/config_dump", "/clusters")] == [
            200,
            200,
            404,
            404,
            404,
        ]


async def test_nothing_can_be_changed() -> None:
    async with served(starting()) as client, client.post("/livez", data=b"x") as reply:
        assert reply.status == 405


async def test_a_taken_port_is_named_with_the_way_out() -> None:
    first = await Admin.start(starting(), LOOPBACK, numbers_only=False)
    with pytest.raises(StartError, match=r"cannot listen on admin address .*EDG_MARBLE_ADMIN_ADDR"):
        await Admin.start(starting(), first.address, numbers_only=False)
    await first.stop()


async def test_connections_that_ask_nothing_are_bounded_and_keep_nobody_out() -> None:
    admin = await Admin.start(starting(), LOOPBACK, numbers_only=False)
    silent = [await asyncio.open_connection(admin.address.host, admin.address.port) for _ in range(MAX_CONNECTIONS + 5)]
    async with aiohttp.ClientSession(f"http://{admin.address}") as client:
        assert await get(client, "/livez") == (200, "ok\n")
    for reader, _ in silent[:6]:  # the oldest
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
    assert not silent[-1][0].at_eof()
    await admin.stop()
    for _, writer in silent:
        writer.close()
        with suppress(ConnectionResetError):
            await writer.wait_closed()


async def test_a_task_that_does_not_end_shows() -> None:
    async def tasks() -> float:
        text = (await get(client, "/metrics"))[1]
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("marblemesh_worker_tasks "))

    async with served(starting()) as client, asyncio.TaskGroup() as group:
        before = await tasks()
        more = [group.create_task(asyncio.sleep(60)) for _ in range(3)]
        assert await tasks() == before + 3
        for task in more:
            task.cancel()
        await asyncio.wait(more)
        assert await tasks() == before
