# SPDX-License-Identifier: Apache-2.0
"""What Linkerd's proxies do with TCP and TLS of pods, in network namespaces with its real redirection rules.

These are the facts on which the guide for Linkerd rests. The proxy is our stand-in; with LINKERD2_PROXY_BIN it is the
real one, and the same must hold.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.kit.linkerd_control import Workload
from tests.kit.linkerd_metrics import label_names, total
from tests.kit.linkerd_peers import app_tls, client_hello, connected, echo, refused, unverified
from tests.kit.linkerd_pod import Town, meshed
from tests.kit.linkerd_rules import OUTPUT_CHAIN, REDIRECT_CHAIN, Firewall, Rules, install, saved
from tests.kit.netns import Namespace, namespaces_needed

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]
DETECTED, OPAQUE, SKIPPED, GUARDED, METERED = 9000, 9001, 9002, 9003, 9004
A, B, B_OUTSIDE = "10.77.0.1", "10.77.0.2", "10.77.1.2"
TIMES = {"INBOUND_DETECT_TIMEOUT": "1s", "OUTBOUND_DETECT_TIMEOUT": "300ms", "IDENTITY_MIN_REFRESH": "1s"}
stand_in_only = pytest.mark.skipif(
    "LINKERD2_PROXY_BIN" in os.environ,  # noqa: TID251 - a test's own environment
    reason="states the stand-in's own series: those of the real proxy were not there to compare",
)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def town() -> AsyncIterator[Town]:
    namespaces_needed("iptables-nft-restore")
    skip = (str(SKIPPED), "4567", "4568")
    target = Workload("b", B, opaque={OPAQUE}, skipped={SKIPPED})
    async with meshed(Workload("a", A), target, rules=Rules(skip, skip), environment=TIMES) as made:
        yield made


@pytest.mark.parametrize("firewall", ["iptables-nft", "ip6tables-nft"])
async def test_the_redirection_is_refilled_and_keeps_its_place_when_it_is_installed_again(firewall: Firewall) -> None:
    namespaces_needed(f"{firewall}-restore")
    with Namespace("pod") as pod:
        install(pod, Rules(skip_inbound=("1-2", "9000")), firewall)
        pod.run(firewall, "-t", "nat", "-A", "OUTPUT", "-j", "ACCEPT")  # somebody else's, after it
        install(pod, firewall=firewall)
        rules = [line.split() for line in saved(pod, firewall) if line.startswith("-A")]
    assert [rule[-1] for rule in rules if rule[1] == "OUTPUT"] == [OUTPUT_CHAIN, "ACCEPT"]
    assert [rule[-1] for rule in rules if rule[1] == "PREROUTING"] == [REDIRECT_CHAIN]
    ignored = [rule[rule.index("--dports") + 1] for rule in rules if rule[1] == REDIRECT_CHAIN and "--dports" in rule]
    assert ignored == ["4190,4191,4567,4568"]


async def test_the_app_sees_its_own_pods_address_whoever_connects(town: Town) -> None:
    """Hence nobody may be authorised by a source address; past Linkerd, on a skipped port, it is the client's."""
    for port, seen in ((DETECTED, B), (OPAQUE, B), (SKIPPED, A)):
        async with echo(town.b, port) as app, connected(town.a.namespace, B, port) as client:
            assert await client.ask(b"hello from another pod") == b"hello from another pod"
            assert app.peers == [seen], port
    assert f"{B}:{SKIPPED}" not in town.control.asked


async def test_who_says_nothing_is_cut_off_on_a_detected_port_and_lives_on_an_opaque_one(town: Town) -> None:
    """A client without Linkerd: its connection comes to the port itself, where a ClientHello is waited for."""
    async with echo(town.b, DETECTED) as app, connected(town.outside, B_OUTSIDE, DETECTED) as client:
        assert await client.ended()
        assert app.peers == []
    async with echo(town.b, OPAQUE), connected(town.outside, B_OUTSIDE, OPAQUE) as client:
        await asyncio.sleep(1.5)  # longer than a ClientHello may take
        assert await client.ask(b"late, but here") == b"late, but here"


