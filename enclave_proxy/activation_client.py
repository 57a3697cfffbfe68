# SPDX-License-Identifier: Apache-2.0
"""The Marble API from the Marble's side: one call, `/rpc.Marble/Activate`.

TLS shows the certificate that the quote vouches for. The server is not verified here unless its key was pinned by
attestation: MarbleRun's premain does not do it either, and what protects a Marble without a pin is only that its peers
trust no other mesh's certificates.
"""

from __future__ import annotations

import hmac
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from google.protobuf.message import DecodeError
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError

from enclave_proxy.config import HostPort
from enclave_proxy.errors import ActivationRefused, ActivationUnavailable, CoordinatorNotTrusted, ParametersError
from enclave_proxy.grpc_channel import CHANNEL_ERRORS, SecureChannel, describe, receive
from enclave_proxy.own_certificate import OwnCertificate
from sds.material import TrustBundle
from sds.tls import client_context
from sds.wire.marble_pb2 import ActivationRequest, ActivationResponse, Parameters

ACTIVATE = "/rpc.Marble/Activate"
# gRPC's own default limit on both sides in MarbleRun.
MAX_REPLY = 4 * 1024 * 1024
CONNECT_TIMEOUT = 10.0
# The Coordinator verifies the quote (ms) but may have to fetch collateral first (seconds).
CALL_TIMEOUT = 60.0

# Answers after which asking again may help: nobody there, no manifest yet, overloaded, or lost on the way.
_LATER = frozenset(
    {
        Status.UNAVAILABLE,
        Status.FAILED_PRECONDITION,
        Status.DEADLINE_EXCEEDED,
        Status.RESOURCE_EXHAUSTED,
        Status.ABORTED,
        Status.CANCELLED,
        Status.UNKNOWN,
    }
)


@dataclass(frozen=True, slots=True)
class ActivationClient:
    """Asks one Coordinator. `server_key`: the public key that its certificate must have (None: not pinned)."""

    address: HostPort
    own: OwnCertificate
    server_key: bytes | None = field(default=None)  # SubjectPublicKeyInfo DER

    async def activate(self, quote: bytes, marble_type: str, uuid: str) -> Parameters:
        """One attempt. Raises ActivationUnavailable (ask again), ActivationRefused or CoordinatorNotTrusted (final)."""
        request = ActivationRequest(quote=quote, csr=self.own.csr, marble_type=marble_type, uuid=uuid)
        try:
            reply = await self._call(request.SerializeToString())
        except GRPCError as error:
            kind = ActivationUnavailable if error.status in _LATER else ActivationRefused
            raise kind(f"the Coordinator at {self.address} answers {describe(error)}") from error
        except _UntrustedServer as error:
            raise CoordinatorNotTrusted(str(error)) from error
        except CHANNEL_ERRORS as error:
            raise ActivationUnavailable(f"no Coordinator at {self.address}: {describe(error)}") from error
        try:
            return ActivationResponse.FromString(reply).parameters
        except DecodeError as error:
            raise ParametersError(
                f"the reply of the Coordinator at {self.address} is not an ActivationResponse"
            ) from error

    async def _call(self, request: bytes) -> bytes:
        channel = SecureChannel(self.address, self._context(), self._check(), sni=None, timeout=CONNECT_TIMEOUT)
        try:
            stream = channel.request(ACTIVATE, Cardinality.UNARY_UNARY, bytes, bytes, timeout=CALL_TIMEOUT)
            async with stream:
                await stream.send_message(request, end=True)
                reply = await receive(stream, MAX_REPLY)
                if stream.trailing_metadata is None:
                    await stream.recv_trailing_metadata()
        finally:
            channel.close()
        if reply is None:
            raise GRPCError(Status.UNKNOWN, "an answer without a message")
        return reply

    def _context(self) -> ssl.SSLContext:
        # TLS 1.2 for other Coordinators. The chain is not looked at; the handshake still proves that the server holds
        # the key of the certificate it shows, which is what `_check` then compares.
        identity = self.own.identity
        context = client_context(identity, TrustBundle(identity.chain), minimum=ssl.TLSVersion.TLSv1_2)
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        return context

    def _check(self) -> Callable[[x509.Certificate], None]:
        pinned = self.server_key

        def check(certificate: x509.Certificate) -> None:
            if pinned is not None and not hmac.compare_digest(public_key_bytes(certificate), pinned):
                raise _UntrustedServer(
                    f"the Marble API at {self.address} does not have the key of the attested Coordinator: "
                    "somebody else answers there, or the Coordinator has just been replaced"
                )

        return check


class _UntrustedServer(ssl.SSLError):
    """The server's key is not the pinned one."""


def public_key_bytes(certificate: x509.Certificate) -> bytes:
    """A certificate's key as one comparable value (SubjectPublicKeyInfo DER)."""
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
