# SPDX-License-Identifier: Apache-2.0
"""What a Marble asks for when it activates: the PKCS#10 request (RFC 2986), parsed and bounded.

Only the subject and the DNS and IP names are used. The public key is discarded (the Coordinator makes the key pair) and
so is every other kind of name: a Marble's URI name comes from the manifest and its attestation alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from sds.errors import SdsError
from sds.identity import RESERVED_DOMAIN, is_reserved_name
from sds.x509_errors import X509_ERRORS

# A request with a P-384 key and a handful of names is below 1 KB. 16 KiB allows for RSA-4096 and the 100 names.
MAX_CSR = 16 * 1024
MAX_NAMES = 100
MAX_SUBJECT_ATTRIBUTES = 32

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DNS_NAME = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*\.?")
IPAddress = IPv4Address | IPv6Address


class CsrError(SdsError):
    """A certificate request that is refused. The text continues "generating marble authentication secrets: "."""


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """What of a request goes into the certificate."""

    dns_names: tuple[str, ...]
    ip_addresses: tuple[IPAddress, ...]
    subject: x509.Name


def parse_csr(der: bytes) -> CertificateRequest:
    """Parse a DER request, verify its self-signature and check its names. Raises CsrError, with MarbleRun's texts
    `parsing CSR: …` and `signature over CSR is invalid`."""
    if len(der) > MAX_CSR:
        raise CsrError(f"parsing CSR: {len(der)} bytes, at most {MAX_CSR} are accepted")
    try:
        csr = x509.load_der_x509_csr(der)
        subject, names = csr.subject, _names(csr)
    except X509_ERRORS as e:
        raise CsrError(f"parsing CSR: {e}") from None
    try:
        valid = csr.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm):
        valid = False  # a key or algorithm that cannot be verified proves nothing
    if not valid:
        raise CsrError("signature over CSR is invalid")
    if len(list(subject)) > MAX_SUBJECT_ATTRIBUTES:
        raise CsrError(f"parsing CSR: subject has more than {MAX_SUBJECT_ATTRIBUTES} attributes")
    return CertificateRequest(*_checked(names), subject)


def _names(csr: x509.CertificateSigningRequest) -> x509.SubjectAlternativeName | None:
    try:
        return csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None


def _checked(names: x509.SubjectAlternativeName | None) -> tuple[tuple[str, ...], tuple[IPAddress, ...]]:
    if names is None:
        return (), ()
    if len(list(names)) > MAX_NAMES:
        raise CsrError(f"parsing CSR: more than {MAX_NAMES} names")
    dns_names = tuple(dict.fromkeys(names.get_values_for_type(x509.DNSName)))
    for name in dns_names:
        if len(name) > 253 or not _DNS_NAME.fullmatch(name):
            raise CsrError(f"parsing CSR: {name!r} is not a DNS name")
        if is_reserved_name(name):
            raise CsrError(
                f"parsing CSR: {name!r} is reserved, names under {RESERVED_DOMAIN} belong to the mesh itself"
            )
    return dns_names, tuple(dict.fromkeys(_address(a) for a in names.get_values_for_type(x509.IPAddress)))


def _address(value: IPv4Address | IPv6Address | IPv4Network | IPv6Network) -> IPAddress:
    if not isinstance(value, IPv4Address | IPv6Address):
        raise CsrError(f"parsing CSR: {value} is a network, expected an IP address")
    return value
