# SPDX-License-Identifier: Apache-2.0
"""Manifest and CA turned into resources: built once, serialised once, shared by every client that may see them.

    Snapshot(manifest, ca)                 refused here if the manifest cannot be served (`snapshot_check`)
      .marble_routes(type, bind)   listeners and clusters of a type   shared by all with the same tags and bind address
      .gateway_routes()            clusters of every port             shared by all gateways
      .endpoints(names, members)   who is behind a cluster            shared by all that talk to the type
      .trusted(type)               whom its instances believe, and whom no more: see `mesh_secrets` for the rest
      .trust(bundle, revoked)      while roots change, and when somebody is turned out
      .succeed(other), .settle()   while types go
      .resemble(other)             what is the same in two manifests is the same object

Resources are made when the first client asks for them, one for each entry of the manifest: 10 000 types with one tag
have one listener. Caches are by content: an activation or a renewal rebuilds what concerns that one Marble, and the
mapping of everything else stays the same object, so that streams skip it by identity. `serialised` counts, for tests
and curiosity.

A gateway sees every port of every Marble type, whatever `Peers` says: `Peers` names who may be the *other end of TLS*,
and a gateway carries ciphertext between two ends without being one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

from google.protobuf.message import Message

from manifests.address import parse_port
from manifests.model import Incoming, Manifest, Outgoing
from sds.ca import CertificateAuthority, pem_of
from sds.material import Identity, TrustBundle
from sds.resources import (
    BUNDLE_NAME,
    CLUSTER,
    ENDPOINT,
    LISTENER,
    OFFLINE_NAME,
    REVOKED_NAME,
    TYPES_NAME,
    Resource,
    bundle_secret,
    make_resource,
    offline_secret,
    revoked_secret,
    types_secret,
)
from sds.wire.envoy_pb2 import Cluster, Listener
from xds_server import snapshot_routes as routes
from xds_server.served_certificates import served_names
from xds_server.snapshot_check import check
from xds_server.snapshot_tls import bundle_name

Resources = Mapping[str, Resource]
Identities = Mapping[str, Identity]
Member = tuple[str, int]  # IP address, health status
# Who is behind a Marble type right now, sorted.
Members = Callable[[str], Sequence[Member]]
Tags = tuple[str, ...]

NOTHING: Identities = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class EndpointKey:
    """A cluster whose members are the instances of a Marble type."""

    name: str
    marble_type: str
    port: int


@dataclass(frozen=True, slots=True)
class Routes:
    """What does not depend on the instance: listeners, clusters, and which endpoints go with them."""

    listeners: Resources
    clusters: Resources
    endpoints: tuple[EndpointKey, ...]


class Snapshot:
    """All resources of one manifest under one CA. Raises SnapshotError if the manifest cannot be served.

    Made of 10 000 types in 0.1 s, and of what a hostile manifest may hold in 2 s: not on the event loop.
    """

    def __init__(self, manifest: Manifest, ca: CertificateAuthority) -> None:
        check(manifest, ca.trust_domain)
        self.serialised = 0
        self._manifest = manifest
        self._types = types_secret(ca.trust_domain, manifest.marbles)
        offline = manifest.mesh.offline_start
        self._offline = {} if offline is None else {OFFLINE_NAME: offline_secret(offline)}
        self._place = routes.Place(manifest, ca.trust_domain, f"types {self._types.version}")
        self._bundle = ca.bundle
        self._revoked = revoked_secret(())
        # By the identity of the manifest's entry, which lives as long as the manifest: equal ones are rare, and to
        # compare two of them may mean to compare thousands of names.
        self._inbound: dict[tuple[int, str], Resource] = {}
        self._others: dict[tuple[str, int], Resource] = {}
        self._port_bundles: dict[int, Resource] = {}
        self._routes: dict[tuple[Tags, str], Routes] = {}
        self._endpoints: dict[EndpointKey, tuple[tuple[Member, ...], Resource]] = {}
        self._endpoint_maps: dict[tuple[EndpointKey, ...], Resources] = {}
        self._latest: dict[int, tuple[tuple[EndpointKey, ...], int, Resources]] = {}  # by the identity of the keys
        self._before: dict[tuple[Tags, str], Routes] = {}
        self._endpoints_before: dict[tuple[EndpointKey, ...], Resources] = {}
        self._trusted_by_all: Resources | None = None
        self._shared_secrets: dict[Tags, Resources] = {}
        self._presented: dict[Tags, frozenset[str]] = {}
        self._gateway_routes = self._build_gateway_routes() if manifest.mesh.gateways else _NO_ROUTES
        # By tag, which bounds it by the size of the manifest: 10 000 types may have one tag and all call each other.
        self._calling: dict[str, list[str]] = {}
        self._having: dict[str, list[str]] = {}
        self._find_callers(manifest)

    # ---- what a type has in common

    def marble_routes(self, marble_type: str, bind: str) -> Routes:
        """Listeners and clusters of a type whose inbound listeners bind to the address `bind`."""
        key = (self._manifest.marbles[marble_type].tls, bind)
        if key not in self._routes:
            self._routes[key] = self._build_routes(marble_type, bind)
        return self._routes[key]

    def _build_routes(self, marble_type: str, bind: str) -> Routes:
        incoming = routes.incoming_of(self._manifest, marble_type)
        outgoing = routes.outgoing_of(self._manifest, marble_type)
        listeners = [self._inbound_listener(entry, bind) for entry in incoming]
        clusters = [self._once(CLUSTER, entry, partial(routes.app_cluster, entry)) for entry in incoming]
        for peer in outgoing:
            listeners.append(self._once(LISTENER, peer, partial(routes.outbound_listener, peer)))
            clusters.append(self._once(CLUSTER, peer, partial(routes.outbound_cluster, peer, self._place)))
        keys = tuple(_endpoint_key(peer) for peer in outgoing if peer.addr in self._manifest.marbles)
        before = self._before.get((self._manifest.marbles[marble_type].tls, bind), _NO_ROUTES)
        return Routes(_same(_by_name(listeners), before.listeners), _same(_by_name(clusters), before.clusters), keys)

    def callers(self, marble_type: str) -> frozenset[str]:
        """The types whose instances connect to instances of this one."""
        tags = self._calling.get(marble_type, ())
        return frozenset[str]().union(*(self._having.get(tag, ()) for tag in tags))

    def _find_callers(self, manifest: Manifest) -> None:
        for tag, entries in manifest.tls.items():
            for called in {peer.addr for peer in entries.outgoing} & manifest.marbles.keys():
                self._calling.setdefault(called, []).append(tag)
        for name, marble in manifest.marbles.items():
            for tag in marble.tls:
                self._having.setdefault(tag, []).append(name)

    def gateway_routes(self) -> Routes:
        """Clusters of every port of every Marble type, without TLS and without listeners."""
        return self._gateway_routes

    def _build_gateway_routes(self) -> Routes:
        keys = [
            EndpointKey(routes.outbound_name(marble_type, entry.port), marble_type, parse_port(entry.port))
            for marble_type in self._manifest.marbles
            for entry in routes.incoming_of(self._manifest, marble_type)
        ]
        clusters = [self._make(CLUSTER, key.name, routes.eds_cluster(key.name)) for key in keys]
        return Routes(MappingProxyType({}), _by_name(clusters), tuple(keys))

    def resemble(self, other: Snapshot | None) -> None:
        """Of what has the same content as in another one make the other's objects, so that streams skip it: a manifest
        update is no news to those whose part of it is as it was."""
        if other is not None:
            self._before, self._endpoints_before = other._routes, other._endpoint_maps

    def succeed(self, other: Snapshot | None) -> None:
        """Take another one's place while its roots are still trusted: an Envoy is not to drain anything yet, since
        what a type that is gone opens meanwhile would stay. None: it was another Coordinator's, and is not known."""
        self._mark("types of another time" if other is None else other._place.types)

    def settle(self) -> bool:
        """Nobody has a certificate of a type that is gone: drain what such a one opened. Whether anything changed."""
        return self._mark(f"types {self._types.version}")

    def _mark(self, types: str) -> bool:
        if types == self._place.types:
            return False
        self._place = replace(self._place, types=types)
        unnamed = {
            id(entry) for tag in self._manifest.tls.values() for entry in tag.incoming if routes.names_nobody(entry)
        }
        self._inbound = {key: resource for key, resource in self._inbound.items() if key[0] not in unnamed}
        self._before, self._routes = self._routes, {}
        self._latest.clear()
        return True

    # ---- what changes with the instances

    def endpoints(self, keys: tuple[EndpointKey, ...], members: Members, moment: int = -1) -> Resources:
        """The endpoint lists of some clusters. The same object as before if nothing in it has changed; nothing has as
        long as `moment` is the same and not negative."""
        latest = self._latest.get(id(keys))
        if latest is not None and latest[0] is keys and latest[1] == moment >= 0:
            return latest[2]
        current = {key.name: self._endpoint_list(key, tuple(members(key.marble_type))) for key in keys}
        known = self._endpoint_maps.get(keys)
        if known is None or any(known[name] is not resource for name, resource in current.items()):
            before = known or self._endpoints_before.pop(keys, _NOTHING)
            known = self._endpoint_maps[keys] = _same(MappingProxyType(current), before)
        self._latest[id(keys)] = keys, moment, known
        return known

    def _endpoint_list(self, key: EndpointKey, members: tuple[Member, ...]) -> Resource:
        known = self._endpoints.get(key)
        if known is None or (known[0] is not members and known[0] != members):
            message = routes.endpoints(key.name, ((host, key.port, health) for host, health in members))
            known = self._endpoints[key] = (members, self._make(ENDPOINT, key.name, message))
        return known[1]

    # ---- whom instances believe, and what their ports present

    def presented(self, marble_type: str) -> frozenset[str]:
        """The certificate secrets that ports of a type present, by their names in the manifest."""
        tags = self._manifest.marbles[marble_type].tls
        if tags not in self._presented:
            self._presented[tags] = served_names(self._manifest, marble_type)
        return self._presented[tags]

    def trust(self, bundle: TrustBundle, revoked: Iterable[str]) -> None:
        """Other roots, other revoked instances. Listeners and clusters stay as they are."""
        self._bundle, self._revoked = bundle, revoked_secret(revoked)
        self._trusted_by_all = None
        self._port_bundles.clear()
        self._shared_secrets.clear()

    def trusted(self, marble_type: str) -> Resources:
        """The bundles of a type, also under their SPIFFE names (as SPIRE offers them), whom it is to believe no more,
        and which types there are. The same object until something in it changes."""
        tags = self._manifest.marbles[marble_type].tls
        if tags not in self._shared_secrets:
            bundles = {
                name: self._port_bundle(name, entry)
                for entry in routes.incoming_of(self._manifest, marble_type)
                if (name := bundle_name(entry, self._manifest)) != BUNDLE_NAME
            }
            self._shared_secrets[tags] = {**self._trusted_everywhere(), **bundles}
        return self._shared_secrets[tags]

    def _trusted_everywhere(self) -> Resources:
        if self._trusted_by_all is None:
            names = (BUNDLE_NAME, f"spiffe://{self._place.trust_domain}")
            bundles = {name: bundle_secret(name, self._bundle) for name in names}
            self.serialised += len(bundles)
            self._trusted_by_all = {**bundles, REVOKED_NAME: self._revoked, TYPES_NAME: self._types, **self._offline}
        return self._trusted_by_all

    def _port_bundle(self, name: str, entry: Incoming) -> Resource:
        if id(entry) not in self._port_bundles:
            self.serialised += 1
            self._port_bundles[id(entry)] = bundle_secret(name, self._with_gateways(entry))
        return self._port_bundles[id(entry)]

    def _with_gateways(self, entry: Incoming) -> TrustBundle:
        gateways = self._manifest.mesh.gateways
        own = (gateways[peer].certificate for peer in entry.peers or () if peer in gateways)
        return TrustBundle(b"".join((self._bundle.pem.rstrip(), b"\n", *map(pem_of, own))))

    # ---- serialisation

    def _inbound_listener(self, entry: Incoming, bind: str) -> Resource:
        key = id(entry), bind
        if key not in self._inbound:
            message = routes.inbound_listener(entry, self._place, bind)
            self._inbound[key] = self._make(LISTENER, message.name, message)
        return self._inbound[key]

    def _once(self, type_url: str, entry: object, build: Callable[[], Listener | Cluster]) -> Resource:
        key = type_url, id(entry)
        if key not in self._others:
            message = build()
            self._others[key] = self._make(type_url, message.name, message)
        return self._others[key]

    def _make(self, type_url: str, name: str, message: Message) -> Resource:
        self.serialised += 1
        return make_resource(type_url, name, message)


_NOTHING: Resources = MappingProxyType({})
_NO_ROUTES = Routes(_NOTHING, _NOTHING, ())


def _same(made: Resources, before: Resources) -> Resources:
    return before if made == before else made


def _by_name(resources: Iterable[Resource]) -> Resources:
    return MappingProxyType({resource.name: resource for resource in resources})


def _endpoint_key(entry: Outgoing) -> EndpointKey:
    return EndpointKey(routes.outbound_name(entry.addr, entry.port), entry.addr, parse_port(entry.port))
