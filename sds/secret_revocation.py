# SPDX-License-Identifier: Apache-2.0
"""Revocation lists and OCSP staples that go out with a secret: parsed, current, and about the right certificates.

Envoy takes a CRL that it cannot parse and then refuses everybody, and so it does if a CA of the chain has no list (RFC
5280, 6.3.3: what cannot be determined is not valid). Both are therefore found here, before it leaves.
"""

from __future__ import annotations

import re
from datetime import datetime

from cryptography import x509
from cryptography.x509 import ocsp

from sds.material import MaterialError, TrustBundle, is_ca
from sds.x509_errors import X509_ERRORS

# Every CA of a bundle has one list; a list of 10 000 serials is 400 KB in PEM.
MAX_CRL_PEM = 2 * 1024 * 1024
MAX_CRLS = 64
# A response with its responder's certificate is 2 KB.
MAX_OCSP = 64 * 1024

_BLOCK = re.compile(rb"-----BEGIN X509 CRL-----\r?\n(?:[A-Za-z0-9+/=]{1,76}\r?\n)+-----END X509 CRL-----")


def check_crl(pem: bytes, bundle: TrustBundle, now: datetime, *, leaves_only: bool) -> None:
    """Raise MaterialError unless these are current lists, each signed by a CA of the bundle, and every CA has one.

    With `leaves_only` (`only_verify_leaf_cert_crl`) one list is enough: that of whichever CA issues leaves.
    """
    cas = [certificate for certificate in bundle.certificates if is_ca(certificate)]
    covered = {_issuer(crl, cas, now) for crl in _parse(pem)}
    if not leaves_only and len(covered) < len(set(cas)):
        raise MaterialError(
            f"revocation lists cover {len(covered)} of {len(set(cas))} CAs: Envoy would refuse everybody"
        )


def check_ocsp(der: bytes, leaf: x509.Certificate, now: datetime) -> None:
    """Raise MaterialError unless this response says that the leaf is good, and is current."""
    if len(der) > MAX_OCSP:
        raise MaterialError(f"OCSP staple of {len(der)} bytes, at most {MAX_OCSP} are accepted")
    try:
        response = ocsp.load_der_ocsp_response(der)
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            raise MaterialError("OCSP staple is not a successful response")
        serial, status = response.serial_number, response.certificate_status
        begin, end = response.this_update_utc, response.next_update_utc
    except X509_ERRORS:
        raise MaterialError("OCSP staple cannot be parsed") from None
    if serial != leaf.serial_number:
        raise MaterialError("OCSP staple is about another certificate")
    if status is not ocsp.OCSPCertStatus.GOOD:
        raise MaterialError("OCSP staple does not say that the certificate is good")
    _check_current("OCSP staple", begin, end, now)


def _parse(pem: bytes) -> list[x509.CertificateRevocationList]:
    if len(pem) > MAX_CRL_PEM:
        raise MaterialError(f"revocation lists of {len(pem)} bytes, at most {MAX_CRL_PEM} are accepted")
    blocks = _BLOCK.findall(pem)
    if not blocks or _BLOCK.sub(b"", pem).strip():
        raise MaterialError("revocation list is not a plain sequence of PEM blocks, nothing else may stand in it")
    if len(blocks) > MAX_CRLS:
        raise MaterialError(f"{len(blocks)} revocation lists, at most {MAX_CRLS} are accepted")
    try:
        return [x509.load_pem_x509_crl(block) for block in blocks]
    except X509_ERRORS:
        raise MaterialError("revocation list cannot be parsed") from None


def _issuer(crl: x509.CertificateRevocationList, cas: list[x509.Certificate], now: datetime) -> x509.Certificate:
    try:
        _check_current("revocation list", crl.last_update_utc, crl.next_update_utc, now)
        for ca in cas:
            key = ca.public_key()
            if crl.issuer == ca.subject and crl.is_signature_valid(key):  # type: ignore[arg-type]  # any other: TypeError
                return ca
    except X509_ERRORS:
        raise MaterialError("revocation list cannot be parsed") from None
    raise MaterialError("revocation list was signed by no CA of the bundle")


def _check_current(what: str, begin: datetime | None, end: datetime | None, now: datetime) -> None:
    if begin is not None and now < begin:
        raise MaterialError(f"{what} is not valid before {begin:%Y-%m-%dT%H:%M:%SZ}")
    if end is not None and now > end:
        raise MaterialError(f"{what} was to be renewed before {end:%Y-%m-%dT%H:%M:%SZ}: Envoy would refuse everybody")
