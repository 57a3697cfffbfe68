# SPDX-License-Identifier: Apache-2.0
"""The discovery services of the xDS port, and every stream that is open.

    Call ─► authenticate (the certificate, nothing else) ─► Session, until it ends

Aggregated, and per type for secrets, listeners, clusters, endpoints and routes; each state of the world and
incremental. The unary `Fetch…` methods are for polling clients and are not served (UNIMPLEMENTED).
"""

from __future__ import annotations

import math
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection

from cryptography import x509

from sds.discovery import DeltaStream, ProtocolError, SotwStream, Stream
from sds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET
from sds.x509_errors import X509_ERRORS
from xds_server.mesh import AccessDenied, Client, Mesh
from xds_server.rpc import Call, Handler
from xds_server.xds_gate import stopping
from xds_server.xds_limits import XdsLimits
from xds_server.xds_metrics import XdsMetrics
from xds_server.xds_record import ClientStatus, Log, StreamRecord
from xds_server.xds_session import Peer, Ports, Session


def _methods(noun: str, type_url: str) -> dict[str, tuple[type[Stream], str]]:
    return {f"Stream{noun}": (SotwStream, type_url), f"Delta{noun}": (DeltaStream, type_url)}


# Service -> method -> variant and, where the stream serves a single type, that type.
SERVICES: dict[str, dict[str, tuple[type[Stream], str]]] = {
    "envoy.service.discovery.v3.AggregatedDiscoveryService": _methods("AggregatedResources", ""),
    "envoy.service.secret.v3.SecretDiscoveryService": _methods("Secrets", SECRET),
    "envoy.service.listener.v3.ListenerDiscoveryService": _methods("Listeners", LISTENER),
    "envoy.service.cluster.v3.ClusterDiscoveryService": _methods("Clusters", CLUSTER),
    "envoy.service.endpoint.v3.EndpointDiscoveryService": _methods("Endpoints", ENDPOINT),
    "envoy.service.route.v3.RouteDiscoveryService": _methods("Routes", ROUTE),
}


def authenticate(call: Call, mesh: Mesh) -> Peer:
    """Who calls. Raises AccessDenied."""
    try:
        certificate = x509.load_der_x509_certificate(call.certificate_der or b"")
    except X509_ERRORS:
        raise AccessDenied("UNAUTHENTICATED", "no_certificate", "no usable client certificate") from None
    return Peer(mesh.authenticate(certificate), certificate.not_valid_after_utc)


class Streams:
    """All open streams of one port."""

    def __init__(self, mesh: Mesh, limits: XdsLimits, log: Log, metrics: XdsMetrics, identifier: str) -> None:
        self._mesh = mesh
        self._limits = limits
        self._log = log
        self._metrics = metrics
        self._identifier = identifier
        self._leave_at: dict[Session, float] = {}
        self._count: Counter[Client] = Counter()
        self.on_end: Callable[[], None] = lambda: None

    @property
    def open(self) -> Collection[Session]:
        """Every session that runs."""
        return self._leave_at.keys()

    def status(self) -> tuple[ClientStatus, ...]:
        """Every open stream: who has what, and who rejected what."""
        return tuple(sorted((s.status for s in self.open), key=lambda s: (s.client, s.since)))

    def of(self, client: Client) -> tuple[ClientStatus, ...]:
        """The streams of one client."""
        return tuple(sorted((s.status for s in self.open if s.client == client), key=lambda s: s.since))

    def stop(self) -> None:
        """End all streams; clients are told to come back."""
        for session in self.open:
            session.end(stopping())

    def look(self) -> None:
        """End streams that are old enough, and those of clients that do not answer, or that ask for too much in all.
        Called every few seconds."""
        now = time.monotonic()
        names = Counter[Client]()
        for session in self.open:
            names[session.client] += sum(count for _, count in session.subscriptions)
        for session, leave_at in self._leave_at.items():
            if names[session.client] > self._limits.names_per_client:
                text = f"more than {self._limits.names_per_client} subscribed resource names of one client"
                session.end(ProtocolError("RESOURCE_EXHAUSTED", text))
            elif session.record.unanswered_for(now) > self._limits.answer:
                self._metrics.ack_timeouts.inc()
                session.end(ProtocolError("DEADLINE_EXCEEDED", "the client does not answer the responses that it gets"))
            elif now >= leave_at:
                self._metrics.aged.inc()
                self._leave_at[session] = math.inf
                session.leave()

    def handlers(self) -> dict[str, Handler]:
        """By full method path."""
        return {
            f"/{service}/{method}": self._handler(*how)
            for service, methods in SERVICES.items()
            for method, how in methods.items()
        }

    def _handler(self, kind: type[Stream], implied_type: str) -> Handler:
        async def handle(call: Call) -> None:
            await self._serve(call, kind, implied_type)

        return handle

    async def _serve(self, call: Call, kind: type[Stream], implied_type: str) -> None:
        peer = authenticate(call, self._mesh)
        client = peer.client
        if self._count[client] >= self._limits.streams_per_client:  # it may have two certificates
            raise AccessDenied("RESOURCE_EXHAUSTED", "too_many_streams", "too many streams of this client")
        stream = kind(
            identifier=self._identifier,
            nonce_prefix=f"{secrets.token_hex(4)}-",
            implied_type=implied_type,
            entitled=client.entitled,
        )
        variant = kind.__name__.removesuffix("Stream").lower()
        method = call.method.rpartition("/")[2]
        record = StreamRecord(client, method, variant, self._mesh.now(), self._log, self._metrics)
        session = Session(peer, stream, Ports(call.read, call.write, self._limits.patience), self._mesh, record)
        gauge = self._metrics.streams.labels(variant, client.role.value)
        self._leave_at[session] = time.monotonic() + self._lifetime()
        self._count[client] += 1
        gauge.inc()
        try:
            await session.run()
        finally:
            gauge.dec()
            del self._leave_at[session]
            self._count[client] -= 1
            if not self._count[client]:
                del self._count[client]
            self.on_end()

    def _lifetime(self) -> float:
        jitter = self._limits.age_jitter
        return self._limits.age * random.uniform(1 - jitter, 1 + jitter)  # noqa: S311 - spreads load, no secret