async def test_between_meshed_pods_silence_costs_time_on_a_detected_port_and_nothing_on_an_opaque_one(
    town: Town,
) -> None:
    """The proxies' own TLS carries a header with the port, so that nothing is detected at the server."""
    for port, waits in ((DETECTED, 1), (OPAQUE, 0)):
        before = await _waits(town)
        async with echo(town.b, port), connected(town.a.namespace, B, port) as client:
            await asyncio.sleep(1.5)
            assert await client.ask(b"after a while") == b"after a while"
        assert await _waits(town) == before + waits


async def _waits(town: Town) -> float:
    """How often the client's proxy has waited for bytes in vain before it dialled."""
    return total(await town.a.metrics(), "outbound_tcp_detect_http_results_total", result="read_timeout")


async def test_a_listener_on_loopback_is_not_reached(town: Town) -> None:
    """The inbound proxy dials the pod's address."""
    async with echo(town.b, OPAQUE, "127.0.0.1"):
        assert await refused(town.a.namespace, B, OPAQUE)
    async with echo(town.b, OPAQUE, B), connected(town.a.namespace, B, OPAQUE) as client:
        assert await client.ask(b"on the pod's address") == b"on the pod's address"


async def test_tls_for_any_other_name_passes_and_for_the_pods_own_identity_ends_at_linkerd(town: Town) -> None:
    app = app_tls("the app")
    async with echo(town.b, DETECTED, context=app):
        for where, address in ((town.outside, B_OUTSIDE), (town.a.namespace, B)):
            async with connected(where, address, DETECTED, unverified(), "db.marble.example") as client:
                assert client.certificate.subject.rfc4514_string() == "CN=the app"
                assert await client.ask(b"end to end") == b"end to end"
        own = town.b.workload.identity
        async with connected(town.outside, B_OUTSIDE, DETECTED, unverified(), own) as client:
            assert client.certificate.subject.rfc4514_string() == f"CN={own}"  # the app was not even asked
        opaque = connected(town.outside, B_OUTSIDE, OPAQUE, unverified(), own)
        async with echo(town.b, OPAQUE, context=app), opaque as client:  # nobody looks there
            assert client.certificate.subject.rfc4514_string() == "CN=the app"


async def test_authenticated_policy_denies_tls_without_a_mesh_identity_and_ends_what_is_open(town: Town) -> None:
    async with echo(town.b, GUARDED, context=app_tls("the app")):
        async with connected(town.outside, B_OUTSIDE, GUARDED, unverified(), "db.marble.example") as stranger:
            assert await stranger.ask(b"while it may") == b"while it may"
            town.b.workload.default_policy = "all-authenticated"
            town.control.change()
            assert await stranger.ended()
        assert await refused(town.outside, B_OUTSIDE, GUARDED)
        async with connected(town.a.namespace, B, GUARDED, unverified(), "db.marble.example") as neighbour:
            assert await neighbour.ask(b"from the mesh") == b"from the mesh"
        async with echo(town.b, SKIPPED), connected(town.outside, B_OUTSIDE, SKIPPED) as scraper:
            assert await scraper.ask(b"metrics and probes") == b"metrics and probes"  # policies do not reach here
    town.b.workload.default_policy = "all-unauthenticated"
    town.control.change()
    series = await town.b.metrics()
    assert total(series, "inbound_tcp_authz_terminate_total", target_port=str(GUARDED), tls="opaque") == 1
    assert total(series, "inbound_tcp_authz_deny_total", target_port=str(GUARDED)) == 1


