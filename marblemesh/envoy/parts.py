# SPDX-License-Identifier: Apache-2.0
"""The messages of an Envoy bootstrap that the mesh's Envoys share, as plain dictionaries (protobuf's JSON mapping)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sds.identity import any_marble_prefix, encode_segment, type_prefix

TYPES = "type.googleapis.com/"
TLS = f"{TYPES}envoy.extensions.transport_sockets.tls.v3."
# Names of the clusters that bring configuration rather than carry traffic.
SDS_CLUSTER, XDS_CLUSTER = "marblemesh-sds", "marblemesh-xds"
CONNECT_TIMEOUT = "5s"
# A client that never finishes its handshake holds a socket for this long, as at our own relay.
HANDSHAKE_TIMEOUT = "10s"

# Envoy's JSON form of a message: an open dictionary, checked by Envoy itself (`--mode validate` in the tests).
Config = dict[str, object]


class Address:
    """Where somebody listens: `Tcp` or `Unix`."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Tcp(Address):
    """A TCP address; `host` is an IP address without brackets, or a DNS name where Envoy dials."""

    host: str
    port: int

    @property
    def is_ip(self) -> bool:
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Unix(Address):
    """A UNIX socket. A relative path is taken from Envoy's working directory."""

    path: str


@dataclass(frozen=True, slots=True)
class Peers:
    """Who may be at the other end: Marbles of these types, of any type if there are none.

    `trust_domain` narrows it to one mesh. It may be left out where the trust bundle holds the roots of one mesh only,
    as `ROOTCA` does: a Coordinator certifies no other trust domain than its own.
    """

    types: tuple[str, ...] = ()
    trust_domain: str | None = None

    def matchers(self) -> list[Config]:
        """As `match_typed_subject_alt_names`."""
        if self.trust_domain is None:
            return [{"san_type": "URI", "matcher": {"safe_regex": {"regex": regex}}} for regex in self._regexes()]
        prefixes = [type_prefix(self.trust_domain, name) for name in self.types]
        return [
            {"san_type": "URI", "matcher": {"prefix": prefix}}
            for prefix in prefixes or [any_marble_prefix(self.trust_domain)]
        ]

    def _regexes(self) -> list[str]:
        # RE2, matched in full.
        names = [re.escape(encode_segment(name)) for name in self.types] or ["[^/]+"]
        return [f"spiffe://[^/]+/marble/{name}/[^/]+" for name in names]


def marble_cluster(marble_type: str, port: int) -> str:
    """What the Coordinator calls the cluster of a Marble type's port."""
    return f"outbound|{marble_type}|{port}"


def address(where: Address) -> Config:
    """`Address`."""
    if isinstance(where, Tcp):
        return {"socket_address": {"address": where.host, "port_value": where.port}}
    # 0600: whoever may open the socket of an app is that app.
    return {"pipe": {**_pipe(where), "mode": 0o600}}


def tcp_listener(name: str, where: Address, chains: Sequence[Config], *, peeks_at_sni: bool = False) -> Config:
    """A listener; `peeks_at_sni`: its filter chains are chosen by the name in the ClientHello."""
    listener: Config = {"name": name, "address": address(where), "filter_chains": list(chains)}
    if peeks_at_sni:
        inspector = {"@type": f"{TYPES}envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"}
        listener["listener_filters"] = [{"name": "tls_inspector", "typed_config": inspector}]
        listener["listener_filters_timeout"] = HANDSHAKE_TIMEOUT
    return listener


def chain(cluster: str, *, tls: Config | None = None, server_names: Sequence[str] = ()) -> Config:
    """A filter chain that carries bytes to a cluster, after ending TLS if there is a context."""
    proxy: Config = {
        "@type": f"{TYPES}envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": cluster,
        "cluster": cluster,
        "idle_timeout": "0s",  # Envoy's default ends a quiet connection after an hour; that is the app's business
    }
    made: Config = {"filters": [{"name": "tcp_proxy", "typed_config": proxy}]}
    if server_names:
        made["filter_chain_match"] = {"server_names": list(server_names)}
    if tls:
        made |= {"transport_socket": tls, "transport_socket_connect_timeout": HANDSHAKE_TIMEOUT}
    return made


