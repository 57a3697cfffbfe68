# SPDX-License-Identifier: Apache-2.0
"""Single checks on DCAP's certificates, each with a message that names the certificate.

``dcap-qvl`` verifies chains, dates and revocation once more, as a whole: its answer counts, but says only "chain".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from sds.attestation.errors import Expired, Untrusted
from sds.x509_errors import X509_ERRORS

TCB_SIGNER = "Intel SGX TCB Signing"
PCK_LEAF = "Intel SGX PCK Certificate"
PCK_ISSUERS = ("Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA")


def common_name(certificate: x509.Certificate) -> str:
    """The one common name of the subject, or an empty text, which no role has."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def public_key(certificate: x509.Certificate) -> bytes:
    """SubjectPublicKeyInfo in DER."""
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def describe(certificate: x509.Certificate) -> str:
    """Name and key, since anybody can make a certificate with any name."""
    key = hashlib.sha256(public_key(certificate)).hexdigest()[:16]
    return f"{certificate.subject.rfc4514_string()!r} (key {key})"


def must_issue(issuer: x509.Certificate, certificate: x509.Certificate, what: str) -> None:
    """:raises Untrusted: if ``certificate`` does not name and verify under ``issuer``."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (*X509_ERRORS, InvalidSignature) as e:
        raise Untrusted(f"{what}: not issued by {describe(issuer)}") from e


def must_have_role(certificate: x509.Certificate, roles: Iterable[str], what: str) -> None:
    """:raises Untrusted: if the certificate's common name is none of Intel's names for this role."""
    if common_name(certificate) not in roles:
        expected = " or ".join(repr(role) for role in roles)
        raise Untrusted(f"{what}: the certificate is for {common_name(certificate)!r}, expected {expected}")


def must_be_in_date(certificate: x509.Certificate, now: datetime, what: str) -> None:
    """:raises Expired: if the certificate is not valid at this time."""
    if now < certificate.not_valid_before_utc:
        raise Expired(f"{what}: not valid before {certificate.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}")
    if now > certificate.not_valid_after_utc:
        raise Expired(f"{what}: expired at {certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}")


def must_not_be_revoked(
    certificate: x509.Certificate, crls: Iterable[x509.CertificateRevocationList], what: str
) -> None:
    """:raises Untrusted: if its issuer's list has it. A missing list is for the chain verification to refuse."""
    for crl in crls:
        if crl.issuer != certificate.issuer:
            continue
        try:
            entry = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
        except X509_ERRORS as e:
            raise Untrusted(f"{what}: the revocation list of its issuer cannot be read") from e
        if entry is not None:
            raise Untrusted(f"{what}: revoked by {crl.issuer.rfc4514_string()!r}")
