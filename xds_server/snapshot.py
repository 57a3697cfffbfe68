# SPDX-License-Identifier: Apache-2.0
"""Manifest and CA turned into resources: built once, serialised once, shared by every client that may see them.

    Snapshot(manifest, ca)
      .marble_routes(type, bind)   listeners and clusters of a type   shared by all its instances with that bind address
      .gateway_routes()            clusters of every port             shared by all gateways
      .endpoints(names, members)   who is behind a cluster            shared by all that talk to the type
      .secrets(type, identity)     what one instance proves itself with, whom it trusts, and whom no more
  .trust(bundle, revoked)      while roots change, and when somebody is turned out

Caches are by content: an activation or a renewal rebuilds what concerns that one Marble, and the mapping of everything
else stays the same object, so that streams skip it by identity. `serialised` counts, for tests and curiosity.

A gateway sees every port of every Marble type, whatever `Peers` says: `Peers` names who may be the *other end of TLS*,
and a gateway carries ciphertext between two ends without being one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import Message

from manifests.address import parse_port
from manifests.model import Incoming, Manifest, Outgoing
from sds.ca import CertificateAuthority
from sds.material import Identity, MaterialError, TrustBundle, is_ca
from sds.resources import (
    BUNDLE_NAME,
    CLUSTER,
    ENDPOINT,
    IDENTITY_NAME,
    LISTENER,
    REVOKED_NAME,
    Resource,
    bundle_secret,
    identity_secret,
    make_resource,
    revoked_secret,
)
from xds_server import snapshot_routes as routes
from xds_server.served_certificates import served_names
from xds_server.snapshot_tls import SnapshotError, bundle_name, gateway_name

Resources = Mapping[str, Resource]
Identities = Mapping[str, Identity]
Member = tuple[str, int]  # IP address, health status
# Who is behind a Marble type right now, sorted.
Members = Callable[[str], Sequence[Member]]

DEFAULT_BIND = "0.0.0.0"
NOTHING: Identities = MappingProxyType({})
# A port without `Peers` names every type, and no client takes more than 4096 names for one port.
MAX_TYPES = 4000


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

    `bundle`: the roots that are trusted while one replaces the other; without it the CA's own. `revoked`: SPIFFE IDs of
    instances that nobody is to talk to.
    """

    def __init__(
        self,
        manifest: Manifest,
        ca: CertificateAuthority,
        bundle: TrustBundle | None = None,
        revoked: Iterable[str] = (),
    ) -> None:
        self.serialised = 0
        self._manifest = manifest
        self._trust_domain = ca.trust_domain
        self._bundle = bundle or ca.bundle
        self._revoked = revoked_secret(revoked)
        self._routes: dict[tuple[str, str], Routes] = {}
        self._gateway_routes: Routes | None = None
        self._endpoints: dict[EndpointKey, tuple[tuple[Member, ...], Resource]] = {}
        self._endpoint_maps: dict[tuple[EndpointKey, ...], Resources] = {}
        self._shared_secrets: dict[str, Resources] = {}
        self._secrets: dict[tuple[str, str], tuple[Identity, Identities, Resources]] = {}
        if len(manifest.marbles) > MAX_TYPES:
            raise SnapshotError(f"Marbles: {len(manifest.marbles)} types, at most {MAX_TYPES} can be served")
        self._check_gateways()
        for marble_type in manifest.marbles:  # now, so that a bad manifest is refused before anything depends on it
            self.marble_routes(marble_type, DEFAULT_BIND)
            self._trusted(marble_type)
        self.gateway_routes()

    def _check_gateways(self) -> None:
        for name, gateway in self._manifest.mesh.gateways.items():
            if is_ca(gateway.certificate):
                # It is trusted as an anchor on ports that list it: as a CA it could make itself any Marble.
                raise SnapshotError(f"Mesh.Gateways.{name}: a CA certificate cannot be a gateway's identity")

    # ---- what a type has in common

    def marble_routes(self, marble_type: str, bind: str) -> Routes:
        """Listeners and clusters of a type whose inbound listeners bind to the address `bind`."""
        key = (marble_type, bind)
        if key not in self._routes:
            self._routes[key] = self._build_routes(marble_type, bind)
        return self._routes[key]

    def _build_routes(self, marble_type: str, bind: str) -> Routes:
        manifest, domain = self._manifest, self._trust_domain
        incoming = routes.incoming_of(manifest, marble_type)
        outgoing = routes.outgoing_of(manifest, marble_type)
        listeners = [routes.inbound_listener(entry, manifest, domain, bind) for entry in incoming]
        listeners += [routes.outbound_listener(entry) for entry in outgoing]
        clusters = [routes.app_cluster(entry) for entry in incoming]
        clusters += [routes.outbound_cluster(entry, manifest, domain) for entry in outgoing]
        return Routes(
            self._named(LISTENER, {message.name: message for message in listeners}),
            self._named(CLUSTER, {message.name: message for message in clusters}),
            tuple(_endpoint_key(entry) for entry in outgoing if entry.addr in manifest.marbles),
        )

    def gateway_routes(self) -> Routes:
        """Clusters of every port of every Marble type, without TLS and without listeners."""
        if self._gateway_routes is None:
            keys = [
                EndpointKey(routes.outbound_name(marble_type, entry.port), marble_type, parse_port(entry.port))
                for marble_type in self._manifest.marbles
                for entry in routes.incoming_of(self._manifest, marble_type)
            ]
            clusters = {key.name: routes.eds_cluster(key.name) for key in keys}
            self._gateway_routes = Routes(MappingProxyType({}), self._named(CLUSTER, clusters), tuple(keys))
        return self._gateway_routes

    # ---- what changes with the instances

    def endpoints(self, keys: tuple[EndpointKey, ...], members: Members) -> Resources:
        """The endpoint lists of some clusters. The same object as before if nothing in it has changed."""
        current = {key.name: self._endpoint_list(key, tuple(members(key.marble_type))) for key in keys}
        known = self._endpoint_maps.get(keys)
        if known is None or any(known[name] is not resource for name, resource in current.items()):
            known = self._endpoint_maps[keys] = MappingProxyType(current)
        return known

    def _endpoint_list(self, key: EndpointKey, members: tuple[Member, ...]) -> Resource:
        known = self._endpoints.get(key)
        if known is None or (known[0] is not members and known[0] != members):
            message = routes.endpoints(key.name, ((host, key.port, health) for host, health in members))
            known = self._endpoints[key] = (members, self._make(ENDPOINT, key.name, message))
        return known[1]

    def secrets(self, marble_type: str, uuid: str, identity: Identity, served: Identities = NOTHING) -> Resources:
        """One instance's identity and the bundles it trusts, also under their SPIFFE names (as SPIRE offers them), and
        what else its ports present."""
        known = self._secrets.get((marble_type, uuid))
        if known is None or known[0] is not identity or known[1] is not served:
            own = [identity_secret(name, identity) for name in (IDENTITY_NAME, str(identity.spiffe_id))]
            # Only what a port of this manifest presents: the store may hold more by the same names.
            wanted = served_names(self._manifest, marble_type)
            own += [identity_secret(name, other) for name, other in served.items() if name in wanted]
            self.serialised += len(own)
            secrets = {**self._trusted(marble_type), **{resource.name: resource for resource in own}}
            known = self._secrets[marble_type, uuid] = (identity, served, MappingProxyType(secrets))
        return known[2]

    def trust(self, bundle: TrustBundle, revoked: Iterable[str]) -> None:
        """Other roots, other revoked instances. Listeners and clusters stay as they are."""
        self._bundle, self._revoked = bundle, revoked_secret(revoked)
        self._shared_secrets.clear()
        self._secrets.clear()

    def forget(self, marble_type: str, uuid: str) -> None:
        """Drop what is kept for one instance."""
        self._secrets.pop((marble_type, uuid), None)

    def _trusted(self, marble_type: str) -> Resources:
        if marble_type not in self._shared_secrets:
            bundles = dict.fromkeys((BUNDLE_NAME, f"spiffe://{self._trust_domain}"), self._bundle)
            for entry in routes.incoming_of(self._manifest, marble_type):
                if (name := bundle_name(entry, self._manifest)) != BUNDLE_NAME:
                    bundles[name] = self._with_gateways(entry)
            self.serialised += len(bundles)
            secrets = {name: bundle_secret(name, b) for name, b in bundles.items()}
            self._shared_secrets[marble_type] = secrets | {REVOKED_NAME: self._revoked}
        return self._shared_secrets[marble_type]

    def _with_gateways(self, entry: Incoming) -> TrustBundle:
        pem = [self._bundle.pem.rstrip() + b"\n"]
        for peer in entry.peers or ():
            if (gateway := self._manifest.mesh.gateways.get(peer)) is not None:
                gateway_name(peer, gateway.certificate, self._trust_domain)
                pem.append(gateway.certificate.public_bytes(Encoding.PEM))
        try:
            return TrustBundle(b"".join(pem))
        except MaterialError as e:
            raise SnapshotError(f"trust bundle of port {entry.port}: {e}") from None

    # ---- serialisation

    def _named(self, type_url: str, messages: Mapping[str, Message]) -> Resources:
        return MappingProxyType({name: self._make(type_url, name, message) for name, message in messages.items()})

    def _make(self, type_url: str, name: str, message: Message) -> Resource:
        self.serialised += 1
        return make_resource(type_url, name, message)


def _endpoint_key(entry: Outgoing) -> EndpointKey:
    return EndpointKey(routes.outbound_name(entry.addr, entry.port), entry.addr, parse_port(entry.port))
