# SPDX-License-Identifier: Apache-2.0
"""Which peer of the manifest a captured connection means. Pure: routes and addresses in, a route or a reason out.

the port is of one Outgoing entry        that one, whatever the address: DNS, the host's, decides nothing
the port is of several                   the one whose addresses have it; none or two of them: nobody
the port is of none (any more)           nobody
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from enclave_proxy.fused_routes import canonical, outbound_name
from enclave_proxy.relay_config import DnsTarget, Outbound, TcpAddress


def entries_of(routes: Iterable[Outbound], port: int) -> dict[str, str]:
    """The routes to this port, by their name: the `Addr` that each has in the manifest."""
    named = ((route.name, outbound_name(route.name)) for route in routes)
    return {name: found[0] for name, found in named if found is not None and found[1] == port}


def ports_of(routes: Iterable[Outbound]) -> frozenset[int]:
    """All ports of Outgoing."""
    return frozenset(found[1] for route in routes if (found := outbound_name(route.name)) is not None)


def known_addresses(route: Outbound) -> frozenset[str]:
    """What is known of a route's peers without asking DNS: numeric, in their one spelling."""
    if isinstance(route.endpoints, DnsTarget):
        return frozenset()
    return frozenset(canonical(endpoint.host) for endpoint in route.endpoints)


def pick(meant: TcpAddress, entries: Mapping[str, str], addresses: Mapping[str, Collection[str]]) -> str:
    """The name of the route. `addresses`: of each entry, where there are several. Raises LookupError saying why not."""
    if not entries:
        raise LookupError(f"to {meant}, which is no port of the manifest's Outgoing")
    if len(entries) == 1:
        return next(iter(entries))
    host = canonical(meant.host)
    found = [name for name in entries if host in addresses.get(name, ())]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(sorted(entries.values()))
    which = "none" if not found else "more than one"
    raise LookupError(f"to {meant}, the address of {which} of {listed}, which share port {meant.port} in Outgoing")
