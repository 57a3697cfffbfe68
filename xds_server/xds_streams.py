# SPDX-License-Identifier: Apache-2.0
"""The discovery services of the xDS port: from a call to an open stream, and what ends one.

    Call ─► authenticate (the certificate, nothing else) ─► Session.begin ─► OpenStreams, until it ends

Aggregated, and per type for secrets, listeners, clusters, endpoints and routes; each state of the world and
incremental. The unary `Fetch…` methods are for polling clients and are not served (UNIMPLEMENTED).
"""

from __future__ import annotations

import random
import secrets
import sys
import time
from collections.abc import Callable

from cryptography import x509
from prometheus_client import Gauge

from sds.discovery import DeltaStream, ProtocolError, SotwStream, Stream, nobody
from sds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET
from sds.x509_errors import X509_ERRORS
from xds_server.mesh import AccessDenied, Client, Mesh
from xds_server.mesh_clients import denied_to
from xds_server.rotation import Phase
from xds_server.rpc import Call, Handler, RpcError
from xds_server.xds_gate import stopping
from xds_server.xds_limits import XdsLimits
from xds_server.xds_metrics import XdsMetrics
from xds_server.xds_open import OpenStreams
from xds_server.xds_passed import Judge
from xds_server.xds_record import ClientStatus, Log, StreamRecord
from xds_server.xds_session import Peer, Session


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
    """All open streams of one port. `judge` (of the gate) says how a stream ends whose push has raised something."""

    def __init__(
        self, mesh: Mesh, limits: XdsLimits, log: Log, metrics: XdsMetrics, identifier: str, judge: Judge
    ) -> None:
        self._mesh = mesh
        self._limits = limits
        self._log = log
        self._metrics = metrics
        self._identifier = identifier
        self._judge = judge
        self.open = OpenStreams(self._end)
        self.on_end: Callable[[], None] = lambda: None

    def status(self) -> tuple[ClientStatus, ...]:
        """Every open stream: who has what, and who rejected what."""
        return tuple(sorted((s.status for s in self.open), key=lambda s: (s.client, s.since)))

    def of(self, client: Client) -> tuple[ClientStatus, ...]:
        """The streams of one client."""
        return tuple(sorted((s.status for s in self.open.of(client)), key=lambda s: s.since))

    def stop(self) -> None:
        """End all streams; clients are told to come back."""
        for session in tuple(self.open):
            self._end(session, stopping())

    def look(self) -> None:
        """End streams that are old enough, and those of clients that do not answer, or that ask for too much in all.
        Called every few seconds."""
        now = time.monotonic()
        most = self._limits.names_per_client
        for sessions in tuple(self.open.of_several()):
            if sum(count for session in sessions for _, count in session.subscriptions) > most:
                for session in sessions:
                    text = f"more than {most} subscribed resource names of one client"
                    self._end(session, ProtocolError("RESOURCE_EXHAUSTED", text))
        for session in self.open.silent(now, self._limits.answer):
            self._metrics.ack_timeouts.inc()
            text = "the client does not answer the responses that it gets"
            self._end(session, ProtocolError("DEADLINE_EXCEEDED", text))
        self.open.look(now)

    def handlers(self) -> dict[str, Handler]:
        """By full method path."""
        return {
            f"/{service}/{method}": self._handler(*how)
            for service, methods in SERVICES.items()
            for method, how in methods.items()
        }

    def _handler(self, kind: type[Stream], implied_type: str) -> Handler:
        async def handle(call: Call) -> Session | None:
            return await self._serve(call, kind, implied_type)

        return handle

    async def _serve(self, call: Call, kind: type[Stream], implied_type: str) -> Session | None:
        peer = authenticate(call, self._mesh)
        client = peer.client
        if len(self.open.of(client)) >= self._limits.streams_per_client:  # it may have two certificates
            raise AccessDenied("RESOURCE_EXHAUSTED", "too_many_streams", "too many streams of this client")
        session = self._session(call, peer, kind, implied_type)
        self.open.add(session)
        self._gauge(session).inc()
        session.news = self._heard
        began = False
        try:
            began = await session.begin()
        finally:
            if not began:
                session.closed()
        if not began:
            return None
        if self._mesh.rotation.phase is not Phase.SETTLED and not session.trusts_as_told:
            self.open.behind.add(session)
        self.open.look_at(session)
        return session

    def _session(self, call: Call, peer: Peer, kind: type[Stream], implied_type: str) -> Session:
        ca = self._mesh.ca
        stream = kind(
            identifier=self._identifier,
            nonce_prefix=f"{secrets.token_hex(4)}-",
            implied_type=implied_type,
            entitled=peer.client.entitled,
            denied=nobody if ca is None else denied_to(peer.client, ca.trust_domain),
        )
        variant = kind.__name__.removesuffix("Stream").lower()
        method = sys.intern(call.method.rpartition("/")[2])
        record = StreamRecord(peer.client, method, variant, self._mesh.now(), self._log, self._metrics)
        leave_at = time.monotonic() + self._lifetime()
        return Session(peer, stream, call, self._mesh, record, patience=self._limits.patience, leave_at=leave_at)

    def _heard(self, session: Session) -> None:
        if session.over:
            self._gauge(session).dec()
            self.on_end()
        self.open.heard(session)

    def _gauge(self, session: Session) -> Gauge:
        return self._metrics.streams.labels(session.record.variant, session.client.role.value)

    def _end(self, session: Session, error: Exception) -> None:
        verdict = self._judge(error, session.call)
        if isinstance(verdict, RpcError):
            session.call.finish(verdict)

    def _lifetime(self) -> float:
        jitter = self._limits.age_jitter
        return self._limits.age * random.uniform(1 - jitter, 1 + jitter)  # noqa: S311 - spreads load, no secret