def cluster(name: str, where: Address, *, tls: Config | None = None, http2: bool = False) -> Config:
    """A cluster of one address; a DNS name is asked for again every five seconds."""
    by_name = isinstance(where, Tcp) and not where.is_ip
    made: Config = {
        "name": name,
        "type": "STRICT_DNS" if by_name else "STATIC",
        "connect_timeout": CONNECT_TIMEOUT,
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _dialled(where)}}]}],
        },
    }
    if by_name:
        made["dns_lookup_family"] = "ALL"  # IPv6 first, and IPv4 where nobody answers there (RFC 8305)
    if tls:
        made["transport_socket"] = tls
    if http2:
        options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
        keepalive = {"connection_keepalive": {"interval": "30s", "timeout": "10s"}}  # a lost peer is noticed
        http = {"@type": f"{TYPES}{options}", "explicit_http_config": {"http2_protocol_options": keepalive}}
        made["typed_extension_protocol_options"] = {options: http}
    return made


def downstream_tls(peers: Peers) -> Config:
    """A port of the mesh: our certificate, and a client that has to have one."""
    context: Config = {
        "@type": f"{TLS}DownstreamTlsContext",
        "require_client_certificate": True,
        # A resumed session skips the certificate: an identity could be of use after its end.
        "disable_stateless_session_resumption": True,
        "disable_stateful_session_resumption": True,
        "common_tls_context": _attested(peers.matchers()),
    }
    return {"name": "tls", "typed_config": context}


def upstream_tls(peers: Peers, sni: str | None) -> Config:
    """Towards a port of the mesh."""
    context: Config = {
        "@type": f"{TLS}UpstreamTlsContext",
        "max_session_keys": 0,  # no resumption, as above
        "common_tls_context": _attested(peers.matchers()),
    }
    if sni:
        context["sni"] = sni
    return {"name": "tls", "typed_config": context}


def coordinator_tls(dns_name: str, *, files: tuple[str, str, str] | None = None) -> Config:
    """Towards the Coordinator's xDS port: with the Marble's identity by SDS, or with files (certificate, key, root)."""
    matchers: list[Config] = [{"san_type": "DNS", "matcher": {"exact": dns_name}}]
    if files is None:
        common = _attested(matchers)
    else:
        certificate, key, root = files
        common = {
            "tls_params": _versions(),
            "tls_certificates": [{"certificate_chain": {"filename": certificate}, "private_key": {"filename": key}}],
            "validation_context": {"trusted_ca": {"filename": root}, "match_typed_subject_alt_names": matchers},
        }
    context = {"@type": f"{TLS}UpstreamTlsContext", "sni": dns_name, "common_tls_context": common}
    return {"name": "tls", "typed_config": context}


def incremental(cluster_name: str) -> Config:
    """An incremental gRPC stream to a cluster; the 60 kB of Envoy's extension list go out once, not with every ACK."""
    return {
        "api_type": "DELTA_GRPC",
        "transport_api_version": "V3",
        "set_node_on_first_message_only": True,
        "grpc_services": [{"envoy_grpc": {"cluster_name": cluster_name}}],
    }


def _attested(matchers: Sequence[Config]) -> Config:
    return {
        "tls_params": _versions(),
        "tls_certificate_sds_secret_configs": [_secret("default")],
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": list(matchers)},
            "validation_context_sds_secret_config": _secret("ROOTCA"),
        },
    }


def _secret(name: str) -> Config:
    source = {"resource_api_version": "V3", "api_config_source": incremental(SDS_CLUSTER)}
    return {"name": name, "sds_config": source}


def _versions() -> Config:
    # Both ends are ours or an Envoy: 1.3 only. Envoy's client would otherwise offer 1.2 at most.
    return {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"}


def _dialled(where: Address) -> Config:
    return address(where) if isinstance(where, Tcp) else {"pipe": _pipe(where)}


def _pipe(where: Address) -> Config:
    assert isinstance(where, Unix)
    return {"path": where.path}
