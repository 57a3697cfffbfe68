# SPDX-License-Identifier: Apache-2.0
"""The mesh as it is now: who was activated, who is connected, and what each client may see. No I/O.

    Coordinator ─ configure, activated, replace_identities ─► Mesh ─ view(client) ─► XdsServer ─► streams
                                                                ▲ connected, ready, disconnected ┘

Everything happens on one event loop; methods are synchronous and call the watchers when something changed. Identity
comes from the client's certificate alone: `node.id` is never believed, it may only not contradict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from manifests.model import Manifest
from sds.attestation.claims import Claims
from sds.ca import CertificateAuthority
from sds.discovery import View
from sds.identity import IdentityError, MarbleIdentity, marble_identity, uri_names
from sds.material import Identity, MaterialError, check_issued_by, is_ca
from sds.resources import CLUSTER, ENDPOINT, LISTENER, SECRET
from sds.wire.discovery_pb2 import Node
from xds_server.errors import CoordinatorError
from xds_server.mesh_endpoints import DEFAULT_GRACE, Endpoints
from xds_server.snapshot import DEFAULT_BIND, Snapshot

ADVERTISE = "ADVERTISE"
RELAY = "RELAY"


class AccessDenied(CoordinatorError):
    """This client gets nothing. `status` is the gRPC status name; `reason` a bounded label for metrics.

    The text goes to the client: it speaks of the client's own certificate and request, never of others.
    """

    def __init__(self, status: str, reason: str, text: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(text)


class Role(StrEnum):
    MARBLE = "marble"
    GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class Client:
    """An authenticated xDS client: an activated Marble (`name` is its type) or a gateway (no `uuid`)."""

    role: Role
    name: str
    uuid: str = ""

    def __str__(self) -> str:
        return f"{self.name}/{self.uuid}" if self.uuid else self.name

    @property
    def entitled(self) -> frozenset[str]:
        """The resource types that this client may see at all."""
        return _MARBLE_TYPES if self.role is Role.MARBLE else _GATEWAY_TYPES


Readmit = Callable[[x509.Certificate, MarbleIdentity], "ActiveMarble | None"]

_MARBLE_TYPES = frozenset({LISTENER, CLUSTER, ENDPOINT, SECRET})
_GATEWAY_TYPES = frozenset({CLUSTER, ENDPOINT})


@dataclass(frozen=True, slots=True)
class ActiveMarble:
    """An instance whose quote was verified: what it got, and the names that its certificate carries."""

    marble_type: str
    uuid: str
    identity: Identity = field(repr=False)
    claims: Claims | None = None
    dns_names: tuple[str, ...] = ()
    ip_addresses: tuple[IPv4Address | IPv6Address | str, ...] = ()


class Mesh:
    """One per Coordinator. `now` gives the time (UTC, aware); `grace` see `mesh_endpoints`."""

    def __init__(self, now: Callable[[], datetime], *, grace: timedelta = DEFAULT_GRACE) -> None:
        self.now = now
        self._manifest: Manifest | None = None
        self._ca: CertificateAuthority | None = None
        self._snapshot: Snapshot | None = None
        self._gateways: dict[bytes, str] = {}
        self._marbles: dict[tuple[str, str], ActiveMarble] = {}
        self._endpoints = Endpoints(grace)
        self._watchers: dict[object, Callable[[], None]] = {}
        self.version = 0
        # Asked about an instance that shows a certificate of this mesh and is not known (the Coordinator restarted, or
        # it was away for long): what to admit it as, None if it has to be activated again.
        self.readmit: Readmit = lambda _certificate, _identity: None

    # ---- what the Coordinator says

    def configure(self, manifest: Manifest, ca: CertificateAuthority) -> None:
        """Serve this manifest under this CA. Instances of types that it no longer has are forgotten.

        Raises SnapshotError, and nothing changed, if the manifest cannot be served.
        """
        snapshot = Snapshot(manifest, ca)
        self._manifest, self._ca, self._snapshot = manifest, ca, snapshot
        gateways = manifest.mesh.gateways
        self._gateways = {g.certificate.public_bytes(Encoding.DER): name for name, g in gateways.items()}
        self._marbles = {key: marble for key, marble in self._marbles.items() if key[0] in manifest.marbles}
        self._endpoints.retain(self._marbles)
        self._changed()

    def activated(self, marble: ActiveMarble) -> None:
        """An instance was verified and has an identity; again for the same UUID replaces it."""
        if self._manifest is None or marble.marble_type not in self._manifest.marbles:
            raise ValueError(f"marble type {marble.marble_type!r} is not in the manifest that the mesh serves")
        self._marbles[marble.marble_type, marble.uuid] = marble
        self._changed()

    def replace_identities(self, identities: Mapping[tuple[str, str], Identity]) -> None:
        """Renewed identities by (type, UUID); instances that are not known any more are skipped."""
        for key, identity in identities.items():
            if (marble := self._marbles.get(key)) is not None:
                self._marbles[key] = ActiveMarble(
                    marble.marble_type, marble.uuid, identity, marble.claims, marble.dns_names, marble.ip_addresses
                )
        if identities:
            self._changed()

    def revoke(self, marble_type: str, uuid: str) -> None:
        """The instance is no longer part of the mesh: its streams end, it is no endpoint any more."""
        self._marbles.pop((marble_type, uuid), None)
        self._endpoints.forget((marble_type, uuid))
        if self._snapshot is not None:
            self._snapshot.forget(marble_type, uuid)
        self._changed()

    # ---- who is there

    def authenticate(self, certificate: x509.Certificate) -> Client:
        """Who the holder of a TLS client certificate is. Raises AccessDenied.

        The TLS layer has verified *a* chain to *some* trusted certificate. What counts is checked again here, so that
        nothing but the mesh's own CA can name a Marble, whatever else TLS trusts.
        """
        if self._ca is None:
            raise AccessDenied("UNAVAILABLE", "no_manifest", "no manifest is set yet: try again")
        now = self.now()
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise AccessDenied("UNAUTHENTICATED", "expired", "certificate is expired or not valid yet")
        gateway = self._gateways.get(certificate.public_bytes(Encoding.DER))
        if gateway is not None:
            return Client(Role.GATEWAY, gateway)
        try:
            check_issued_by(certificate, self._ca.marble_root)
            identity = marble_identity(certificate)
        except (MaterialError, IdentityError) as e:
            raise AccessDenied(
                "UNAUTHENTICATED", "untrusted", f"certificate is not an identity of this mesh: {e}"
            ) from e
        if is_ca(certificate) or identity.spiffe_id.trust_domain != self._ca.trust_domain:
            raise AccessDenied("UNAUTHENTICATED", "untrusted", "certificate is not an identity of this mesh")
        if (identity.type, identity.uuid) not in self._marbles:
            self._readmit(certificate, identity)
        return Client(Role.MARBLE, identity.type, identity.uuid)

    def _readmit(self, certificate: x509.Certificate, identity: MarbleIdentity) -> None:
        marble = self.readmit(certificate, identity)
        if marble is None:
            raise AccessDenied(
                "PERMISSION_DENIED", "not_activated", "this instance is not activated: activate it again"
            )
        self.activated(marble)

    def check_node(self, client: Client, node: Node) -> None:
        """`node.id` may be anything, except the name of somebody else in this mesh. Raises AccessDenied."""
        named = node.id
        if client.role is Role.GATEWAY:
            contradicts = named.startswith("spiffe://") and named not in self._gateway_uris(client)
        else:
            own = str(client)
            kind = named.partition("/")[0]
            contradicts = named.startswith("spiffe://") and named != self._spiffe_id(client)
            contradicts |= (
                self._manifest is not None and "/" in named and kind in self._manifest.marbles and named != own
            )
        if contradicts:
            raise AccessDenied("PERMISSION_DENIED", "node_mismatch", "node.id names somebody else than the certificate")

    def advertised(self, client: Client, node: Node) -> str | None:
        """The address under which a Marble says that it can be reached: one of the names in its certificate, or None.

        Raises AccessDenied for any other: a broken Marble must not draw others' connections to a stranger.
        """
        value = _metadata(node, ADVERTISE)
        if not value or client.role is not Role.MARBLE:
            return None
        marble = self._marble(client)
        try:
            address = ip_address(value)
        except ValueError:
            if value.lower() not in {name.lower() for name in marble.dns_names}:
                raise _not_own_address() from None
            return value.lower()
        usable = not (address.is_unspecified or address.is_multicast)
        if not usable or address not in {ip_address(str(a)) for a in marble.ip_addresses}:
            raise _not_own_address()
        return str(address)

    def connected(self, client: Client, node: Node, resolved: str | None = None) -> None:
        """A stream of the client begins. `resolved`: the IP address of an advertised DNS name, looked up by the caller;
        without it a name that is not an IP address is no endpoint. Raises AccessDenied."""
        self.check_node(client, node)
        address = resolved or self.advertised(client, node)
        if client.role is not Role.MARBLE:
            return
        key = (client.name, client.uuid)
        before = self._endpoints.address(key)
        changed = self._endpoints.connected(key, address if address is not None and _is_ip(address) else None)
        if _metadata(node, RELAY) == "off":
            # A co-located Envoy carries this Marble's data, so its worker will never acknowledge listeners.
            changed |= self._endpoints.ready(key)
        if changed or before != self._endpoints.address(key):
            self._changed()

    def ready(self, client: Client) -> None:
        """The client acknowledged its listeners: it can be reached from now on."""
        if self._endpoints.ready((client.name, client.uuid)):
            self._endpoints.expire(self.now())
            self._changed()

    def disconnected(self, client: Client) -> None:
        """A stream of the client ended."""
        self._endpoints.disconnected((client.name, client.uuid), self.now())

    def expire(self) -> datetime | None:
        """Let go of instances whose grace is over; returns when to call again, None: after the next lost stream."""
        if self._endpoints.expire(self.now()):
            self._changed()
        return self._endpoints.next_expiry()

    # ---- what clients see

    def view(self, client: Client) -> View:
        """Everything that the client may see now. Raises AccessDenied if it is no longer part of the mesh.

        Types in which nothing changed are the same objects as in the view before.
        """
        if self._snapshot is None:
            raise AccessDenied("UNAVAILABLE", "no_manifest", "no manifest is set yet: try again")
        members = self._endpoints.members
        if client.role is Role.GATEWAY:
            if client.name not in self._gateways.values():
                raise AccessDenied("PERMISSION_DENIED", "not_in_manifest", "this gateway is not in the manifest")
            routes = self._snapshot.gateway_routes()
            return {CLUSTER: routes.clusters, ENDPOINT: self._snapshot.endpoints(routes.endpoints, members)}
        marble = self._marble(client)
        routes = self._snapshot.marble_routes(marble.marble_type, self._bind_address(client))
        return {
            LISTENER: routes.listeners,
            CLUSTER: routes.clusters,
            ENDPOINT: self._snapshot.endpoints(routes.endpoints, members),
            SECRET: self._snapshot.secrets(marble.marble_type, marble.uuid, marble.identity),
        }

    def trusted_certificates(self) -> bytes:
        """PEM of everything that a TLS client certificate may chain to: the Marble root and the gateways' own."""
        if self._ca is None or self._manifest is None:
            return b""
        gateways = [g.certificate for g in self._manifest.mesh.gateways.values()]
        return b"".join(c.public_bytes(Encoding.PEM) for c in (self._ca.marble_root, *gateways))

    @property
    def serialised(self) -> int:
        """How many resources were serialised under the current manifest."""
        return 0 if self._snapshot is None else self._snapshot.serialised

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` (quick, must not raise) after every change. Returns how to stop."""
        token = object()
        self._watchers[token] = callback

        def stop() -> None:
            self._watchers.pop(token, None)

        return stop

    # ---- helpers

    def _changed(self) -> None:
        self.version += 1
        for callback in list(self._watchers.values()):
            callback()

    def _marble(self, client: Client) -> ActiveMarble:
        marble = self._marbles.get((client.name, client.uuid))
        if marble is None:
            raise AccessDenied(
                "PERMISSION_DENIED", "not_activated", "this instance is not activated: activate it again"
            )
        return marble

    def _bind_address(self, client: Client) -> str:
        """On one machine several Marbles share a port by advertising different loopback addresses; elsewhere all
        interfaces, since the address that others use may not be one of this host's own (NAT, load balancers)."""
        address = self._endpoints.address((client.name, client.uuid))
        if address is None:
            return DEFAULT_BIND
        ip = ip_address(address)
        if ip.is_loopback:
            return address
        return "::" if ip.version == 6 else DEFAULT_BIND

    def _spiffe_id(self, client: Client) -> str:
        return str(self._marble(client).identity.spiffe_id)

    def _gateway_uris(self, client: Client) -> tuple[str, ...]:
        if self._manifest is None or (gateway := self._manifest.mesh.gateways.get(client.name)) is None:
            return ()
        return tuple(uri_names(gateway.certificate))


def _metadata(node: Node, name: str) -> str:
    return node.metadata.fields[name].string_value if name in node.metadata.fields else ""


def _not_own_address() -> AccessDenied:
    return AccessDenied(
        "PERMISSION_DENIED", "bad_address", "the advertised address is not among the names of the certificate"
    )


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
