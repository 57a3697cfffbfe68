# SPDX-License-Identifier: Apache-2.0
"""The pushed resources as one `RelayConfig`: a pure function, and the values that it needs kept between pushes.

    Pushed --with_...--> Pushed --build--> RelayConfig        RoutesError: the push says what cannot be done
                                                              MissingReference: it names what has not come (yet)

`Pushed` is immutable: a push is tried on a copy, and a refused copy is simply dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self, TypeVar

from enclave_proxy.errors import MissingReference, RoutesError
from enclave_proxy.relay_config import (
    Address,
    DnsTarget,
    Inbound,
    Outbound,
    PeerRule,
    RelayConfig,
    TcpAddress,
    UnixAddress,
)
from enclave_proxy.route_parts import ClusterPart, ListenerPart, Local, parse_cluster, parse_endpoints, parse_listener
from sds.material import Identity, TrustBundle
from sds.resources import BUNDLE_NAME, CLUSTER, ENDPOINT, IDENTITY_NAME, LISTENER

P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class Pushed:
    """Everything accepted so far, parsed, by resource name. Secrets come from SDS, or at first from the activation."""

    local: Local
    listeners: Mapping[str, ListenerPart] = field(default_factory=dict)
    clusters: Mapping[str, ClusterPart] = field(default_factory=dict)
    endpoints: Mapping[str, tuple[TcpAddress, ...]] = field(default_factory=dict)
    secrets: Mapping[str, Identity | TrustBundle] = field(default_factory=dict)

    def with_resources(self, type_url: str, updated: Mapping[str, bytes], removed: Iterable[str]) -> Self:
        """A copy with listeners, clusters or endpoints changed. Raises RoutesError if one cannot be enforced."""
        match type_url:
            case _ if type_url == LISTENER:
                parts = {name: parse_listener(name, body, self.local) for name, body in updated.items()}
                return replace(self, listeners=_changed(self.listeners, parts, removed))
            case _ if type_url == CLUSTER:
                clusters = {name: parse_cluster(name, body, self.local) for name, body in updated.items()}
                return replace(self, clusters=_changed(self.clusters, clusters, removed))
            case _ if type_url == ENDPOINT:
                endpoints = {name: parse_endpoints(name, body, self.local) for name, body in updated.items()}
                return replace(self, endpoints=_changed(self.endpoints, endpoints, removed))
        raise RoutesError(type_url, "", "resources of this type are not used here")

    def with_secrets(self, updated: Mapping[str, Identity | TrustBundle]) -> Self:
        """A copy with secrets changed. Secrets are never removed: the last good identity stays in use until a new one
        comes, as in Envoy; revoking one is done by taking its root out of everybody's bundle."""
        return replace(self, secrets={**self.secrets, **updated})

    def wanted_endpoints(self) -> frozenset[str]:
        """Names to subscribe to at EDS."""
        return frozenset(cluster.eds_name for cluster in self.clusters.values() if cluster.kind == "eds")

    def wanted_secrets(self) -> frozenset[str]:
        """Names to subscribe to at SDS: our own identity and bundle always, and whatever else is referred to."""
        both = [*(part.tls for part in self.listeners.values()), *(part.tls for part in self.clusters.values())]
        rules = [rule for rule in both if rule is not None]
        named = {name for rule in rules for name in (rule.identity, rule.bundle) if name is not None}
        return frozenset({IDENTITY_NAME, BUNDLE_NAME} | named)


def _changed(old: Mapping[str, P], updated: Mapping[str, P], removed: Iterable[str]) -> dict[str, P]:
    gone = set(removed)
    return {name: part for name, part in old.items() if name not in gone} | dict(updated)