@pytest.mark.skipif(
    "LINKERD2_PROXY_BIN" not in os.environ,  # noqa: TID251 - a test's own environment
    reason="LINKERD2_PROXY_BIN names no linkerd2-proxy: the tests of Linkerd ran with the stand-in",
)
async def test_the_real_proxy_is_what_was_tested(town: Town) -> None:
    for pod in (town.a, town.b):
        built = [dict(labels) for name, labels in await pod.metrics() if name == "proxy_build_info"]
        print(built)
        assert built
        assert built[0].get("version") != "stand-in"


@stand_in_only
@pytest.mark.parametrize(
    ("size", "labels"),
    [
        (400, {"tls": "opaque", "sni": "small.example"}),
        (5000, {"tls": "opaque", "sni": "big.example"}),  # more than one look takes
        (9000, {"tls": "no_identity", "no_tls_reason": "no_tls_from_remote"}),  # more than is ever read
    ],
)
async def test_a_client_hello_is_read_to_8_kib_and_forwarded_whatever_its_size(
    town: Town, size: int, labels: dict[str, str]
) -> None:
    hello = client_hello(labels.get("sni", "huge.example"), size)
    before = total(await town.b.metrics(), "tcp_open_total", peer="src", target_port=str(DETECTED), **labels)
    async with echo(town.b, DETECTED), connected(town.outside, B_OUTSIDE, DETECTED) as client:
        assert await client.ask(hello) == hello
    after = total(await town.b.metrics(), "tcp_open_total", peer="src", target_port=str(DETECTED), **labels)
    assert after == before + 1


@stand_in_only
async def test_the_series_of_a_connection_have_linkerds_label_names(town: Town) -> None:
    """Both proxies', of a meshed connection and of one whose TLS passes through; bytes are the app's."""
    async with echo(town.b, METERED), connected(town.a.namespace, B, METERED) as client:
        assert len(await client.ask(bytes(5000))) == 5000
    target = {"target_addr", "target_ip", "target_port"}
    server = {"srv_group", "srv_kind", "srv_name", "srv_port"}
    inbound, outbound = await town.b.metrics(), await town.a.metrics()
    port = str(METERED)
    assert label_names(inbound, "tcp_open_total", peer="src", target_port=port, tls="true") == {
        frozenset({"direction", "peer", "tls", "client_id"} | target | server)
    }
    assert label_names(inbound, "tcp_open_total", peer="dst") == {
        frozenset({"direction", "peer", "tls", "no_tls_reason"})
    }
    assert label_names(outbound, "tcp_open_total", peer="dst", target_port=port) == {
        frozenset({"direction", "peer", "tls", "server_id"} | target)
    }
    assert label_names(outbound, "tcp_open_total", peer="src") == {
        frozenset({"direction", "peer", "tls", "no_tls_reason"} | target)
    }
    assert label_names(inbound, "inbound_tcp_transport_header_connections_total") == {
        frozenset({"session_protocol", "target_port", "target_name", "client_id"})
    }
    read = total(outbound, "tcp_read_bytes_total", direction="outbound", peer="src", target_port=port)
    assert read == 5000
    assert total(inbound, "tcp_read_bytes_total", peer="src", target_port=port, tls="true") == 5000


async def test_without_transport_headers_meshed_traffic_comes_to_the_port_itself() -> None:
    """`outboundTransportMode: transparent`: what Linkerd did before 2025. An opaque port has a header all the same."""
    namespaces_needed("iptables-nft-restore")
    pods = Workload("a", A), Workload("b", B, opaque={OPAQUE})
    async with meshed(*pods, transport_header=False, lifetime=4, environment=TIMES) as town:
        for port in (DETECTED, OPAQUE):
            async with echo(town.b, port) as app, connected(town.a.namespace, B, port) as client:
                assert await client.ask(b"hello from another pod") == b"hello from another pod"
                assert app.peers == [B]
        async with asyncio.timeout(20):
            while len(town.control.certified) < 4:  # both proxies renew at 70 % of four seconds
                await asyncio.sleep(0.1)
        async with echo(town.b, DETECTED), connected(town.a.namespace, B, DETECTED) as client:
            assert await client.ask(b"with the new identity") == b"with the new identity"
