# SPDX-License-Identifier: Apache-2.0
"""The Coordinator's xDS port: aggregated discovery and SDS, both variants, over mutual TLS.

    Call ─► authenticate (the certificate, nothing else) ─► Session ◄─ debounced changes ─ Mesh

Messages travel as raw bytes: `sds.discovery` parses the little it needs in microseconds. Clients never see an
exception's text, only the sentences of ProtocolError and AccessDenied. How bytes travel is the transport's (`rpc`).
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable

from cryptography import x509

from sds.ca import CertificateAuthority
from sds.discovery import DeltaStream, ProtocolError, SotwStream, Stream
from sds.resources import SECRET
from sds.x509_errors import X509_ERRORS
from xds_server.mesh import AccessDenied, Client, Mesh
from xds_server.rotation import Phase
from xds_server.rpc import Call, CallEnded, Handler, RpcError, RpcServer, Transport
from xds_server.xds_credentials import ServerTls
from xds_server.xds_metrics import XdsMetrics
from xds_server.xds_record import ClientStatus, Log, StreamRecord
from xds_server.xds_session import Peer, Ports, Session

# Service -> method -> variant and, where the stream serves a single type, that type.
SERVICES: dict[str, dict[str, tuple[type[Stream], str]]] = {
    "envoy.service.discovery.v3.AggregatedDiscoveryService": {
        "StreamAggregatedResources": (SotwStream, ""),
        "DeltaAggregatedResources": (DeltaStream, ""),
    },
    "envoy.service.secret.v3.SecretDiscoveryService": {
        "StreamSecrets": (SotwStream, SECRET),
        "DeltaSecrets": (DeltaStream, SECRET),
    },
}

# An Envoy without ADS opens one stream per secret that it names; more than this is a client gone wild.
MAX_STREAMS_PER_CLIENT = 64
# Changes come in bursts (a renewal of all identities, a deployment): wait for a pause, but not for ever.
QUIET_SECONDS = 0.020
MAX_DELAY_SECONDS = 0.500
STOP_SECONDS = 2.0
# How often a rotation looks whether everybody has answered: 3 us per stream, nothing while there is none.
LOOK_SECONDS = 0.05


def _stopping() -> ProtocolError:
    return ProtocolError("UNAVAILABLE", "the coordinator is stopping: connect again")


class XdsServer:
    """Serves one Mesh. `start` once, `stop` once."""

    def __init__(
        self,
        mesh: Mesh,
        transport: Transport,
        log: Log,
        metrics: XdsMetrics,
        *,
        identifier: str = "marblemesh-coordinator",
    ) -> None:
        self._mesh = mesh
        self._transport = transport
        self._log = log
        self._metrics = metrics
        self._identifier = identifier
        self._sessions: set[Session] = set()
        self._streams: Counter[Client] = Counter()
        self._server: RpcServer | None = None
        self._tls: ServerTls | None = None
        self._ca: CertificateAuthority | None = None
        self._changed = asyncio.Event()
        self._expiry = asyncio.Event()
        self._rotating = asyncio.Event()
        self._unwatch: Callable[[], object] = lambda: None
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def start(self, host: str, port: int, ca: CertificateAuthority) -> int:
        """Listen; returns the port (useful with 0). Raises OSError if the address cannot be had."""
        self._ca = ca
        self._tls = ServerTls(ca, self._mesh.trusted_certificates(), self._mesh.now())
        server = self._transport(self._handlers(), self._tls)
        bound = await server.start(host, port)
        self._server = server
        self._unwatch = self._mesh.watch(self._on_change)
        loop = asyncio.get_running_loop()
        self._tasks = {
            loop.create_task(self._push_changes()),
            loop.create_task(self._expire_endpoints()),
            loop.create_task(self._follow_rotation()),
        }
        for task in self._tasks:
            task.add_done_callback(self._on_task_end)
        return bound

    async def stop(self) -> None:
        """End all streams (clients are told to come back) and stop listening."""
        self._stopping = True
        self._unwatch()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self._log.info("xds server stops", streams=len(self._sessions))
        for session in self._sessions:
            session.end(_stopping())
        if self._server is not None:
            await self._server.stop(STOP_SECONDS)
            self._server = None

    def status(self) -> tuple[ClientStatus, ...]:
        """Every open stream: who has what, and who rejected what."""
        return tuple(sorted((s.status for s in self._sessions), key=lambda s: (s.client, s.since)))

    # ---- changes

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._metrics.failures.labels("internal").inc()
            self._log.error("xds server task failed, changes are no longer pushed", exc_info=fault)

    def _on_change(self) -> None:
        if self._mesh.ca is not self._ca:
            self._follow_ca()  # now: who was just activated under the new one is here before the next push
        self._changed.set()
        self._expiry.set()
        self._rotating.set()

    async def _push_changes(self) -> None:
        while True:
            await self._changed.wait()
            await self._pause()
            self._follow_ca()
            for session in self._sessions:
                session.changed()

    def _follow_ca(self) -> None:
        """The certificate that we show, and those that let a client in; before anybody is given one of a new root."""
        if self._tls is None:
            return
        trusted, ca = self._mesh.trusted_certificates(), self._mesh.ca
        if ca is not None and ca is not self._ca:
            self._ca = ca
            self._tls.use_ca(ca, trusted, self._mesh.now())
        else:
            self._tls.trust(trusted)

    async def _follow_rotation(self) -> None:
        """Take a rotation of roots from phase to phase as the clients answer."""
        while True:
            if self._mesh.rotation.phase is Phase.SETTLED:
                self._metrics.rotation_phase.set(Phase.SETTLED)
                self._rotating.clear()
                await self._rotating.wait()
            else:
                await asyncio.sleep(LOOK_SECONDS)
                self._advance_rotation()

    def _advance_rotation(self) -> None:
        before = self._mesh.rotation
        self._metrics.rotation_phase.set(before.phase)
        answered = all(session.trusts_as_told for session in self._sessions)
        if not self._mesh.advance(answered=answered):
            return
        after = self._mesh.rotation
        seconds = 0.0 if before.since is None else (self._mesh.now() - before.since).total_seconds()
        self._metrics.rotation_phase.set(after.phase)
        self._metrics.rotation_seconds.labels(before.phase.name.lower()).observe(seconds)
        self._metrics.rotation_behind.inc(after.behind - before.behind)
        log = self._log.warning if after.behind > before.behind else self._log.info
        log("rotation of the marble root goes on", done=before.phase.name.lower(), seconds=round(seconds, 3))

    async def _pause(self) -> None:
        """Until nothing changed for the quiet time, or the longest delay has passed."""
        loop = asyncio.get_running_loop()
        end = loop.time() + MAX_DELAY_SECONDS
        while self._changed.is_set() and loop.time() < end:
            self._changed.clear()
            try:
                async with asyncio.timeout(min(QUIET_SECONDS, end - loop.time())):
                    await self._changed.wait()
            except TimeoutError:
                return
        self._changed.clear()

    async def _expire_endpoints(self) -> None:
        while True:
            due = self._mesh.expire()
            self._expiry.clear()
            seconds = None if due is None else max((due - self._mesh.now()).total_seconds(), 0.05)
            try:
                async with asyncio.timeout(seconds):
                    await self._expiry.wait()
            except TimeoutError:
                continue

    # ---- streams

    def _handlers(self) -> dict[str, Handler]:
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
        try:
            await self._run(call, kind, implied_type)
        except AccessDenied as e:
            self._metrics.denied.labels(e.reason).inc()
            self._log.info("xds client denied", reason=e.reason, peer=call.peer, error=str(e))
            raise RpcError(e.status, str(e)) from None
        except ProtocolError as e:
            self._metrics.failures.labels(e.status.lower()).inc()
            if not self._stopping:
                self._log.info("xds stream ended", status=e.status, peer=call.peer, error=str(e))
            raise RpcError(e.status, str(e)) from None
        except CallEnded:
            raise
        except Exception as e:  # a bug: one stream ends, the others go on; its text stays here
            self._metrics.failures.labels("internal").inc()
            self._log.error("xds stream failed", peer=call.peer, exc_info=e)
            raise RpcError("INTERNAL", "internal error") from None

    async def _run(self, call: Call, kind: type[Stream], implied_type: str) -> None:
        peer = self._authenticate(call)
        if self._stopping:
            raise _stopping()
        if self._streams[peer.client] >= MAX_STREAMS_PER_CLIENT:
            raise AccessDenied("RESOURCE_EXHAUSTED", "too_many_streams", "too many streams of this client")
        stream = kind(
            identifier=self._identifier,
            nonce_prefix=f"{secrets.token_hex(4)}-",
            implied_type=implied_type,
            entitled=peer.client.entitled,
        )
        variant = kind.__name__.removesuffix("Stream").lower()
        record = StreamRecord(peer.client, variant, self._mesh.now(), self._log, self._metrics)
        session = Session(peer, stream, Ports(call.read, call.write), self._mesh, record)
        gauge = self._metrics.streams.labels(variant, peer.client.role.value)
        self._sessions.add(session)
        self._streams[peer.client] += 1
        gauge.inc()
        try:
            await session.run()
        finally:
            gauge.dec()
            self._sessions.discard(session)
            self._streams[peer.client] -= 1
            if not self._streams[peer.client]:
                del self._streams[peer.client]
            self._expiry.set()

    def _authenticate(self, call: Call) -> Peer:
        try:
            certificate = x509.load_der_x509_certificate(call.certificate_der or b"")
        except X509_ERRORS:
            raise AccessDenied("UNAUTHENTICATED", "no_certificate", "no usable client certificate") from None
        return Peer(self._mesh.authenticate(certificate), certificate.not_valid_after_utc)
