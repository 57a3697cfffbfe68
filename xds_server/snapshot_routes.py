# SPDX-License-Identifier: Apache-2.0
"""A Marble type's listeners and clusters as Envoy messages. Pure: manifest entry in, message out.

Names: `inbound|<port>` and `app|<port>` towards the app, `outbound|<addr>|<port>` (listener and cluster) towards a
peer. Pipe paths are relative where the manifest gives none: the worker, or an Envoy with that working directory,
resolves them in its run directory.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from google.protobuf.duration_pb2 import Duration

from manifests import address as manifest_address
from manifests.address import parse_port
from manifests.model import Incoming, Manifest, Outgoing
from sds.wire import envoy_pb2
from xds_server.served_certificates import unfit
from xds_server.snapshot_tls import SnapshotError, ads, downstream, is_reserved_secret, pack, upstream

ANYWHERE = "0.0.0.0"
TCP_PROXY = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"

_STATIC, _STRICT_DNS, _EDS = 0, 1, 3
_INBOUND, _OUTBOUND = 1, 2
_CONNECT = Duration(seconds=5)
# A peer that opens TCP and never finishes its handshake holds a connection for this long.
_HANDSHAKE = Duration(seconds=10)
_SOCKET_MODE = 0o600
_LABEL = re.compile(r"[a-zA-Z0-9_](?:[a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?")


@dataclass(frozen=True, slots=True)
class Place:
    """Which mesh it is. `types` marks its set of Marble types: another mark is another filter chain to an Envoy, which
    then ends what it has admitted by the old one, after its drain time."""

    manifest: Manifest
    trust_domain: str
    types: str = ""


def incoming_of(manifest: Manifest, marble_type: str) -> tuple[Incoming, ...]:
    """All ports of a type. Raises SnapshotError for a port that stands twice, or presents what is no certificate."""
    found: dict[str, Incoming] = {}
    for tag in manifest.marbles[marble_type].tls:
        for entry in manifest.tls[tag].incoming:
            if entry.cert and (problem := _cannot_present(entry.cert, manifest)):
                raise SnapshotError(f"TLS.{tag}.Incoming.{entry.port}: {problem}")
            if found.setdefault(entry.port, entry) != entry:
                raise SnapshotError(f"Marbles.{marble_type}: port {entry.port} stands in two tags with different rules")
    return tuple(found.values())


def _cannot_present(secret: str, manifest: Manifest) -> str | None:
    if is_reserved_secret(secret):
        return (
            f"secret {secret!r} has a name that stands for the Marble's own identity or trust: call it something else"
        )
    return unfit(manifest.secrets[secret])


def outgoing_of(manifest: Manifest, marble_type: str) -> tuple[Outgoing, ...]:
    """All peers of a type. Raises SnapshotError for a peer that stands twice with different rules."""
    found: dict[tuple[str, str], Outgoing] = {}
    for tag in manifest.marbles[marble_type].tls:
        for entry in manifest.tls[tag].outgoing:
            if found.setdefault((entry.addr, entry.port), entry) != entry:
                raise SnapshotError(
                    f"Marbles.{marble_type}: {entry.addr}:{entry.port} stands in two tags with different rules"
                )
    return tuple(found.values())


@lru_cache(maxsize=4096)
def bind_address(advertised: str | None) -> str:
    """Where an instance's ports listen. On one machine several Marbles share a port by advertising different loopback
    addresses; elsewhere all interfaces, since the address that others use may not be one of this host's own (NAT, load
    balancers)."""
    if advertised is None:
        return ANYWHERE
    ip = ipaddress.ip_address(advertised)
    if ip.is_loopback:
        return advertised
    return "::" if ip.version == 6 else ANYWHERE


def outbound_name(addr: str, port: str) -> str:
    """Name of the listener, the cluster and the endpoints of a peer."""
    return f"outbound|{addr}|{port}"


def inbound_listener(incoming: Incoming, place: Place, bind: str) -> envoy_pb2.Listener:
    """Accepts from the mesh: TLS ends here, the app gets plaintext."""
    name = f"inbound|{incoming.port}"
    chain = _proxy_to(name, f"app|{incoming.port}")
    chain.transport_socket.CopyFrom(downstream(incoming, place.manifest, place.trust_domain))
    if names_nobody(incoming):
        chain.name = place.types
    chain.transport_socket_connect_timeout.CopyFrom(_HANDSHAKE)
    return envoy_pb2.Listener(
        name=name,
        address=_tcp(bind, parse_port(incoming.port)),
        filter_chains=[chain],
        traffic_direction=_INBOUND,
        stat_prefix=name,
    )


def names_nobody(incoming: Incoming) -> bool:
    """Whether any Marble may connect, so that no rule changes with the Marble types."""
    return incoming.peers is None and not incoming.cert


def app_cluster(incoming: Incoming) -> envoy_pb2.Cluster:
    """The app behind a port."""
    name = f"app|{incoming.port}"
    where = _meeting_point(incoming.upstream, f"{incoming.port}.sock")
    return _static(name, _STATIC, where)


def outbound_listener(outgoing: Outgoing) -> envoy_pb2.Listener:
    """Accepts plaintext from the app."""
    name = outbound_name(outgoing.addr, outgoing.port)
    address = _meeting_point(outgoing.listen, f"{outgoing.addr}-{outgoing.port}.sock")
    if address.HasField("pipe"):
        address.pipe.mode = _SOCKET_MODE
    return envoy_pb2.Listener(
        name=name,
        address=address,
        filter_chains=[_proxy_to(name, name)],
        traffic_direction=_OUTBOUND,
        stat_prefix=name,
    )


def outbound_cluster(outgoing: Outgoing, place: Place) -> envoy_pb2.Cluster:
    """Originates mutual TLS: to activated instances if a Marble type is addressed, else to a host."""
    name = outbound_name(outgoing.addr, outgoing.port)
    if outgoing.addr in place.manifest.marbles:
        cluster = eds_cluster(name)
        sni = outgoing.addr if _is_dns_name(outgoing.addr) else ""
    else:
        is_ip = _is_ip(outgoing.addr)
        cluster = _static(
            name, _STATIC if is_ip else _STRICT_DNS, _tcp(outgoing.addr.strip("[]"), parse_port(outgoing.port))
        )
        sni = "" if is_ip else outgoing.addr  # RFC 6066, section 3: no addresses in SNI
    cluster.transport_socket.CopyFrom(upstream(outgoing, place.manifest, place.trust_domain, sni))
    return cluster


def eds_cluster(name: str) -> envoy_pb2.Cluster:
    """A cluster whose endpoints come by EDS under its own name; what a gateway gets, since it carries ciphertext."""
    return envoy_pb2.Cluster(
        name=name,
        type=_EDS,
        eds_cluster_config=envoy_pb2.EdsClusterConfig(eds_config=ads(), service_name=name),
        connect_timeout=_CONNECT,
    )


def endpoints(name: str, members: Iterable[tuple[str, int, int]]) -> envoy_pb2.ClusterLoadAssignment:
    """The instances behind a cluster: (IP address, port, health status)."""
    entries = [
        envoy_pb2.LbEndpoint(endpoint=envoy_pb2.Endpoint(address=_tcp(host, port)), health_status=health)
        for host, port, health in members
    ]
    # One locality even if it is empty: no instance is a fact, not an absent resource.
    return envoy_pb2.ClusterLoadAssignment(
        cluster_name=name, endpoints=[envoy_pb2.LocalityLbEndpoints(lb_endpoints=entries)]
    )


def _static(name: str, kind: int, where: envoy_pb2.Address) -> envoy_pb2.Cluster:
    one = envoy_pb2.LbEndpoint(endpoint=envoy_pb2.Endpoint(address=where))
    return envoy_pb2.Cluster(
        name=name,
        type=kind,
        connect_timeout=_CONNECT,
        load_assignment=envoy_pb2.ClusterLoadAssignment(
            cluster_name=name, endpoints=[envoy_pb2.LocalityLbEndpoints(lb_endpoints=[one])]
        ),
    )


def _proxy_to(stat_prefix: str, cluster: str) -> envoy_pb2.FilterChain:
    # No idle timeout: Envoy's default ends a quiet connection after an hour, which is the app's business.
    proxy = envoy_pb2.TcpProxy(stat_prefix=stat_prefix, cluster=cluster, idle_timeout=Duration())
    tcp_proxy = envoy_pb2.Filter(name="envoy.filters.network.tcp_proxy", typed_config=pack(TCP_PROXY, proxy))
    return envoy_pb2.FilterChain(filters=[tcp_proxy])


def _meeting_point(address: manifest_address.Address | None, default: str) -> envoy_pb2.Address:
    match address:
        case manifest_address.TcpAddress(host, port):
            return _tcp(host, port)
        case manifest_address.UnixAddress(path):
            return envoy_pb2.Address(pipe=envoy_pb2.Pipe(path=path))
        case _:
            if "/" in default:
                raise SnapshotError(f"{default!r} is no file name: give the entry an explicit Listen or Upstream")
            return envoy_pb2.Address(pipe=envoy_pb2.Pipe(path=default))


def _tcp(host: str, port: int) -> envoy_pb2.Address:
    return envoy_pb2.Address(socket_address=envoy_pb2.SocketAddress(address=host, port_value=port))


def _is_dns_name(name: str) -> bool:
    return len(name) <= 253 and all(_LABEL.fullmatch(label) for label in name.split("."))


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
