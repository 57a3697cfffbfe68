# SPDX-License-Identifier: Apache-2.0
"""The mesh as it is now: who was activated, who is connected, and what each client may see. No I/O.

    Coordinator ─ configure, update, activated, replace_identities ─► Mesh ─ view(client) ─► XdsServer ─► streams
                                                       ▲ connected, ready, disconnected, advance ┘

`update` replaces manifest and CA under the same root: who is not allowed any more is turned out at once (`revocation`),
all others follow to the new Marble root in the phases of `rotation`, which the XdsServer drives with `advance`.

Everything happens on one event loop; methods are synchronous and tell the watchers when something changed, and whom it
concerns. Identity comes from the client's certificate alone: `node.id` is never believed, it may only not contradict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from manifests.model import Manifest
from sds.ca import CertificateAuthority
from sds.discovery import View
from sds.identity import MarbleIdentity, marble_spiffe_id, uri_names
from sds.material import Identity
from sds.publish_gate import LOOK_AGAIN
from sds.resources import CLUSTER, ENDPOINT, LISTENER, SECRET
from sds.wire.discovery_pb2 import Node
from xds_server.absences import Absences
from xds_server.former_roots import FormerRoots
from xds_server.mesh_admission import check_dates, check_node_id, identity_of
from xds_server.mesh_changes import EVERYBODY, Concerned, only
from xds_server.mesh_clients import AccessDenied as AccessDenied
from xds_server.mesh_clients import ActiveMarble as ActiveMarble
from xds_server.mesh_clients import Client as Client
from xds_server.mesh_clients import Instance, Served, advertised, can_be_dialled, relays, turned_out
from xds_server.mesh_clients import Role as Role
from xds_server.mesh_endpoints import DEFAULT_GRACE, Endpoints
from xds_server.mesh_secrets import MeshSecrets
from xds_server.revocation import Revocations
from xds_server.rotation import Pace, Phase, Rotation, RotationStatus
from xds_server.snapshot import Resources, Snapshot
from xds_server.snapshot_routes import bind_address

NOT_ACTIVATED = "this instance is not activated: activate it again"

Readmit = Callable[[x509.Certificate, MarbleIdentity], "ActiveMarble | None"]


class Mesh:
    """One per Coordinator. `now` gives the time (UTC, aware); `grace` see `mesh_endpoints`, `pace` see `rotation`."""

    def __init__(
        self, now: Callable[[], datetime], *, grace: timedelta = DEFAULT_GRACE, pace: Pace | None = None
    ) -> None:
        self.now = now
        self._manifest: Manifest | None = None
        self._ca: CertificateAuthority | None = None
        self._snapshot: Snapshot | None = None
        self.published = MeshSecrets(now)
        self._gateways: dict[bytes, str] = {}
        self._marbles: dict[tuple[str, str], ActiveMarble] = {}
        self._endpoints = Endpoints(grace)
        self._absences = Absences()
        self._rotation = Rotation(pace)
        self._revoked = Revocations()
        self._behind: set[tuple[str, str]] = set()  # whose identity is not of the newest root
        self._renew: Callable[[], None] = lambda: None
        self._watchers: dict[object, Callable[[Concerned], None]] = {}
        self.version = 0
        # What to admit an instance as that shows a good certificate and is not known; None: it must activate again.
        self.readmit: Readmit = lambda _certificate, _identity: None
        # Told when roots have left the bundles.
        self.retired: Callable[[Rotation], None] = lambda _rotation: None

    # ---- what the Coordinator says

    def configure(self, manifest: Manifest, ca: CertificateAuthority, made: Snapshot | None = None) -> None:
        """Serve this manifest under this CA from now on, without any transition: how a mesh begins.

        Instances of types that the manifest does not have are forgotten. `made`: the snapshot of the two, by whoever
        has made it elsewhere than on the event loop. Raises SnapshotError, and nothing changed, if the manifest cannot
        be served.
        """
        snapshot = made or Snapshot(manifest, ca)
        self.published = MeshSecrets(self.now)  # what was good under another CA is good for nothing
        self._rotation.reset(ca.marble_root)
        self._revoked.clear()
        self._behind.clear()
        self._marbles = {key: marble for key, marble in self._marbles.items() if key[0] in manifest.marbles}
        self._serve(manifest, ca, snapshot)

    def resume(self, manifest: Manifest, ca: CertificateAuthority, former: FormerRoots, made: Snapshot | None) -> None:
        """As `configure`, for a mesh that another Coordinator has served, maybe to the middle of a rotation."""
        self.configure(manifest, ca, made)
        self._rotation.resume(ca.marble_root, self.now(), former.trusted, former.departed)
        self._revoked.restore(former.revoked)
        if self._snapshot is not None and self._rotation.phase is not Phase.SETTLED:
            self._snapshot.succeed(None)
        self._trust_anew()

    def update(
        self,
        manifest: Manifest,
        ca: CertificateAuthority,
        allowed: Callable[[ActiveMarble], bool],
        made: Snapshot | None = None,
    ) -> tuple[ActiveMarble, ...]:
        """Go over to another manifest and to a CA that was rotated under the same root, while everything runs.

        Instances whose type is gone, or of which `allowed` says no, are turned out now; they are returned. All others
        follow without losing a connection. Raises SnapshotError, and nothing changed, if the manifest cannot be served;
        ValueError if the CA has another root. From here on identities must be issued under `ca`, for instances that are
        new; the others are renewed when `renew_with` asks for it.
        """
        if self._ca is None:
            self.configure(manifest, ca, made)
            return ()
        if ca.root_der != self._ca.root_der:
            raise ValueError("an update keeps the coordinator's root, this certificate authority has another one")
        reasons = turned_out(self._marbles.values(), manifest, allowed)
        snapshot = made or Snapshot(manifest, ca)
        if ca.marble_root != self._rotation.newest:
            self._rotation.begin(ca.marble_root, self.now())
            self._behind = set(self._marbles)
        self._behind.difference_update(reasons)
        for key, why in reasons.items():
            self._revoked.add(key, why)
        gone = tuple(self._marbles.pop(key) for key in reasons)
        snapshot.trust(self._rotation.bundle, self._revoked.names(ca.trust_domain))
        snapshot.resemble(self._snapshot)
        if self._rotation.phase is not Phase.SETTLED:
            snapshot.succeed(self._snapshot)
        self._serve(manifest, ca, snapshot)
        return gone

    def _serve(self, manifest: Manifest, ca: CertificateAuthority, snapshot: Snapshot) -> None:
        self._manifest, self._ca, self._snapshot = manifest, ca, snapshot
        gateways = manifest.mesh.gateways
        self._gateways = {g.certificate.public_bytes(Encoding.DER): name for name, g in gateways.items()}
        self._endpoints.retain(self._marbles)
        self._absences.retain(self._marbles)
        self.published.retain(self._marbles)
        self._changed(EVERYBODY)

    def renew_with(self, renew: Callable[[], None]) -> None:
        """What to call (quick, must not raise) when every identity is to be renewed: a rotation has come so far."""
        self._renew = renew

    def advance(self, *, answered: bool) -> bool:
        """Take a rotation further if it is time; whether its phase changed. `answered`: all clients hold what they were
        given last."""
        if self._snapshot is None or not self._rotation.advance(self.now(), answered=answered and not self._awaited()):
            return False
        match self._rotation.phase:
            case Phase.RENEW:
                self._renew()
            case Phase.RETIRE:
                self._trust_anew()
                self.retired(self._rotation)
            case Phase.SETTLED if self._snapshot.settle():
                self._changed(EVERYBODY)
        return True

    @property
    def rotation(self) -> RotationStatus:
        """How far the change to the newest Marble root is."""
        return self._rotation.status()

    @property
    def ca(self) -> CertificateAuthority | None:
        """The CA that is served, None before there is a manifest."""
        return self._ca

    def activated(self, marble: ActiveMarble) -> None:
        """An instance was verified and has an identity; again for the same UUID replaces it."""
        if self._manifest is None or marble.marble_type not in self._manifest.marbles:
            raise ValueError(f"marble type {marble.marble_type!r} is not in the manifest that the mesh serves")
        key = marble.marble_type, marble.uuid
        self._marbles[key] = marble.at_rest()
        self._absences.activated(key, self.now())
        self._behind.discard(key)
        self._rotation.issued()
        if self._revoked.discard(key):
            self._trust_anew()
        self._changed(only(key))

    def replace_identities(self, identities: Mapping[tuple[str, str], Identity]) -> None:
        """Renewed identities by (type, UUID); instances that are not known any more are skipped."""
        for key, identity in identities.items():
            if (marble := self._marbles.get(key)) is not None:
                self._marbles[key] = replace(marble, identity=identity.at_rest())
                if self._ca is not None and self._ca.intermediate in identity.certificates:
                    self._behind.discard(key)  # one that was being made when the root changed is of the old one
        if identities:
            self._rotation.renewed(self.now())
            self._changed(only(*identities))

    @property
    def marbles(self) -> tuple[ActiveMarble, ...]:
        """Every instance that is known."""
        return tuple(self._marbles.values())

    def replace_served(self, served: Mapping[Instance, Served]) -> None:
        """Other certificate secrets for ports that present one; instances that are not known any more are skipped."""
        for key in served.keys() & self._marbles.keys():
            self._marbles[key] = replace(self._marbles[key], served=served[key])
        self._changed(only(*served))

    def revoke(self, marble_type: str, uuid: str, why: str = "turned out by the operator") -> None:
        """Turn an instance out: its streams end, it is no endpoint any more, and nobody talks to it."""
        key = marble_type, uuid
        if self._marbles.pop(key, None) is None:
            return
        self._behind.discard(key)
        self._endpoints.forget(key)
        self.published.forget(key)
        self._revoked.add(key, why)
        self._trust_anew()

    # ---- who is there

    def authenticate(self, certificate: x509.Certificate) -> Client:
        """Who the holder of a TLS client certificate is. Raises AccessDenied."""
        if self._ca is None:
            raise AccessDenied("UNAVAILABLE", "no_manifest", "no manifest is set yet: try again")
        now = self.now()
        check_dates(certificate, now)
        gateway = self._gateways.get(certificate.public_bytes(Encoding.DER))
        if gateway is not None:
            return Client(Role.GATEWAY, gateway)
        identity = identity_of(certificate, self._rotation, self._ca.trust_domain, now, self._marbles)
        key = identity.type, identity.uuid
        if not (self._revoked.is_restored(key) and self._rotation.is_newest(certificate)):
            self._refuse_revoked(key)
        if key not in self._marbles:
            self._readmit(certificate, identity)
        return Client(Role.MARBLE, identity.type, identity.uuid)

    def _readmit(self, certificate: x509.Certificate, identity: MarbleIdentity) -> None:
        if (marble := self.readmit(certificate, identity)) is None:
            raise AccessDenied("PERMISSION_DENIED", "not_activated", NOT_ACTIVATED)
        self.activated(marble)
        if self._ca is not None and self._ca.intermediate not in marble.identity.certificates:
            self._behind.add((marble.marble_type, marble.uuid))

    def check_node(self, client: Client, node: Node) -> None:
        """See `mesh_admission.check_node_id`. Raises AccessDenied."""
        if self._manifest is None or self._ca is None:
            return
        if client.role is Role.MARBLE:
            own = [marble_spiffe_id(self._ca.trust_domain, *client.instance)]
        else:
            gateway = self._manifest.mesh.gateways.get(client.name)
            own = [] if gateway is None else uri_names(gateway.certificate)
        check_node_id(node.id, client, own, self._manifest.marbles)

    def advertised(self, client: Client, node: Node) -> str | None:
        """Where a Marble says that it can be reached: see `mesh_clients.advertised`. Raises AccessDenied."""
        return advertised(self._marble(client), node) if client.role is Role.MARBLE else None

    def connected(self, client: Client, node: Node, resolved: str | None = None) -> None:
        """A stream of the client begins. `resolved`: the IP address of an advertised DNS name, looked up by the caller;
        without it a name that is not an IP address is no endpoint. Raises AccessDenied."""
        self.check_node(client, node)
        address = resolved or self.advertised(client, node)
        if client.role is not Role.MARBLE:
            return
        key = client.instance
        self._absences.connected(key)
        before = bind_address(self._endpoints.address(key))
        changed = self._endpoints.connected(key, address if address is not None and can_be_dialled(address) else None)
        if not relays(node):
            # A co-located Envoy carries this Marble's data, so its worker will never acknowledge listeners.
            changed |= self._endpoints.ready(key)
        if before != bind_address(self._endpoints.address(key)):
            self._changed(only(key))
        if changed:
            self._endpoints_changed(client.name)

    def ready(self, client: Client) -> None:
        """The client acknowledged its listeners: it can be reached from now on."""
        if self._endpoints.ready(client.instance):
            self._endpoints_changed(client.name, *self._endpoints.expire(self.now()))

    def disconnected(self, client: Client) -> None:
        """A stream of the client ended."""
        self._endpoints.disconnected(client.instance, self.now())
        self._absences.disconnected(client.instance, self.now())

    def forget_absent(self, away: timedelta, limit: int) -> tuple[tuple[str, str], ...]:
        """Let go of instances without stream for `away`, and of more beyond `limit`; `readmit` may take them back."""
        gone = tuple(self._absences.overdue(self.now() - away, len(self._marbles) - limit))
        for key in gone:
            self._marbles.pop(key, None)
            self._behind.discard(key)
            self._absences.forget(key)
            self._endpoints.forget(key)
            self.published.forget(key)
        if gone:
            self._changed(only(*gone))
        self._endpoints_changed(*{marble_type for marble_type, _ in gone})
        return gone

    def expire(self) -> datetime:
        """Let go of instances whose grace is over, look again at secrets that are withheld; when to call again."""
        now = self.now()
        self._endpoints_changed(*self._endpoints.expire(now))
        if self.published.ripen():
            self._changed(EVERYBODY)
        return min(self._endpoints.next_expiry() or now + LOOK_AGAIN, now + LOOK_AGAIN)

    # ---- what clients see

    def view(self, client: Client) -> View:
        """Everything that the client may see now. Raises AccessDenied if it is no longer part of the mesh.

        Types in which nothing changed are the same objects as in the view before.
        """
        if self._snapshot is None:
            raise AccessDenied("UNAVAILABLE", "no_manifest", "no manifest is set yet: try again")
        members, moment = self._endpoints.members, self._endpoints.moment
        if client.role is Role.GATEWAY:
            if client.name not in self._gateways.values():
                raise AccessDenied("PERMISSION_DENIED", "not_in_manifest", "this gateway is not in the manifest")
            routes = self._snapshot.gateway_routes()
            return {CLUSTER: routes.clusters, ENDPOINT: self._snapshot.endpoints(routes.endpoints, members, moment)}
        marble = self._marble(client)
        bind = bind_address(self._endpoints.address(client.instance))
        routes = self._snapshot.marble_routes(marble.marble_type, bind)
        return {
            LISTENER: routes.listeners,
            CLUSTER: routes.clusters,
            ENDPOINT: self._snapshot.endpoints(routes.endpoints, members, moment),
            SECRET: self.published.of(marble, self._snapshot),
        }

    def secrets(self, client: Client) -> Resources | None:
        """What a Marble proves itself with and whom it trusts: the same object until it changes. None for others."""
        marble = self._marbles.get(client.instance) if client.role is Role.MARBLE else None
        return None if self._snapshot is None or marble is None else self.published.of(marble, self._snapshot)

    def trusted_certificates(self) -> bytes:
        """PEM of everything that a TLS client certificate may chain to: Marble roots and the gateways' own."""
        if self._ca is None or self._manifest is None:
            return b""
        gateways = [g.certificate for g in self._manifest.mesh.gateways.values()]
        return b"".join(c.public_bytes(Encoding.PEM) for c in (*self._rotation.known(self.now()), *gateways))

    @property
    def serialised(self) -> int:
        """How many resources were serialised under the current manifest."""
        return 0 if self._snapshot is None else self._snapshot.serialised + self.published.serialised

    def watch(self, callback: Callable[[Concerned], None]) -> Callable[[], None]:
        """Call `callback` (quick, must not raise) after every change. Returns how to stop."""
        token = object()
        self._watchers[token] = callback

        def stop() -> None:
            self._watchers.pop(token, None)

        return stop

    # ---- helpers

    def _trust_anew(self) -> None:
        if self._snapshot is not None and self._ca is not None:
            self._snapshot.trust(self._rotation.bundle, self._revoked.names(self._ca.trust_domain))
            self._changed(EVERYBODY)

    def _awaited(self) -> bool:
        """Whether a rotation has to wait for somebody who cannot answer now: identities that are still to be renewed,
        and instances between two streams, who have not been away long enough to be taken for dead."""
        renewing = self._rotation.phase is Phase.RENEW and bool(self._behind)
        return renewing or self._endpoints.absent(self.now())

    def _refuse_revoked(self, instance: tuple[str, str]) -> None:
        if (reason := self._revoked.reason(instance)) is not None:
            raise AccessDenied("PERMISSION_DENIED", "revoked", reason)

    def _changed(self, who: Concerned) -> None:
        self.version += 1
        for callback in list(self._watchers.values()):
            callback(who)

    def _endpoints_changed(self, *types: str) -> None:
        if types and self._snapshot is not None:
            callers = frozenset[str]().union(*map(self._snapshot.callers, types))
            self._changed(Concerned(callers=callers, gateways=True))

    def _marble(self, client: Client) -> ActiveMarble:
        if (marble := self._marbles.get(client.instance)) is None:
            self._refuse_revoked(client.instance)
            raise AccessDenied("PERMISSION_DENIED", "not_activated", NOT_ACTIVATED)
        return marble
