# SPDX-License-Identifier: Apache-2.0
"""The stream to the Coordinator: incremental ADS over mTLS, kept up for as long as the worker lives.

The server must chain to the Coordinator root of our activation and carry the DNS name that no Marble can get. When the
stream is gone, everything in force stays in force; we come back with the newest identity and say what we hold already.
A stream that the server ends with OK has been open for as long as it lets one be (so that workers spread over several
Coordinators): that is no fault, and nothing is said about it.

A Coordinator that has lost its state has a new CA, so it looks like an impostor, and may be one. With a pin there is a
way to tell: attest it, and if it is the one that was meant, activate again and go over to its CA. Without a pin the
last good configuration stays and the log says why: following whatever root shows up would let the host swap the
Coordinator.

A worker that has started without the Coordinator has not heard it in this life. Until it does, it goes over as it would
have started: without a pin it takes whoever answers at its word, and a refusal of its activation turns it out.

A Coordinator that is ours and says that this Marble was turned out of the mesh (PERMISSION_DENIED, "revoked: ...") is
believed at once and for good: the same attestation would be refused again.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable

from cryptography import x509
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from structlog.typing import FilteringBoundLogger

from enclave_proxy.backoff import Backoff
from enclave_proxy.bootstrap import Credentials
from enclave_proxy.config import HostPort
from enclave_proxy.errors import ActivationRefused, ProxyError
from enclave_proxy.grpc_channel import (
    CHANNEL_ERRORS,
    RawStream,
    SecureChannel,
    describe,
    ended_in_order,
    receive,
    tls_reason,
)
from enclave_proxy.identity_store import IdentityStore
from enclave_proxy.session import Session
from sds.discovery_client import MAX_RESPONSE_BYTES
from sds.discovery_types import REVOKED
from sds.errors import SdsError
from sds.identity import COORDINATOR_DNS_NAME
from sds.tls import client_context

DELTA_ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
CONNECT_TIMEOUT = 10.0
# How soon something that the relay could not do (a port that was taken) is tried again.
RETRY_APPLY = 5.0

# Answers that mean: this server does not know us, or no longer.
_DISOWNED = frozenset({Status.UNAUTHENTICATED, Status.PERMISSION_DENIED})

Reactivate = Callable[[], Awaitable[Credentials]]


class XdsClient:
    """Runs until cancelled, or until the Coordinator has turned this Marble out: then `revoked` says why.

    `reactivate` gets new credentials by another activation; `pinned`: from a Coordinator that is attested.
    """

    def __init__(
        self,
        address: HostPort,
        store: IdentityStore,
        session: Session,
        backoff: Backoff,
        reactivate: Reactivate,
        log: FilteringBoundLogger,
        *,
        pinned: bool,
    ) -> None:
        self._address = address
        self._store = store
        self._session = session
        self._backoff = backoff
        self._reactivate = reactivate
        self._pinned = pinned
        self._log = log
        self._applying = asyncio.Lock()
        self._told = ""
        self.revoked = ""
        self.progress = asyncio.Event()  # set, and replaced by nobody, when the first configuration is complete

    async def run(self) -> None:
        """Keep the stream up; returns only if this Marble was turned out."""
        async with asyncio.TaskGroup() as group:
            retrying = group.create_task(self._retry_applying())
            await self._reconnect()
            retrying.cancel()

    async def _reconnect(self) -> None:
        status = self._session.status
        while True:
            status.attempts += 1
            try:
                await self._stream()
            except (*CHANNEL_ERRORS, SdsError) as error:
                if (revoked := revocation(error)) is not None:
                    self.revoked = revoked
                    return
                await self._lost(error)
                if self.revoked:
                    return
            finally:
                status.connected = False
            await asyncio.sleep(self._backoff.next())

    async def _lost(self, error: BaseException) -> None:
        reason = describe(error)
        self._session.status.last_error = reason
        # The same reason for minutes on end is one line, not one per attempt.
        (self._log.debug if reason == self._told else self._log.warning)(
            "control plane lost, traffic goes on with what is in force", address=str(self._address), reason=reason
        )
        self._told = reason
        if not is_disowned(error):
            return
        if not (self._pinned or self._session.restored):
            self._log.debug(
                "the coordinator may have lost its state, or be another one: without a pin (--era-config) this worker "
                "keeps its identity and does not follow"
            )
            return
        try:
            credentials = await self._reactivate()
        except ProxyError as refused:
            if self._session.restored and isinstance(refused, ActivationRefused):
                self.revoked = f"{REVOKED}it is not activated again: {refused}"
                return
            self._log.warning("cannot activate again yet", reason=str(refused))
            return
        self._session.status.reactivations += 1
        async with self._applying:
            await self._session.adopt(credentials)
        self._backoff.reset()
        attested = "with an attested coordinator" if self._pinned else "with the coordinator"
        self._log.warning(f"activated again {attested}; files, environment and app stay as they are")

    async def _stream(self) -> None:
        credentials = self._store.credentials
        context = client_context(credentials.identity, credentials.coordinator_root)
        context.set_alpn_protocols(["h2"])
        channel = SecureChannel(
            self._address, context, check_coordinator, sni=COORDINATOR_DNS_NAME, timeout=CONNECT_TIMEOUT
        )
        stream = channel.request(DELTA_ADS, Cardinality.STREAM_STREAM, bytes, bytes)
        try:
            async with stream:
                self._session.client.connected()
                await self._send(stream)
                while (body := await receive(stream, MAX_RESPONSE_BYTES)) is not None:
                    self._greet()
                    async with self._applying:
                        await self._session.handle(self._session.client.receive_bytes(body))
                    await self._send(stream)
                    if self._session.configured:
                        self.progress.set()
                await stream.end()
                await stream.recv_trailing_metadata()
        except StreamTerminatedError:
            if not ended_in_order(stream):
                raise
        finally:
            channel.close()
        if not self._session.status.connected:
            raise ConnectionResetError("the server ended the stream before it said anything")
        self._log.debug("control plane ended the stream in good order", address=str(self._address))

    def _greet(self) -> None:
        if not self._session.status.connected:
            self._session.status.connected = True
            self._told = ""
            self._backoff.reset()
            self._log.info("control plane connected", address=str(self._address))

    async def _send(self, stream: RawStream) -> None:
        while (request := self._session.client.take()) is not None:
            await stream.send_message(request)

    async def _retry_applying(self) -> None:
        while True:
            await asyncio.sleep(RETRY_APPLY)
            async with self._applying:
                await self._session.retry()
            if self._session.configured:
                self.progress.set()


def revocation(error: BaseException) -> str | None:
    """What the Coordinator says of why this Marble is no longer part of the mesh; None if it says no such thing."""
    if isinstance(error, GRPCError) and error.status is Status.PERMISSION_DENIED:
        text = error.message or ""
        return text if text.startswith(REVOKED) else None
    return None


def is_disowned(error: BaseException) -> bool:
    """Does this failure mean that server and worker no longer belong to the same mesh?"""
    match error:
        case ssl.SSLCertVerificationError():
            return True
        case GRPCError():
            return error.status in _DISOWNED
        case ssl.SSLError():
            # An alert of the server about our certificate: unknown CA, bad or missing certificate.
            return "ALERT" in tls_reason(error)
    return False


def check_coordinator(certificate: x509.Certificate) -> None:
    """Raise unless the (already verified) certificate is the Coordinator's own; Marbles chain to the same root."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        dns_names = names.get_values_for_type(x509.DNSName)
    except (x509.ExtensionNotFound, ValueError):
        dns_names = []
    if COORDINATOR_DNS_NAME not in dns_names:
        error = ssl.SSLCertVerificationError(f"the server is not {COORDINATOR_DNS_NAME}")
        error.verify_message = f"the server's certificate does not carry the name {COORDINATOR_DNS_NAME}"
        raise error