def build(pushed: Pushed) -> RelayConfig:
    """Join listeners with their clusters, endpoints and secrets. Raises RoutesError, or MissingReference."""
    inbound, outbound = [], []
    taken: dict[Address, str] = {}
    for listener in sorted(pushed.listeners.values(), key=lambda part: part.name):
        if (other := taken.setdefault(listener.address, listener.name)) != listener.name:
            raise RoutesError(listener.name, "address", f"{_show(listener.address)} is already that of {other!r}")
        cluster = pushed.clusters.get(listener.cluster)
        if cluster is None:
            raise MissingReference(listener.name, "tcp_proxy.cluster", f"there is no cluster {listener.cluster!r}")
        if listener.tls is not None:
            inbound.append(_inbound(pushed, listener, cluster))
        else:
            outbound.append(_outbound(pushed, listener, cluster))
    return RelayConfig(tuple(inbound), tuple(outbound))


def _inbound(pushed: Pushed, listener: ListenerPart, cluster: ClusterPart) -> Inbound:
    if listener.tls is None or not isinstance(listener.address, TcpAddress):
        raise RoutesError(listener.name, "address", "an inbound listener needs TLS on a TCP port")
    if cluster.tls is not None or cluster.kind != "static":
        raise RoutesError(
            listener.name, "tcp_proxy.cluster", f"cluster {cluster.name!r} is not a plain STATIC one: not the app"
        )
    rules = listener.tls
    return Inbound(
        name=listener.name,
        bind=listener.address,
        upstream=upstream_of(pushed.local, listener.address.port, cluster.endpoints[0]),
        identity=_identity(pushed, listener.name, rules.identity),
        bundle=None if rules.bundle is None else _bundle(pushed, listener.name, rules.bundle),
        require_client_certificate=listener.require_client_certificate,
        peers=PeerRule(rules.matchers),
        tls=rules.options,
    )


def upstream_of(local: Local, port: int, told: Address) -> Address:
    """Where the app listens for a port: where the push says, or on the port itself, if that is captured and the push
    only gives the default."""
    default = UnixAddress(str(local.run_dir / f"{port}.sock"))
    return TcpAddress("127.0.0.1", port) if local.capture and told == default else told


def _outbound(pushed: Pushed, listener: ListenerPart, cluster: ClusterPart) -> Outbound:
    rules = cluster.tls
    if rules is None or rules.bundle is None:
        raise RoutesError(
            listener.name,
            "tcp_proxy.cluster",
            f"cluster {cluster.name!r} has no TLS: the app's bytes would go out in clear",
        )
    return Outbound(
        name=listener.name,
        listen=listener.address,
        endpoints=_targets(pushed, cluster),
        identity=_identity(pushed, cluster.name, rules.identity),
        bundle=_bundle(pushed, cluster.name, rules.bundle),
        peer=PeerRule(rules.matchers),
        sni=cluster.sni,
        tls=rules.options,
    )


def _targets(pushed: Pushed, cluster: ClusterPart) -> tuple[TcpAddress, ...] | DnsTarget:
    if cluster.kind == "eds":
        # Not there yet is the same as nobody there: the relay lets the app wait a moment. So the app's sockets, and
        # the inbound side, need not wait for peers that may come later or never.
        return pushed.endpoints.get(cluster.eds_name, ())
    target = cluster.endpoints[0]
    if isinstance(target, UnixAddress):
        raise RoutesError(cluster.name, "load_assignment", "is a UNIX socket, expected an address of the network")
    return DnsTarget(target.host, target.port) if cluster.kind == "dns" else (target,)


def _identity(pushed: Pushed, resource: str, name: str) -> Identity:
    match pushed.secrets.get(name):
        case Identity() as identity:
            return identity
        case None:
            raise MissingReference(resource, "tls_certificate_sds_secret_configs", f"no secret {name!r} yet")
    raise RoutesError(resource, "tls_certificate_sds_secret_configs", f"secret {name!r} is not a certificate with key")


def _bundle(pushed: Pushed, resource: str, name: str) -> TrustBundle:
    match pushed.secrets.get(name):
        case TrustBundle() as bundle:
            return bundle
        case None:
            raise MissingReference(resource, "validation_context_sds_secret_config", f"no secret {name!r} yet")
    raise RoutesError(resource, "validation_context_sds_secret_config", f"secret {name!r} is not a trust bundle")


def _show(address: Address) -> str:
    return address.path if isinstance(address, UnixAddress) else f"{address.host}:{address.port}"
