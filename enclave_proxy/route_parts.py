# SPDX-License-Identifier: Apache-2.0
"""One pushed listener, cluster or endpoint list as a small value, with its references still by name.

Each is judged alone here; `routes` joins them. Two shapes of listener exist: *inbound* (terminates TLS, its cluster is
the app) and *outbound* (plaintext from the app, its cluster originates TLS). A listener that would carry plaintext to a
plaintext cluster, or TLS to TLS, has no shape and is refused when joined.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from enclave_proxy.envoy_reader import DOWNSTREAM_TLS, TCP_PROXY, UPSTREAM_TLS, Reader, TlsRules
from enclave_proxy.errors import RoutesError
from enclave_proxy.relay_config import Address, TcpAddress
from sds.wire import envoy_pb2 as pb

_STATIC, _STRICT_DNS, _EDS = 0, 1, 3
_LB_POLICIES = (0, 1)  # round robin, least request: which of equal endpoints is taken restricts nobody
_USABLE_HEALTH = (0, 1)  # unknown, healthy
MAX_ENDPOINTS = 10_000


@dataclass(frozen=True, slots=True)
class Local:
    """What resolving an address needs to know of this worker. `refuse_plain_tcp`: loopback is visible to the host.
    `capture`: an app for which the manifest names no `Upstream` listens on the very port, not on a UNIX socket."""

    run_dir: Path
    refuse_plain_tcp: bool = False
    capture: bool = False


@dataclass(frozen=True, slots=True)
class ListenerPart:
    """`tls` None: takes plaintext from the app. `require_client_certificate` counts only with `tls`."""

    name: str
    address: Address
    cluster: str
    tls: TlsRules | None
    require_client_certificate: bool


@dataclass(frozen=True, slots=True)
class ClusterPart:
    """`endpoints` None: by EDS under `eds_name`. `tls` None: plaintext to the app."""

    name: str
    kind: Literal["static", "dns", "eds"]
    endpoints: tuple[Address, ...]
    eds_name: str
    tls: TlsRules | None
    sni: str


def parse_listener(name: str, body: bytes, local: Local) -> ListenerPart:
    """Raises RoutesError."""
    read = Reader(name)
    listener = read.message(pb.Listener, body)
    read.named(listener.name)
    address = read.address(listener.address, "address", local.run_dir)
    if len(listener.filter_chains) != 1:
        raise read.fail("filter_chains", f"has {len(listener.filter_chains)} entries, expected exactly one")
    chain = listener.filter_chains[0]
    cluster = _tcp_proxy_cluster(read, chain)
    if not chain.HasField("transport_socket"):
        _refuse_plain_tcp(read, address, "address", local)
        return ListenerPart(name, address, cluster, None, require_client_certificate=False)
    at = "filter_chains[0].transport_socket"
    tls = read.packed(pb.DownstreamTlsContext, chain.transport_socket.typed_config, DOWNSTREAM_TLS, at)
    rules = read.common_tls(tls.common_tls_context, f"{at}.common_tls_context")
    required = tls.require_client_certificate.value
    if required and rules.bundle is None:
        raise read.fail(f"{at}.require_client_certificate", "is set without a validation context: anybody would get in")
    if rules.matchers and not required:
        # Envoy lets a client without any certificate pass here, whatever names are listed.
        raise read.fail(f"{at}.require_client_certificate", "is not set although peers are listed by name")
    read.ip(address, "address")
    return ListenerPart(name, address, cluster, rules, required)


def _tcp_proxy_cluster(read: Reader, chain: pb.FilterChain) -> str:
    if len(chain.filters) != 1:
        raise read.fail("filter_chains[0].filters", f"has {len(chain.filters)} entries, expected one tcp_proxy")
    at = "filter_chains[0].filters[0]"
    proxy = read.packed(pb.TcpProxy, chain.filters[0].typed_config, TCP_PROXY, at)
    if proxy.idle_timeout.ToTimedelta():
        raise read.fail(f"{at}.idle_timeout", "is set; this worker ends no connection for being idle, expected 0")
    if not proxy.cluster:
        raise read.fail(f"{at}.cluster", "is empty")
    return proxy.cluster


def parse_cluster(name: str, body: bytes, local: Local) -> ClusterPart:
    """Raises RoutesError."""
    read = Reader(name)
    cluster = read.message(pb.Cluster, body)
    read.named(cluster.name)
    if cluster.lb_policy not in _LB_POLICIES:
        raise read.fail("lb_policy", f"is {cluster.lb_policy}, expected ROUND_ROBIN (0) or LEAST_REQUEST (1)")
    tls, sni = None, ""
    if cluster.HasField("transport_socket"):
        at = "transport_socket"
        context = read.packed(pb.UpstreamTlsContext, cluster.transport_socket.typed_config, UPSTREAM_TLS, at)
        tls, sni = read.common_tls(context.common_tls_context, f"{at}.common_tls_context"), context.sni
        if tls.bundle is None:
            raise read.fail(f"{at}.common_tls_context", "has no validation context: any server would be believed")
    if cluster.type == _EDS:
        read.config_source(cluster.eds_cluster_config.eds_config, "eds_cluster_config.eds_config")
        if cluster.HasField("load_assignment"):
            raise read.fail("load_assignment", "is set although endpoints come by EDS")
        return ClusterPart(name, "eds", (), cluster.eds_cluster_config.service_name or name, tls, sni)
    if cluster.type not in (_STATIC, _STRICT_DNS):
        raise read.fail("type", f"is {cluster.type}, expected STATIC (0), STRICT_DNS (1) or EDS (3)")
    endpoints = _endpoints(read, cluster.load_assignment, "load_assignment.endpoints", local)
    if len(endpoints) != 1:
        raise read.fail("load_assignment.endpoints", f"has {len(endpoints)} endpoints, expected exactly one")
    if tls is None:
        _refuse_plain_tcp(read, endpoints[0], "load_assignment.endpoints", local)
    elif cluster.type == _STATIC:
        read.ip(endpoints[0], "load_assignment.endpoints")
    return ClusterPart(name, "dns" if cluster.type == _STRICT_DNS else "static", endpoints, "", tls, sni)


def parse_endpoints(name: str, body: bytes, local: Local) -> tuple[TcpAddress, ...]:
    """The usable endpoints of a cluster; none is a legal answer (no instance is up). Raises RoutesError."""
    read = Reader(name)
    assignment = read.message(pb.ClusterLoadAssignment, body)
    read.named(assignment.cluster_name, "cluster_name")
    return tuple(read.ip(address, "endpoints") for address in _endpoints(read, assignment, "endpoints", local))


def _endpoints(read: Reader, assignment: pb.ClusterLoadAssignment, at: str, local: Local) -> tuple[Address, ...]:
    found = [endpoint for locality in assignment.endpoints for endpoint in locality.lb_endpoints]
    if len(found) > MAX_ENDPOINTS:
        raise read.fail(at, f"has {len(found)} endpoints, at most {MAX_ENDPOINTS} are accepted")
    _refuse_preferences(read, assignment, found, at)
    return tuple(
        read.address(entry.endpoint.address, f"{at}[{position}].endpoint.address", local.run_dir)
        for position, entry in enumerate(found)
        if entry.health_status in _USABLE_HEALTH
    )


def _refuse_preferences(
    read: Reader, assignment: pb.ClusterLoadAssignment, found: list[pb.LbEndpoint], at: str
) -> None:
    """All endpoints are alike to the balancer: weights and priorities that say otherwise cannot be kept."""
    for kind, weights in (
        ("lb_endpoints", {entry.load_balancing_weight.value or 1 for entry in found}),
        ("localities", {locality.load_balancing_weight.value or 1 for locality in assignment.endpoints}),
    ):
        if len(weights) > 1:
            raise read.fail(
                at, f"load_balancing_weight of {kind} is {sorted(weights)[:4]}; this worker weighs all alike"
            )
    if any(locality.priority for locality in assignment.endpoints):
        raise read.fail(at, "priority is set; this worker has no priorities, expected 0")


def _refuse_plain_tcp(read: Reader, address: Address, member: str, local: Local) -> None:
    if local.refuse_plain_tcp and isinstance(address, TcpAddress):
        problem: RoutesError = read.fail(
            member, "is TCP, and under SGX the host reads loopback: use a UNIX socket (Upstream/Listen `unix:`)"
        )
        raise problem
