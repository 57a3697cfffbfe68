# SPDX-License-Identifier: Apache-2.0
"""The two Envoys' bootstrap configurations, as plain dictionaries; nothing here reads or writes anything.

`inside`: the Envoy in web's Marble, in place of our relay. Its certificate and its trust come over the worker's SDS
socket; TLS ends here, and every plaintext hop is a UNIX socket. Its admin interface is one too: only the statistics
are shown over TCP.

`edge`: the Envoy outside. It holds no TLS context on the data path and so can only carry ciphertext. Clusters and
endpoints come from the Coordinator's xDS (ADS, incremental).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from marblemesh import envoy
from marblemesh.envoy import Config, Peers, Tcp, Unix, parts
from marblemesh.envoy.bootstrap import Route


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A TCP address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def tcp(self) -> Tcp:
        return Tcp(self.host, self.port)


@dataclass(frozen=True, slots=True)
class Upstream:
    """A Marble that the app in this Marble talks to: the app's socket, where that Marble is, and who must answer."""

    name: str
    listen: Path
    endpoint: Endpoint
    peer: str


@dataclass(frozen=True, slots=True)
class Inside:
    """What the Envoy inside a Marble needs to know. `allowed` are the Marble types that may connect."""

    inbound: Endpoint
    app: Path
    trust_domain: str
    allowed: tuple[str, ...]
    upstreams: tuple[Upstream, ...]
    sds_socket: Path
    admin_socket: Path
    stats: Endpoint


@dataclass(frozen=True, slots=True)
class Edge:
    """What the Envoy at the edge needs to know. `certificate` and `key` are what the manifest's gateway entry names."""

    listen: Endpoint
    marble_type: str
    port: int
    xds: Endpoint
    certificate: Path
    key: Path
    coordinator_root: Path
    admin: Endpoint

    @property
    def cluster(self) -> str:
        """The name of the cluster that the Coordinator gives it."""
        return parts.marble_cluster(self.marble_type, self.port)


def inside_bootstrap(inside: Inside) -> Config:
    """Bootstrap of the Envoy inside a Marble."""
    tls = parts.downstream_tls(Peers(inside.allowed, inside.trust_domain))
    inbound = parts.tcp_listener("inbound", inside.inbound.tcp, [parts.chain("app", tls=tls)])
    outbound = [parts.tcp_listener(u.name, Unix(str(u.listen)), [parts.chain(u.name)]) for u in inside.upstreams]
    admin = Unix(str(inside.admin_socket))
    clusters = [
        parts.cluster(parts.SDS_CLUSTER, Unix(str(inside.sds_socket)), http2=True),
        parts.cluster("admin", admin),
        parts.cluster("app", Unix(str(inside.app))),
        *(_peer(upstream, inside.trust_domain) for upstream in inside.upstreams),
    ]
    return {
        "node": {"id": "envoy-inside", "cluster": "marblemesh-demo"},
        "admin": {"address": parts.address(admin)},
        "static_resources": {"listeners": [inbound, *outbound, _stats_listener(inside.stats)], "clusters": clusters},
    }


def edge_bootstrap(edge: Edge) -> Config:
    """Bootstrap of the Envoy at the edge."""
    made = envoy.Edge(
        listen=edge.listen.tcp,
        coordinator=edge.xds.tcp,
        certificate=str(edge.certificate),
        key=str(edge.key),
        root=str(edge.coordinator_root),
        routes=(Route(None, edge.marble_type, edge.port),),
    )
    return made.bootstrap() | {"admin": {"address": parts.address(edge.admin.tcp)}}


def _peer(upstream: Upstream, trust_domain: str) -> Config:
    tls = parts.upstream_tls(Peers((upstream.peer,), trust_domain), upstream.name)
    return parts.cluster(upstream.name, upstream.endpoint.tcp, tls=tls)


def _stats_listener(at: Endpoint) -> Config:
    route = {"match": {"path": "/stats/prometheus"}, "route": {"cluster": "admin"}}
    ready = {"match": {"path": "/ready"}, "route": {"cluster": "admin"}}
    router = f"{parts.TYPES}envoy.extensions.filters.http.router.v3.Router"
    manager = {
        "@type": f"{parts.TYPES}envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "stats",
        "http_filters": [{"name": "router", "typed_config": {"@type": router}}],
        "route_config": {"virtual_hosts": [{"name": "stats", "domains": ["*"], "routes": [route, ready]}]},
    }
    filters = [{"name": "http_connection_manager", "typed_config": manager}]
    return {"name": "stats", "address": parts.address(at.tcp), "filter_chains": [{"filters": filters}]}
