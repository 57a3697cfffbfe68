# SPDX-License-Identifier: Apache-2.0
"""A Marble as the Coordinator meets it: self-signed TLS certificate, quote over its hash, one Activate call.

Deliberately not our worker's code: grpclib's client over the standard library's TLS, as any other implementation would.
"""

from __future__ import annotations

import ssl
import tempfile
import uuid as uuids
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from grpclib.client import Channel, UnaryUnaryMethod

from sds.attestation.issuer import Issuer
from sds.attestation.report_data import marble_report_data
from sds.wire.marble_pb2 import ActivationRequest, ActivationResponse, Parameters


@dataclass(frozen=True, slots=True)
class MarbleCredentials:
    """A key with a self-signed certificate and a certificate request, made as MarbleRun's Marbles do."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate
    csr: bytes = field(repr=False)

    @classmethod
    def make(
        cls,
        dns_names: Sequence[str] = ("localhost",),
        ip_addresses: Sequence[str] = ("127.0.0.1", "::1"),
        *,
        expired: bool = False,
    ) -> Self:
        key = ec.generate_private_key(ec.SECP384R1())
        now = datetime.now(UTC)
        start, end = (
            (now - timedelta(days=2), now - timedelta(days=1)) if expired else (now, now + timedelta(days=36500))
        )
        names = x509.SubjectAlternativeName(
            [*(x509.DNSName(n) for n in dns_names), *(x509.IPAddress(ip_address(a)) for a in ip_addresses)]
        )
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "MarbleRun Marble")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .public_key(key.public_key())
            .add_extension(names, critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .sign(key, SHA384())
        )
        request = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([]))
            .add_extension(names, critical=False)
            .sign(key, SHA384())
        )
        return cls(key, certificate, request.public_bytes(Encoding.DER))

    @property
    def certificate_der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    def quote(self, issuer: Issuer) -> bytes:
        """A quote bound to this certificate, as it goes over the wire."""
        return issuer.issue(marble_report_data(self.certificate_der)).to_wire()

    def tls(self, alpn: str = "h2") -> ssl.SSLContext:
        """The client side of the Marble API's TLS: shows this certificate, verifies nothing."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if alpn:
            context.set_alpn_protocols([alpn])
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "client.pem"
            key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            path.write_bytes(key + self.certificate.public_bytes(Encoding.PEM))
            context.load_cert_chain(path)
        return context


async def activate(
    host: str,
    port: int,
    credentials: MarbleCredentials,
    quote: bytes,
    marble_type: str,
    uuid: str | None = None,
    *,
    within: float = 10.0,
) -> Parameters:
    """One Activate call on a connection of its own; raises grpclib.GRPCError with the Coordinator's answer."""
    request = ActivationRequest(
        quote=quote, csr=credentials.csr, marble_type=marble_type, uuid=str(uuids.uuid4()) if uuid is None else uuid
    )
    async with Channel(host, port, ssl=credentials.tls()) as channel:
        method = UnaryUnaryMethod(channel, "/rpc.Marble/Activate", ActivationRequest, ActivationResponse)
        response: ActivationResponse = await method(request, timeout=within)
    return response.parameters
