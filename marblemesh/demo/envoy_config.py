# SPDX-License-Identifier: Apache-2.0
"""The two Envoys' bootstrap configurations, as plain dictionaries; nothing here reads or writes anything.

`inside`: the Envoy in web's Marble, in place of our relay. Its certificate and its trust come over the worker's SDS
socket; TLS ends here, and every plaintext hop is a UNIX socket. Its admin interface is one too: only the statistics
are shown over TCP.

`edge`: the Envoy outside. It holds no TLS context on the data path and so can only carry ciphertext. Clusters and
endpoints come from the Coordinator's xDS (ADS, incremental).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TYPES = "type.googleapis.com/"
TLS = "envoy.extensions.transport_sockets.tls.v3."
CONNECT_TIMEOUT = "5s"

# Envoy's JSON form of a message: an open dictionary, checked by Envoy itself (`--mode validate` in the unit tests).
Config = dict[str, object]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A TCP address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Upstream:
    """A Marble that the app in this Marble talks to: the app's socket, where that Marble is, and who must answer."""

    name: str
    listen: Path
    endpoint: Endpoint
    peer_prefix: str


@dataclass(frozen=True, slots=True)
class Inside:
    """What the Envoy inside a Marble needs to know. Prefixes are of SPIFFE IDs (`spiffe://td/marble/<type>/`)."""

    inbound: Endpoint
    app: Path
    allowed_prefixes: tuple[str, ...]
    upstreams: tuple[Upstream, ...]
    sds_socket: Path
    admin_socket: Path
    stats: Endpoint


@dataclass(frozen=True, slots=True)
class Edge:
    """What the Envoy at the edge needs to know. `certificate` and `key` are what the manifest's gateway entry names."""

    listen: Endpoint
    cluster: str
    xds: Endpoint
    xds_dns_name: str
    certificate: Path
    key: Path
    coordinator_root: Path
    admin: Endpoint


def inside_bootstrap(inside: Inside) -> Config:
    """Bootstrap of the Envoy inside a Marble."""
    inbound = _tcp_listener("inbound", _socket(inside.inbound), "app", _downstream_tls(inside.allowed_prefixes))
    outbound = [_tcp_listener(u.name, _pipe(u.listen), u.name) for u in inside.upstreams]
    clusters = [
        _cluster("sds", [_pipe(inside.sds_socket)], http2=True),
        _cluster("admin", [_pipe(inside.admin_socket)]),
        _cluster("app", [_pipe(inside.app)]),
        *(_cluster(u.name, [_socket(u.endpoint)], tls=_upstream_tls(u)) for u in inside.upstreams),
    ]
    return {
        "node": {"id": "envoy-inside", "cluster": "marblemesh-demo"},
        "admin": {"address": _pipe(inside.admin_socket)},
        "static_resources": {"listeners": [inbound, *outbound, _stats_listener(inside.stats)], "clusters": clusters},
    }


def edge_bootstrap(edge: Edge) -> Config:
    """Bootstrap of the Envoy at the edge."""
    xds_tls: Config = {
        "name": "tls",
        "typed_config": {
            "@type": f"{TYPES}{TLS}UpstreamTlsContext",
            "sni": edge.xds_dns_name,
            "common_tls_context": {
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
                "tls_certificates": [
                    {
                        "certificate_chain": {"filename": str(edge.certificate)},
                        "private_key": {"filename": str(edge.key)},
                    }
                ],
                "validation_context": {
                    "trusted_ca": {"filename": str(edge.coordinator_root)},
                    "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": edge.xds_dns_name}}],
                },
            },
        },
    }
    return {
        "node": {"id": "edge", "cluster": "marblemesh-demo"},
        "admin": {"address": _socket(edge.admin)},
        "static_resources": {
            "listeners": [_tcp_listener("edge", _socket(edge.listen), edge.cluster)],
            "clusters": [_cluster("xds", [_socket(edge.xds)], tls=xds_tls, http2=True)],
        },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
            },
            "cds_config": {"resource_api_version": "V3", "ads": {}},
        },
    }


def _socket(endpoint: Endpoint) -> Config:
    return {"socket_address": {"address": endpoint.host, "port_value": endpoint.port}}


def _pipe(path: Path) -> Config:
    # 0600: whoever may open the socket of an app is that app.
    return {"pipe": {"path": str(path), "mode": 0o600}}


def _tcp_listener(name: str, address: Config, cluster: str, tls: Config | None = None) -> Config:
    chain: Config = {
        "filters": [
            {
                "name": "tcp_proxy",
                "typed_config": {
                    "@type": f"{TYPES}envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                    "stat_prefix": name,
                    "cluster": cluster,
                },
            }
        ]
    }
    if tls:
        # A client that never finishes its handshake holds a socket: five seconds, as our own relay allows.
        chain |= {"transport_socket": tls, "transport_socket_connect_timeout": "5s"}
    return {"name": name, "address": address, "filter_chains": [chain]}


def _stats_listener(at: Endpoint) -> Config:
    route = {"match": {"path": "/stats/prometheus"}, "route": {"cluster": "admin"}}
    ready = {"match": {"path": "/ready"}, "route": {"cluster": "admin"}}
    router = f"{TYPES}envoy.extensions.filters.http.router.v3.Router"
    manager = {
        "@type": f"{TYPES}envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "stats",
        "http_filters": [{"name": "router", "typed_config": {"@type": router}}],
        "route_config": {"virtual_hosts": [{"name": "stats", "domains": ["*"], "routes": [route, ready]}]},
    }
    filters = [{"name": "http_connection_manager", "typed_config": manager}]
    return {"name": "stats", "address": _socket(at), "filter_chains": [{"filters": filters}]}


def _cluster(name: str, addresses: Sequence[Config], *, tls: Config | None = None, http2: bool = False) -> Config:
    cluster: Config = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": CONNECT_TIMEOUT,
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}} for address in addresses]}],
        },
    }
    if tls:
        cluster["transport_socket"] = tls
    if http2:
        options = {
            "@type": f"{TYPES}envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
        cluster["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
        }
    return cluster


def _downstream_tls(allowed: Sequence[str]) -> Config:
    context = {
        "@type": f"{TYPES}{TLS}DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": _marble_tls(allowed),
    }
    return {"name": "tls", "typed_config": context}


def _upstream_tls(upstream: Upstream) -> Config:
    context = {
        "@type": f"{TYPES}{TLS}UpstreamTlsContext",
        "sni": upstream.name,
        "common_tls_context": _marble_tls([upstream.peer_prefix]),
    }
    return {"name": "tls", "typed_config": context}


def _marble_tls(peer_prefixes: Sequence[str]) -> Config:
    """Our certificate, and who may be at the other end: one of the mesh whose SPIFFE ID has one of the prefixes."""
    peers = [{"san_type": "URI", "matcher": {"prefix": prefix}} for prefix in peer_prefixes]
    return {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificate_sds_secret_configs": [_sds("default")],
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": peers},
            "validation_context_sds_secret_config": _sds("ROOTCA"),
        },
    }


def _sds(secret: str) -> Config:
    source = {
        "api_type": "DELTA_GRPC",
        "transport_api_version": "V3",
        "set_node_on_first_message_only": True,
        "grpc_services": [{"envoy_grpc": {"cluster_name": "sds"}}],
    }
    return {"name": secret, "sds_config": {"resource_api_version": "V3", "api_config_source": source}}
