# SPDX-License-Identifier: Apache-2.0
"""Do the capture rules come first? Judged by what nft and iptables-save list. Pure: listings in, the objection out.

The first redirection of a connection is final, so that a rule before ours that redirects can carry the app's plaintext
around the worker. None of ours may be gone or changed either: whoever asks compares them with what was written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from enclave_proxy.capture_rules import TABLE

_LINKERD_INBOUND = "-j PROXY_INIT_REDIRECT"
_OURS = {"OUTPUT": "-A OUTPUT -j MARBLEMESH_OUTPUT", "PREROUTING": "-A PREROUTING -j MARBLEMESH_INBOUND"}
_PROXY_USER = re.compile(r"^-A PROXY_INIT_OUTPUT .*--uid-owner (\d+)\b.* -j RETURN$", re.MULTILINE)


def nft_objection(listing: str) -> str | None:
    """What is wrong with the order, given `nft -j list chains`; None if nothing is. Raises ValueError if the listing
    is none."""
    found = json.loads(listing)["nftables"]
    chains = [entry["chain"] for entry in found if "chain" in entry]
    own = [c for c in chains if c["family"] == "inet" and c["table"] == TABLE and c["name"] == "output"]
    if not own:
        return f"table inet {TABLE} is gone"
    for chain in _before(chains, own[0]["prio"]):
        where = f"chain {chain['name']} of table {chain['family']} {chain['table']}"
        return (
            f"{where} (priority {chain['prio']}) comes before ours (priority {own[0]['prio']}): whatever it "
            "redirects goes around the worker. Remove it, or give it a higher priority"
        )
    return None


def _before(chains: list[dict[str, Any]], priority: int) -> Iterator[dict[str, Any]]:
    for chain in chains:
        redirects = chain.get("type") == "nat" and chain.get("hook") == "output" and chain["table"] != TABLE
        # With equal priorities the order is that of their making, which no listing shows.
        if redirects and chain["prio"] <= priority:
            yield chain


def iptables_objection(saved: str) -> str | None:
    """The same, given `iptables-save`."""
    nat = saved.partition("*nat\n")[2].partition("\nCOMMIT")[0].splitlines()
    output = [line for line in nat if line.startswith("-A OUTPUT ")]
    if _OURS["OUTPUT"] not in output:
        return f"`{_OURS['OUTPUT']}` is gone from the nat table"
    if output[0] != _OURS["OUTPUT"]:
        return (
            f"`{output[0]}` comes before ours in the nat table: whatever it redirects goes around the worker. Let its "
            "owner append it (iptables -A), or use --capture nft, whose rules come before all of iptables"
        )
    prerouting = [line for line in nat if line.startswith("-A PREROUTING ")]
    if _OURS["PREROUTING"] not in prerouting:
        return f"`{_OURS['PREROUTING']}` is gone from the nat table"
    after = prerouting[prerouting.index(_OURS["PREROUTING"]) :]
    if linkerd := [line for line in after if line.endswith(_LINKERD_INBOUND)]:
        return f"`{linkerd[0]}` comes after ours: what Linkerd has wrapped would reach us before its proxy"
    return None


def foreign_proxy(saved: str, proxies: frozenset[int]) -> str | None:
    """An objection if Linkerd's rules, as iptables-save lists them, exempt a user whom ours do not: what its proxy
    sends on would come back to us for ever."""
    users = {int(number) for number in _PROXY_USER.findall(saved)}
    if not users - proxies:
        return None
    number = min(users - proxies)
    return f"Linkerd's proxy runs as user {number}, which is not exempt: name it with --capture-proxies {number}"
