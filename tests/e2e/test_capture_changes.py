# SPDX-License-Identifier: Apache-2.0
"""Capture while the manifest changes and while others change the rules: what follows, and what stays closed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from enclave_proxy.capture_firewall import Firewall, FirewallError, Iptables, Nft
from enclave_proxy.capture_listener import _as_user
from enclave_proxy.capture_relay import CapturingRelay
from enclave_proxy.capture_rules import CaptureRules
from enclave_proxy.limits import Limits
from enclave_proxy.listener import RelayError
from enclave_proxy.relay_config import Outbound, RelayConfig
from tests.kit.capture_alone import OWN, PEER, capture, into, neighbours, out_to
from tests.kit.capture_mesh import APP, ask_in
from tests.kit.netns import Namespace

pytestmark = pytest.mark.e2e
FIREWALLS: dict[str, Callable[[], Firewall]] = {"nft": Nft, "iptables": Iptables}


@pytest.fixture
def pair() -> Iterator[tuple[Namespace, Namespace]]:
    with neighbours() as both:
        yield both


async def refused_by_the_worker(relay: CapturingRelay, pod: Namespace, port: int) -> bool:
    """Whether a connection of the app to the neighbour arrives at the worker, and is refused there."""
    before = sum(relay.counters.of("capture").refused.values())
    assert await asyncio.to_thread(ask_in, pod, PEER.host, port, "hello") == "refused"
    return sum(relay.counters.of("capture").refused.values()) == before + 1


@pytest.mark.parametrize("how", FIREWALLS)
def test_rules_follow_the_manifest_and_what_it_takes_away_stays_closed(
    pair: tuple[Namespace, Namespace], tmp_path: Path, how: str
) -> None:
    pod, neighbour = pair
    first = RelayConfig(inbound=(into(8000), into(8001)), outbound=(out_to(tmp_path), out_to(tmp_path, 9001)))

    async def scenario(relay: CapturingRelay) -> None:
        await relay.prove()
        second = RelayConfig(inbound=(into(8000), into(8002)), outbound=(out_to(tmp_path), out_to(tmp_path, 9002)))
        await relay.apply(second)
        rules = relay._rules
        assert rules.outgoing == {9000, 9001, 9002}
        assert [port for port, _ in rules.incoming] == [8000, 8002]
        assert rules.closed == {8001}
        await relay.prove()
        # The app does not know that it lost a peer: what it says goes to the worker, and no further.
        assert await refused_by_the_worker(relay, pod, 9001)
        with socket.create_server(("0.0.0.0", 8001)) as app:  # which listens on
            app.setblocking(False)
            assert ask_in(neighbour, OWN, 8001, "anybody?", uid=None) == "refused"
            with pytest.raises(BlockingIOError):
                app.accept()
        await relay.apply(first)
        assert relay._rules.closed == {8002}

    capture(pod, FIREWALLS[how], first, scenario)
    assert "marblemesh" not in pod.run("nft", "list", "ruleset").lower()


def test_probes_do_not_wait_for_connections_that_are_being_set_up(
    pair: tuple[Namespace, Namespace], tmp_path: Path
) -> None:
    pod, _ = pair
    route = out_to(tmp_path)

    async def scenario(relay: CapturingRelay) -> None:
        slots = relay._slots[Outbound]
        for _ in range(Limits().handshakes):
            await slots.acquire()
        with _as_user(APP, socket.AF_INET) as app:
            app.connect_ex((PEER.host, PEER.port))
            await relay.prove()
            counters = relay.counters.of(route.name)
            assert (counters.accepted, counters.handshakes) == (1, 0)  # it waits for its turn

    capture(pod, Nft, RelayConfig(outbound=(route,)), scenario)


@pytest.mark.parametrize("how", FIREWALLS)
def test_rules_that_somebody_flushes_or_changes_are_put_back(
    pair: tuple[Namespace, Namespace], tmp_path: Path, how: str
) -> None:
    pod, _ = pair

    async def scenario(relay: CapturingRelay) -> None:
        await relay.prove()
        for damage in DAMAGE[how]:
            pod.run(*damage.split())
            assert await relay._firewall.objection() is not None, damage
            await relay._look_again()
            assert relay.problem is None, damage
            assert await relay._firewall.objection() is None

    capture(pod, FIREWALLS[how], RelayConfig(inbound=(into(8000),), outbound=(out_to(tmp_path),)), scenario)


DAMAGE = {
    "nft": (
        "nft flush ruleset",
        "nft flush chain inet marblemesh guard_output",
        "nft insert rule inet marblemesh output accept",
    ),
    "iptables": (
        "iptables -t nat -F",
        "ip6tables -t nat -F MARBLEMESH_OUTPUT",
        "iptables -t filter -D OUTPUT -j MARBLEMESH_GUARD_OUT",
        "iptables -t nat -I MARBLEMESH_OUTPUT 1 -j RETURN",
    ),
}


class Broken(Nft):
    """A packet filter that takes the first rules, and no others."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 1

    async def apply(self, rules: CaptureRules) -> None:
        if not self.left:
            raise FirewallError("nft -f -: Error: Could not process rule: No such file or directory")
        self.left -= 1
        await super().apply(rules)


def test_a_configuration_whose_rules_the_kernel_refuses_changes_nothing(
    pair: tuple[Namespace, Namespace], tmp_path: Path
) -> None:
    pod, _ = pair
    first = RelayConfig(inbound=(into(8000),), outbound=(out_to(tmp_path),))

    async def scenario(relay: CapturingRelay) -> None:
        before, rules = relay.addresses, relay._rules
        with pytest.raises(RelayError, match="the capture rules cannot be put in force: nft -f -: Error: Could not"):
            await relay.apply(RelayConfig(inbound=(into(8000), into(8001)), outbound=(out_to(tmp_path, 9001),)))
        assert relay.addresses == before
        assert relay._rules == rules
        await relay.prove()

    capture(pod, Broken, first, scenario)


def test_iptables_of_one_family_without_the_other_is_undone(pair: tuple[Namespace, Namespace], tmp_path: Path) -> None:
    pod, _ = pair
    first = CaptureRules(
        capture=1,
        outgoing=frozenset({9000}),
        incoming=(),
        closed=frozenset(),
        worker=0,
        proxies=frozenset(),
    )
    firewall = Iptables(("iptables", "ip9tables"))

    def attempt(rules: CaptureRules) -> None:
        with pytest.raises(FirewallError, match="ip9tables-save is not in "):
            pod.call(lambda: asyncio.run(firewall.apply(rules)))

    attempt(first)
    assert "MARBLEMESH" not in pod.run("iptables-save")
    firewall._prefixes = ("iptables",)
    pod.call(lambda: asyncio.run(firewall.apply(first)))
    before = pod.run("iptables-save", "-t", "nat").splitlines()[1:-1]
    firewall._prefixes = ("iptables", "ip9tables")
    attempt(replace(first, outgoing=frozenset({9000, 9001})))
    assert pod.run("iptables-save", "-t", "nat").splitlines()[1:-1] == before
