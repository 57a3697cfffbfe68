# SPDX-License-Identifier: Apache-2.0
"""Order, judged from listings: what comes first is named, with what to do about it."""

from __future__ import annotations

import json

import pytest

from enclave_proxy.capture_order import foreign_proxy, iptables_objection, nft_objection

OURS = {"family": "inet", "table": "marblemesh", "name": "output", "type": "nat", "hook": "output", "prio": -110}


def listing(*chains: dict[str, object]) -> str:
    entries: list[dict[str, object]] = [{"metainfo": {"json_schema_version": 1}}]
    return json.dumps({"nftables": entries + [{"chain": chain} for chain in (OURS, *chains)]})


def chain(priority: int, **changes: object) -> dict[str, object]:
    return {
        "family": "ip",
        "table": "nat",
        "name": "OUTPUT",
        "type": "nat",
        "hook": "output",
        "prio": priority,
    } | changes


@pytest.mark.parametrize("priority", [-150, -110])
def test_a_nat_chain_that_comes_before_or_beside_ours_is_named(priority: int) -> None:
    found = nft_objection(listing(chain(priority)))
    assert found is not None
    assert f"chain OUTPUT of table ip nat (priority {priority}) comes before ours (priority -110)" in found


@pytest.mark.parametrize(
    "other",
    [
        chain(-100),
        chain(-150, hook="prerouting"),
        chain(-150, type="filter"),
        {"family": "ip", "table": "nat", "name": "PROXY_INIT_OUTPUT"},
    ],
)
def test_chains_that_come_later_or_cannot_redirect_what_the_app_dials_are_no_matter(other: dict[str, object]) -> None:
    assert nft_objection(listing(other)) is None


def test_our_own_table_has_to_be_there() -> None:
    assert nft_objection('{"nftables": []}') == "table inet marblemesh is gone"
    with pytest.raises(ValueError, match="Expecting value"):
        nft_objection("no JSON")


def saved(*nat: str) -> str:
    return "\n".join(["*nat", ":OUTPUT ACCEPT [0:0]", *nat, "COMMIT", "*filter", "-A OUTPUT -j ACCEPT", "COMMIT", ""])


OUT, IN = "-A OUTPUT -j MARBLEMESH_OUTPUT", "-A PREROUTING -j MARBLEMESH_INBOUND"
LINKERD_OUT = '-A OUTPUT -m comment --comment "proxy-init/install-proxy-init-output" -j PROXY_INIT_OUTPUT'
LINKERD_IN = '-A PREROUTING -m comment --comment "proxy-init/install-proxy-init-prerouting" -j PROXY_INIT_REDIRECT'


def test_with_iptables_ours_is_the_first_outgoing_jump_and_linkerd_s_the_first_incoming_one() -> None:
    assert iptables_objection(saved(LINKERD_IN, IN, OUT, LINKERD_OUT)) is None


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ((IN, LINKERD_OUT, OUT), f"`{LINKERD_OUT}` comes before ours in the nat table"),
        ((IN, "-A OUTPUT -d 127.0.0.11/32 -j DOCKER_OUTPUT", OUT), "-j DOCKER_OUTPUT` comes before ours"),
        ((IN,), f"`{OUT}` is gone from the nat table"),
        ((OUT,), f"`{IN}` is gone from the nat table"),
        ((IN, LINKERD_IN, OUT), f"`{LINKERD_IN}` comes after ours"),
    ],
)
def test_any_other_order_is_objected_to(lines: tuple[str, ...], says: str) -> None:
    found = iptables_objection(saved(*lines))
    assert found is not None
    assert says in found


def test_linkerd_s_own_user_has_to_be_exempt() -> None:
    rule = "-A PROXY_INIT_OUTPUT -m owner --uid-owner 2103 -m comment --comment x -j RETURN"
    assert foreign_proxy(saved(rule), frozenset({2103})) is None
    assert foreign_proxy(saved(), frozenset({2102})) is None
    found = foreign_proxy(saved(rule), frozenset({2102}))
    assert found is not None
    assert found.endswith("--capture-proxies 2103")
