# SPDX-License-Identifier: Apache-2.0
"""Who comes first: capture beside another mesh's rules in the kernel, with the real programs, in one namespace."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enclave_proxy.capture_firewall import Firewall, Iptables, Nft
from enclave_proxy.capture_relay import CapturingRelay
from enclave_proxy.errors import StartError
from enclave_proxy.relay_config import RelayConfig
from tests.kit.capture_alone import PEER, capture, neighbours, out_to
from tests.kit.capture_mesh import ask_in
from tests.kit.linkerd_rules import OUTBOUND, Rules, install
from tests.kit.netns import Namespace

pytestmark = pytest.mark.e2e
FIREWALLS: dict[str, Callable[[], Firewall]] = {"nft": Nft, "iptables": Iptables}


@pytest.fixture
def pod() -> Iterator[Namespace]:
    with neighbours() as (a, _):
        yield a


def reached(pod: Namespace, listener: socket.socket) -> bool:
    """Whether an app's connection to the peer has arrived at this listener of somebody else when it is refused."""
    assert ask_in(pod, PEER.host, PEER.port, "in plaintext") == "refused"
    listener.setblocking(False)
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


@pytest.mark.parametrize("how", FIREWALLS)
def test_beside_linkerd_s_rules_ours_come_first_whoever_was_there_before(
    pod: Namespace, tmp_path: Path, how: str
) -> None:
    install(pod)

    async def scenario(relay: CapturingRelay) -> None:
        await relay.prove()
        install(pod)  # its init container runs once more: the jump keeps its place
        await relay.prove()

    capture(pod, FIREWALLS[how], RelayConfig(outbound=(out_to(tmp_path),)), scenario)


def test_a_chain_of_lower_priority_that_redirects_is_named_and_the_start_refused(
    pod: Namespace, tmp_path: Path
) -> None:
    foreign = f"chain early {{ type nat hook output priority -150; tcp dport 9000 redirect to :{OUTBOUND}; }}"
    pod.run("nft", "-f", "-", stdin=f"table ip other {{\n{foreign}\n}}\n")

    async def scenario(relay: CapturingRelay) -> None:
        with pytest.raises(StartError, match=r"chain early of table ip other \(priority -150\) comes before ours"):
            await relay.prove()

    capture(pod, Nft, RelayConfig(outbound=(out_to(tmp_path),)), scenario)


def test_linkerd_s_jump_put_before_ours_is_noticed_and_ours_put_back(pod: Namespace, tmp_path: Path) -> None:
    install(pod)

    async def scenario(relay: CapturingRelay) -> None:
        await relay.prove()
        pod.run("iptables", "-t", "nat", "-I", "OUTPUT", "1", "-j", "PROXY_INIT_OUTPUT")
        objection = await relay._firewall.objection()
        assert objection is not None
        assert "`-A OUTPUT -j PROXY_INIT_OUTPUT` comes before ours" in objection
        await relay._look_again()
        assert relay.problem is None
        assert await relay._firewall.objection() is None

    capture(pod, Iptables, RelayConfig(outbound=(out_to(tmp_path),)), scenario)


def test_the_probe_finds_what_no_listing_shows_and_meanwhile_nothing_leaks(pod: Namespace, tmp_path: Path) -> None:

    async def scenario(relay: CapturingRelay) -> None:
        await relay.prove()
        # The other iptables' rules, made later, come first: of one priority the youngest does.
        install(pod, firewall="iptables-legacy")
        await relay._look_again()
        assert relay.problem is not None
        assert f"a probe to {PEER} as the app's user did not arrive at the worker" in relay.problem
        assert "use --capture nft, which comes before both" in relay.problem
        with socket.create_server(("127.0.0.1", OUTBOUND)) as linkerd:
            assert not reached(pod, linkerd)

    capture(pod, Iptables, RelayConfig(outbound=(out_to(tmp_path),)), scenario)


def test_an_exempt_user_who_is_not_linkerd_s_is_refused_before_it_is_a_loop(pod: Namespace, tmp_path: Path) -> None:
    install(pod, Rules(uid=2103))

    async def scenario(relay: CapturingRelay) -> None:
        with pytest.raises(StartError, match="runs as user 2103, which is not exempt: name it with --capture-proxies"):
            await relay.prove()

    capture(pod, Nft, RelayConfig(outbound=(out_to(tmp_path),)), scenario)
