# SPDX-License-Identifier: Apache-2.0
"""The certificate that a Marble shows before it has an identity: self-signed, and vouched for by the quote alone.

The quote covers the SHA-256 of exactly this certificate's DER, so whoever completes a TLS handshake with it holds the
key that the quoted code made. It lives for one activation; key and certificate are never stored.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sds.keys import PrivateKey
from sds.material import Identity

# Nobody judges these dates (the quote is what counts), but clocks differ and TLS stacks complain about the future.
_BACKDATED = timedelta(hours=1)
_LIFETIME = timedelta(days=365)


@dataclass(frozen=True, slots=True)
class OwnCertificate:
    """Key, self-signed certificate (DER) and signing request (PKCS#10 DER), all of one P-384 key."""

    key: PrivateKey
    certificate: bytes
    csr: bytes

    @property
    def identity(self) -> Identity:
        """Certificate and key as TLS takes them."""
        return Identity(x509.load_der_x509_certificate(self.certificate).public_bytes(Encoding.PEM), self.key)

    @classmethod
    def create(cls, dns_names: Sequence[str], ip_addresses: Sequence[str], now: datetime) -> Self:
        """Make a key and speak for it, in the shapes that MarbleRun's premain uses."""
        key = PrivateKey.generate_p384()
        private = key.load()
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise TypeError(f"expected an elliptic-curve key, got {type(private).__name__}")
        names = x509.SubjectAlternativeName(
            [
                *(x509.DNSName(name) for name in dns_names),
                *(x509.IPAddress(ipaddress.ip_address(address)) for address in ip_addresses),
            ]
        )
        csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=False)
        return cls(
            key,
            _self_signed(private, names, now).public_bytes(Encoding.DER),
            csr.sign(private, hashes.SHA256()).public_bytes(Encoding.DER),
        )


def _self_signed(
    key: ec.EllipticCurvePrivateKey, names: x509.SubjectAlternativeName, now: datetime
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "MarbleRun Marble")])
    usage = x509.KeyUsage(
        digital_signature=True,
        key_agreement=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    start = now.astimezone(UTC).replace(microsecond=0) - _BACKDATED
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + _LIFETIME)
        .add_extension(names, critical=False)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
