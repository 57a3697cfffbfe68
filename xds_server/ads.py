# SPDX-License-Identifier: Apache-2.0
"""The Coordinator's xDS port: aggregated discovery and SDS, both variants, over mutual TLS.

    gRPC stream ─► authenticate (the certificate, nothing else) ─► Session ◄─ debounced changes ─ Mesh

Messages travel as raw bytes: `sds.discovery` parses the little it needs in microseconds. Clients never see an
exception's text, only the sentences of ProtocolError and AccessDenied.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable

import grpc
import grpc.aio
from cryptography import x509

from sds.ca import CertificateAuthority
from sds.discovery import MAX_REQUEST_BYTES, DeltaStream, ProtocolError, SotwStream, Stream
from sds.resources import SECRET
from sds.x509_errors import X509_ERRORS
from xds_server.mesh import AccessDenied, Client, Mesh
from xds_server.rotation import Phase
from xds_server.xds_credentials import ServerTls
from xds_server.xds_metrics import XdsMetrics
from xds_server.xds_session import ClientStatus, Log, Peer, Ports, Session

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

# The default of 1000 pending requests turns a reconnecting mesh away; 20 000 streams are a Coordinator's whole fleet.
_MAX_PENDING = 20_000
OPTIONS = (
    ("grpc.server.max_pending_requests", _MAX_PENDING),
    ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING),
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_concurrent_streams", 1000),
    ("grpc.so_reuseport", 0),  # a second Coordinator on the same port must fail, not share it
    # A dead peer is noticed after 50 s, and pings more often than every 10 s are refused.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)

_Handler = Callable[[object, "grpc.aio.ServicerContext[bytes, bytes]"], Awaitable[None]]


class XdsServer:
    """Serves one Mesh. `start` once, `stop` once."""

    def __init__(
        self, mesh: Mesh, log: Log, metrics: XdsMetrics, *, identifier: str = "marblemesh-coordinator"
    ) -> None:
        self._mesh = mesh
        self._log = log
        self._metrics = metrics
        self._identifier = identifier
        self._sessions: set[Session] = set()
        self._streams: Counter[Client] = Counter()
        self._server: grpc.aio.Server | None = None
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
        server = grpc.aio.server(options=OPTIONS)
        server.add_generic_rpc_handlers(tuple(self._service(name) for name in SERVICES))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = server.add_secure_port(address, self._tls.credentials())
        except RuntimeError:
            bound = 0
        if not bound:
            raise OSError(f"cannot listen on {address} for xDS: is the address this host's, and the port free?")
        self._unwatch = self._mesh.watch(self._on_change)
        await server.start()
        self._server = server
        loop = asyncio.get_running_loop()
        self._tasks = {
            loop.create_task(self._push_changes()),
            loop.create_task(self._expire_endpoints()),
            loop.create_task(self._follow_rotation()),
        }
        for task in self._tasks:
            task.add_done_callback(self._on_task_end)
        return int(bound)

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
            session.stop()
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

    def _service(self, name: str) -> grpc.GenericRpcHandler:
        # None as (de)serialiser: bytes in, bytes out.
        methods = {
            method: grpc.stream_stream_rpc_method_handler(self._handler(*how), None, None)
            for method, how in SERVICES[name].items()
        }
        return grpc.method_handlers_generic_handler(name, methods)

    def _handler(self, kind: type[Stream], implied_type: str) -> _Handler:
        async def handle(_requests: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
            status, text = await self._serve(context, kind, implied_type)
            if status is not grpc.StatusCode.OK:
                await context.abort(status, text)

        return handle

    async def _serve(
        self, context: grpc.aio.ServicerContext[bytes, bytes], kind: type[Stream], implied_type: str
    ) -> tuple[grpc.StatusCode, str]:
        try:
            await self._run(context, kind, implied_type)
        except AccessDenied as e:
            self._metrics.denied.labels(e.reason).inc()
            self._log.info("xds client denied", reason=e.reason, peer=context.peer(), error=str(e))
            return grpc.StatusCode[e.status], str(e)
        except ProtocolError as e:
            self._metrics.failures.labels(e.status.lower()).inc()
            if not self._stopping:
                self._log.info("xds stream ended", status=e.status, peer=context.peer(), error=str(e))
            return grpc.StatusCode[e.status], str(e)
        except grpc.aio.UsageError:
            return grpc.StatusCode.OK, ""  # the client is gone while we were reading or writing
        except Exception as e:  # a bug: one stream ends, the others go on; its text stays here
            self._metrics.failures.labels("internal").inc()
            self._log.error("xds stream failed", peer=context.peer(), exc_info=e)
            return grpc.StatusCode.INTERNAL, "internal error"
        return grpc.StatusCode.OK, ""

    async def _run(
        self, context: grpc.aio.ServicerContext[bytes, bytes], kind: type[Stream], implied_type: str
    ) -> None:
        peer = self._authenticate(context)
        if self._stopping:
            raise ProtocolError("UNAVAILABLE", "the coordinator is stopping: connect again")
        if self._streams[peer.client] >= MAX_STREAMS_PER_CLIENT:
            raise AccessDenied("RESOURCE_EXHAUSTED", "too_many_streams", "too many streams of this client")
        stream = kind(
            identifier=self._identifier,
            nonce_prefix=f"{secrets.token_hex(4)}-",
            implied_type=implied_type,
            entitled=peer.client.entitled,
        )
        session = Session(peer, stream, _ports(context), self._mesh, self._log, self._metrics)
        gauge = self._metrics.streams.labels(kind.__name__.removesuffix("Stream").lower(), peer.client.role.value)
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

    def _authenticate(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> Peer:
        found = context.auth_context().get("x509_pem_cert", ())
        try:
            certificate = x509.load_pem_x509_certificate(found[0])
        except (IndexError, *X509_ERRORS):
            raise AccessDenied("UNAUTHENTICATED", "no_certificate", "no usable client certificate") from None
        return Peer(self._mesh.authenticate(certificate), certificate.not_valid_after_utc)


def _ports(context: grpc.aio.ServicerContext[bytes, bytes]) -> Ports:
    async def read() -> bytes | None:
        data = await context.read()
        return None if data is grpc.aio.EOF else data

    async def write(body: bytes) -> None:
        await context.write(body)

    return Ports(read, write)
