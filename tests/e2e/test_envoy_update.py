# SPDX-License-Identifier: Apache-2.0
"""Real Envoys follow a rotated CA without a failed request or a dropped connection: as Marbles of their own on the xDS
port, in both variants, and beside a worker on its SDS socket."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from enclave_proxy.bootstrap import Credentials
from enclave_proxy.identity_store import IdentityStore
from sds.material import Identity, TrustBundle
from sds.resources import BUNDLE_NAME, IDENTITY_NAME
from sds.tls import client_context
from tests.kit.envoy import ads_bootstrap, running_envoy, until
from tests.kit.envoy_town import echo_app, sds_bootstrap, serving, write_identity
from tests.kit.local_socket import sds, serving_on
from tests.kit.mesh import free_port
from tests.kit.pki import make_ca, marble, now
from tests.kit.xds_mesh import Town, manifest
from xds_server.rotation import Pace

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

ROTATIONS = 5
STAYING = 10
# Whatever ends connections by changing a listener shows within this test, and not after ten minutes.
DRAIN = ("--drain-time-s", "1", "--drain-strategy", "immediate")


@dataclass
class Traffic:
    """Requests in plaintext to a port of one Envoy, which takes them to the other."""

    port: int
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    fresh: int = 0

    async def stay(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        while not self.stop.is_set():
            await self._ask(reader, writer)
        writer.close()

    async def come_and_go(self) -> None:
        while not self.stop.is_set():
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            await self._ask(reader, writer)
            self.fresh += 1
            writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"ping")
        async with asyncio.timeout(10):
            assert await reader.readexactly(4) == b"ping"
        await asyncio.sleep(0.005)

    async def once_more(self) -> None:
        """At least two handshakes that began now."""
        wanted = self.fresh + 2
        async with asyncio.timeout(10):
            while self.fresh < wanted:
                await asyncio.sleep(0.005)


def town_tls(inbound: int, outbound: int) -> dict[str, object]:
    return {
        "web": {"Outgoing": [{"Addr": "voting", "Port": str(inbound), "Listen": f"tcp:127.0.0.1:{outbound}"}]},
        "voting": {"Incoming": [{"Port": str(inbound)}]},
    }


def place(inbound: int, outbound: int) -> Town:
    """`web` calls `voting`, where any Marble may connect; `other` only exists."""
    document = manifest(town_tls(inbound, outbound), {"web": ["web"], "voting": ["voting"], "other": []})
    town = Town(document, pace=Pace(finish=timedelta(milliseconds=200)), live=True)
    town.renew_when_asked()
    return town


async def gets_in(port: int, tls: ssl.SSLContext) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname="")
        writer.write(b"ping")
        answer = await asyncio.wait_for(reader.read(4), 5)
        writer.close()
    except (ConnectionError, ssl.SSLError):
        return False
    return answer == b"ping"


@pytest.mark.parametrize("incremental", [False, True], ids=["sotw", "delta"])
async def test_two_envoys_follow_rotations_under_traffic(incremental: bool, tmp_path: Path) -> None:
    inbound, outbound = free_port(), free_port()
    town = place(inbound, outbound)
    marbles = {name: town.activate(name) for name in ("web", "voting", "other")}

    def bootstrap(name: str, port: int) -> dict[str, Any]:
        (tmp_path / name).mkdir()
        files = write_identity(marbles[name].identity, town, tmp_path / name)
        return ads_bootstrap(xds_port=port, incremental=incremental, node_id=name, advertise="127.0.0.1", **files)

    async with AsyncExitStack() as stack:
        _, port = await stack.enter_async_context(serving(town))
        at_voting, at_web = bootstrap("voting", port), bootstrap("web", port)
        await stack.enter_async_context(echo_app(tmp_path / "voting" / f"{inbound}.sock"))
        voting = await stack.enter_async_context(running_envoy(at_voting, tmp_path / "voting", *DRAIN))
        web = await stack.enter_async_context(running_envoy(at_web, tmp_path / "web"))
        assert await until(lambda: f"127.0.0.1:{inbound}::" in web.get("/clusters") and voting.active_listeners())
        traffic = Traffic(outbound)
        async with asyncio.TaskGroup() as group:
            for _ in range(STAYING):
                group.create_task(traffic.stay())
            group.create_task(traffic.come_and_go())
            for _ in range(ROTATIONS):
                town.update()
                await town.settled()
                await traffic.once_more()
            traffic.stop.set()
        assert town.mesh.rotation.behind == 0
        assert web.rejected() == voting.rejected() == {}
        assert not await gets_in(inbound, client_context(marbles["web"].identity, town.ca.bundle)), "an old root"

        other = client_context(town.identity("other", marbles["other"].uuid), town.ca.bundle)
        assert await gets_in(inbound, other)
        await type_is_gone(town, marbles["other"].uuid, inbound, outbound)
        assert web.rejected() == voting.rejected() == {}


async def type_is_gone(town: Town, uuid: str, inbound: int, outbound: int) -> None:
    """A type that an update drops gets no certificate of the new root; what it has opened until the old one has left
    the bundle, also after the update, is drained then."""
    tls = client_context(town.identity("other", uuid), town.ca.bundle)
    before = await dial(inbound, tls)
    left = manifest(town_tls(inbound, outbound), {"web": ["web"], "voting": ["voting"]})
    (gone,) = town.update(left)
    assert gone.uuid == uuid
    during = await dial(inbound, tls)
    await town.settled()
    assert not await gets_in(inbound, tls)
    assert await gets_in(inbound, client_context(town.identity("web", uuid), town.ca.bundle))
    async with asyncio.timeout(20):
        for reader, writer in (before, during):
            assert await reader.read() == b""
            writer.close()


async def dial(port: int, tls: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which a first answer has come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname="")
    writer.write(b"ping")
    async with asyncio.timeout(10):
        assert await reader.readexactly(4) == b"ping"
    return reader, writer


@pytest.mark.parametrize("incremental", [False, True], ids=["sotw", "delta"])
async def test_an_envoy_beside_a_worker_follows_what_the_worker_was_given(incremental: bool, tmp_path: Path) -> None:
    port, old = free_port(), make_ca()
    new = old.rotate(now())
    both = TrustBundle(old.bundle.pem + new.bundle.pem)
    store = IdentityStore(Credentials(marble(old), old.bundle, TrustBundle(old.chain_pem)))

    async def reaches(peer: Identity, bundle: TrustBundle, wanted: bool = True) -> None:
        async with asyncio.timeout(5):
            while await gets_in(port, client_context(peer, bundle)) is not wanted:
                await asyncio.sleep(0.01)

    before, after = marble(old, "peer"), marble(new, "peer")
    async with serving_on(tmp_path / "sds.sock", sds(store.view)):
        bootstrap = sds_bootstrap(port, incremental=incremental)
        async with echo_app(tmp_path / "app.sock"), running_envoy(bootstrap, tmp_path) as envoy:
            assert await until(lambda: envoy.active_secrets() == {IDENTITY_NAME, BUNDLE_NAME})
            await reaches(before, both)
            await store.accept(BUNDLE_NAME, both)
            await reaches(after, both)
            await reaches(before, both)
            await store.accept(IDENTITY_NAME, marble(new))
            await reaches(after, new.bundle)
            await reaches(before, both)
            await store.accept(BUNDLE_NAME, new.bundle)
            await reaches(before, both, wanted=False)
            await reaches(after, new.bundle)
            assert envoy.rejected() == {}
