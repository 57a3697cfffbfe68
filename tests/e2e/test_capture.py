# SPDX-License-Identifier: Apache-2.0
"""Transparent capture: apps in two pods that speak plain TCP, workers that carry it in mTLS, real nft and iptables."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import pytest_asyncio

from tests.kit.capture_mesh import SERVER, SERVER6, SLEEP, CaptureMesh, plain_manifest
from tests.kit.loopback_capture import LoopbackCapture
from tests.kit.mesh import RunningWorker
from tests.kit.netns import namespaces_needed, pods

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]
PORTS = (9000, 9100, 9200, 9300)
NOT_IN_MANIFEST = 9999
MARKER = "marker-in-what-an-app-says-in-plain-tcp"


class Pair(CaptureMesh):
    """`client` and `server`, capturing by one of the two programs."""

    how: str
    client: RunningWorker
    server: RunningWorker

    async def start_pair(self, how: str) -> None:
        self.how = how
        await self.start_coordinator()
        await self.set_manifest(plain_manifest(self))
        self.client = await self.start_captured("client", how, *SLEEP)
        self.server = await self.start_server(how, *PORTS, NOT_IN_MANIFEST)
        await self.client.ready()

    def rules(self, pod: str) -> str:
        """What either program lists there."""
        return "\n".join(self.pods[pod].run(*command) for command in (("nft", "list", "ruleset"), ("iptables-save",)))


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=["nft", "iptables"])
async def mesh(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    namespaces_needed("nft", "iptables-save", "ip6tables-save")
    with pods("client", "server") as (client, server), TemporaryDirectory(prefix="mm-") as directory:
        async with Pair(Path(directory), client, server) as made:
            await made.start_pair(request.param)
            yield made


@contextmanager
def on_the_wire(mesh: CaptureMesh) -> Iterator[list[LoopbackCapture]]:
    """What crosses the cable, seen from both ends."""
    with ExitStack() as stack:
        captures = []
        for pod, cable in zip(mesh.pods.values(), mesh.cables, strict=True):
            captures.append(stack.enter_context(pod.call(partial(LoopbackCapture, (MARKER.encode(),), cable))))
        yield captures


async def test_unchanged_plain_tcp_apps_talk_in_mtls_over_ipv4_and_ipv6(mesh: Pair) -> None:
    with on_the_wire(mesh) as captures:
        assert mesh.app("client", SERVER, 9000, MARKER) == f"server:{MARKER}"
        assert mesh.app("client", SERVER6, 9000, MARKER) == f"server:{MARKER}"
        assert mesh.app("client", SERVER6, 9100, MARKER) == f"server:{MARKER}"
    for capture in captures:
        assert capture.found[MARKER.encode()] == set()
        assert capture.ciphertext[9000] > 0
        assert capture.ciphertext[9100] > 0
        assert capture.dropped == 0
    assert (await mesh.ask_admin(mesh.client, "/readyz"))[0] == 200
    assert (await mesh.ask_admin(mesh.server, "/readyz"))[0] == 200


async def test_peers_that_share_a_port_are_told_apart_by_address_and_a_wrong_peer_is_refused(mesh: Pair) -> None:
    assert mesh.app("client", SERVER, 9200, "which") == "server:which"
    assert mesh.app("client", SERVER6, 9200, "which") == "refused"  # there it should be `other`, and is `server`
    assert mesh.app("client", SERVER, 9300, "wrong peer") == "refused"
    metrics = (await mesh.ask_admin(mesh.client, "/metrics"))[1]
    for peer in (f"{SERVER}|9300", f"{SERVER6}|9200"):
        assert f'connections_refused_total{{listener="outbound|{peer}",reason="peer_not_allowed"}}' in metrics


async def test_what_the_manifest_does_not_name_is_left_alone(mesh: Pair) -> None:
    assert mesh.app("client", SERVER, NOT_IN_MANIFEST, "outside") == "server:outside"
    assert mesh.app("server", SERVER, 9000, "at home") == "server:at home"
    assert mesh.app("server", "127.0.0.1", 9000, "at home") == "server:at home"


async def test_the_app_s_own_port_is_closed_to_plaintext_from_outside(mesh: Pair) -> None:
    assert mesh.app("client", SERVER, 9000, "from nobody's app", uid=None) == "refused"
    assert mesh.app("client", SERVER6, 9000, "from nobody's app", uid=None) == "refused"
    metrics = (await mesh.ask_admin(mesh.server, "/metrics"))[1]
    assert 'connections_refused_total{listener="inbound|9000",reason="plaintext"} 2.0' in metrics


async def test_a_connection_to_the_capture_port_itself_leads_nowhere(mesh: Pair) -> None:
    rules = json.loads((await mesh.ask_admin(mesh.client, "/config_dump"))[1])["capture"]
    assert rules["outgoing"] == list(PORTS)
    assert rules["users_left_alone"] == [0, 2102]
    assert mesh.app("client", "127.0.0.1", rules["port"], "myself") == "refused"
    metrics = (await mesh.ask_admin(mesh.client, "/metrics"))[1]
    assert 'connections_refused_total{listener="capture",reason="no_endpoint"} 1.0' in metrics


async def test_a_second_worker_in_the_same_network_namespace_does_not_start(mesh: Pair) -> None:
    second = await mesh.start_captured("client", mesh.how, *SLEEP, flags=("--run-dir", "second"))
    assert await second.wait() == 1
    assert "another worker captures in this network namespace" in (await second.logged("cannot go on"))["reason"]
    assert mesh.app("client", SERVER, 9000, "still") == "server:still"


async def test_a_killed_worker_leaves_the_ports_closed_and_the_next_start_replaces_its_rules(mesh: Pair) -> None:
    await mesh.client.kill()
    with on_the_wire(mesh) as captures:
        assert mesh.app("client", SERVER, 9000, MARKER) == "refused"
    assert [capture.found[MARKER.encode()] for capture in captures] == [set(), set()]

    other = "iptables" if mesh.how == "nft" else "nft"
    mesh.client = await mesh.start_captured("client", other, *SLEEP)
    await mesh.client.ready()
    assert mesh.app("client", SERVER, 9000, "again") == "server:again"
    assert ("table inet marblemesh" in mesh.rules("client")) is (other == "nft")


async def test_at_the_end_no_rule_is_left(mesh: Pair) -> None:
    for worker in (mesh.client, mesh.server):
        worker.send(signal.SIGTERM)
        await worker.wait()
    assert mesh.rules("client").lower().count("marblemesh") == 0
    assert mesh.rules("server").lower().count("marblemesh") == 0


async def test_a_worker_around_whom_its_app_would_talk_does_not_start_it(mesh: Pair) -> None:
    early = "chain early { type nat hook output priority -150; tcp dport 9000 redirect to :4140; }"
    mesh.pods["client"].run("nft", "-f", "-", stdin=f"table ip other {{\n{early}\n}}\n")
    refused = await mesh.start_captured("client", mesh.how, *SLEEP)
    assert await refused.wait() == 1
    reason = (await refused.logged("cannot go on"))["reason"]
    assert reason.startswith("capture does not work here: ")
    # nft's listing names the chain; iptables' knows nothing of it, but the probe has not arrived.
    says = "chain early of table ip other (priority -150)" if mesh.how == "nft" else ":9000 as the app's user did not"
    assert says in reason
    assert not any(line.get("event") == "app started" for line in refused.lines)
    assert mesh.rules("client").lower().count("marblemesh") == 0
