# SPDX-License-Identifier: Apache-2.0
"""What a relay remembers of its peers from one dial to the next: loads, failures, addresses of names.

A cluster, in Envoy's word, is the set of endpoints behind one outbound route. It is known by the route's name, so that
it survives every change of the configuration that leaves the route there.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from enclave_proxy.endpoints import Balancer, EndpointStatus, is_ipv6
from enclave_proxy.relay_config import DnsTarget, Outbound, RelayConfig, TcpAddress, UnixAddress
from enclave_proxy.resolver import Lookup, Resolver, system_lookup
from enclave_proxy.task_set import TaskSet


@dataclass(slots=True)
class ClusterCounters:
    """Numbers of one outbound route, since it was first dialled under its name."""

    attempts: int = 0
    """connects begun"""
    retries: int = 0
    """those among them that came after another one for the same connection of the app"""
    failures: int = 0
    """attempts that ended in no admitted peer, through the peer's fault"""
    ejections: int = 0
    """times that an endpoint was put out"""


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """One outbound route as an operator sees it: plain data, no secret; the addresses name peers."""

    name: str
    resolved_from: str
    endpoints: tuple[EndpointStatus, ...]
    ejected: int
    counters: ClusterCounters


@dataclass(slots=True)
class Cluster:
    """The endpoints of a route, and what is counted of them."""

    balancer: Balancer
    counters: ClusterCounters
    source: tuple[object, ...] | None = None
    """what the balancer was last given, to know whether it has to be told anything"""
    ipv6: bool | None = None
    """of a name: which family to try first (RFC 6724), as the system's resolver sees it"""
    resolved_from: str = ""


class Clusters:
    """All of one relay. Make it inside a running event loop."""

    def __init__(
        self,
        on_bug: Callable[[BaseException], None],
        *,
        lookup: Lookup = system_lookup,
        clock: Callable[[], float] | None = None,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.counters: dict[str, ClusterCounters] = {}
        self._clock = clock or asyncio.get_running_loop().time
        self._random = random
        self._clusters: dict[str, Cluster] = {}
        self._lookups = TaskSet(on_bug)
        self.resolver = Resolver(self._lookups, self._clock, lookup)

    def retain(self, config: RelayConfig) -> None:
        """Forget the endpoints and names of everything that is not configured any more. Counters stay."""
        names = {route.name for route in config.outbound}
        self._clusters = {name: cluster for name, cluster in self._clusters.items() if name in names}
        targets = [route.endpoints.host for route in config.outbound if isinstance(route.endpoints, DnsTarget)]
        apps = [route.upstream.host for route in config.inbound if not isinstance(route.upstream, UnixAddress)]
        self.resolver.retain({*targets, *apps})
        for route in config.outbound:
            if route.name in self._clusters and not isinstance(route.endpoints, DnsTarget):
                self._update(self._clusters[route.name], route.endpoints)

    async def locate(self, route: Outbound, within: float) -> Cluster:
        """The route's cluster with its endpoints as they are now. Raises Unresolved if they have a name without
        address after `within` seconds."""
        target = route.endpoints
        if isinstance(target, DnsTarget):
            hosts = await self.resolver.resolve(target.host, within)
            cluster = self._of(route.name)
            if cluster.source is not hosts:
                addresses = tuple(TcpAddress(host, target.port) for host in hosts)
                self._update(cluster, addresses)
                cluster.source, cluster.ipv6, cluster.resolved_from = hosts, is_ipv6(addresses[0]), target.host
            return cluster
        cluster = self._of(route.name)
        self._update(cluster, target)
        return cluster

    def status(self) -> tuple[ClusterStatus, ...]:
        """All clusters that have been dialled, by name."""
        return tuple(
            ClusterStatus(
                name, cluster.resolved_from, cluster.balancer.status(), cluster.balancer.ejected, cluster.counters
            )
            for name, cluster in sorted(self._clusters.items())
        )

    async def look(self) -> tuple[ClusterStatus, ...]:
        """The same, for whoever does not know whether others have to be asked."""
        return self.status()

    def sizes(self) -> Iterator[tuple[str, int, int]]:
        """Of each cluster that has been dialled: its name, how many endpoints it has, and how many are left out."""
        for name, cluster in self._clusters.items():
            yield name, len(cluster.balancer), cluster.balancer.ejected

    async def close(self) -> None:
        """End the lookups that are under way."""
        await self._lookups.close()

    def _of(self, name: str) -> Cluster:
        if name not in self._clusters:
            counters = self.counters.setdefault(name, ClusterCounters())
            self._clusters[name] = Cluster(Balancer(self._clock, self._random), counters)
        return self._clusters[name]

    def _update(self, cluster: Cluster, addresses: tuple[TcpAddress, ...]) -> None:
        if cluster.source is not addresses:
            cluster.balancer.update(addresses)
            cluster.source, cluster.ipv6, cluster.resolved_from = addresses, None, ""


class Attempts:
    """The attempts of one dial: at most `limit`, each to an endpoint that was not tried yet while there is one.

    Whatever it has taken from the balancer it gives back: what failed at once, the rest on `close`; only what was
    admitted is left to who calls `keep`.
    """

    def __init__(self, cluster: Cluster, limit: int) -> None:
        self._cluster = cluster
        self._left = limit
        self._family = cluster.ipv6
        self._tried: set[TcpAddress] = set()
        self._held: set[TcpAddress] = set()
        self._begun = False

    def next(self) -> TcpAddress | None:
        """Where to connect to; None: enough, or nobody else."""
        if not self._left:
            return None
        address = self._cluster.balancer.choose(self._tried, self._family)
        if address is None:
            return None
        self._left -= 1
        counters = self._cluster.counters
        counters.attempts += 1
        counters.retries += self._begun
        self._begun = True
        self._tried.add(address)
        self._held.add(address)
        # RFC 8305, section 4: the families in turn, so that a broken one costs one delay.
        self._family = not is_ipv6(address)
        return address

    def failed(self, address: TcpAddress) -> None:
        """An attempt ended in no admitted peer, through no fault of ours."""
        counters = self._cluster.counters
        counters.failures += 1
        counters.ejections += self._cluster.balancer.failed(address)
        self.drop(address)

    def drop(self, address: TcpAddress) -> None:
        """An attempt ended, and that says nothing about the endpoint."""
        self._held.remove(address)
        self._cluster.balancer.release(address)

    def connected(self, address: TcpAddress) -> None:
        """Of all that are under way this one goes on. The others can be tried later: nothing is known of them."""
        for other in self._held - {address}:
            self.drop(other)
            self._tried.discard(other)

    def again(self) -> bool:
        """Let endpoints that failed be tried once more. False: no attempt is left."""
        self._tried.clear()
        return self._left > 0

    def keep(self, address: TcpAddress, connection: asyncio.Task[object]) -> None:
        """The peer is admitted: it is in flight until the task of its connection has ended."""
        self._held.remove(address)
        self._cluster.balancer.succeeded(address)
        balancer = self._cluster.balancer
        connection.add_done_callback(lambda _: balancer.release(address))

    def close(self) -> None:
        """Give back everything that is still held."""
        for address in list(self._held):
            self.drop(address)
