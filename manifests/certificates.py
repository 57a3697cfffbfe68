# SPDX-License-Identifier: Apache-2.0
"""The certificates that a manifest carries: one PEM block of a user or of a gateway, parsed and looked at."""

from __future__ import annotations

import warnings
from typing import TypeVar
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.utils import CryptographyDeprecationWarning

_E = TypeVar("_E", bound=x509.ExtensionType)

# Everything that cryptography raises for bytes that are no certificate, or one that it does not know; found by fuzzing.
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)

# An X.509 certificate with RSA-4096 and many names has about 4 KB; PEM adds a third.
MAX_PEM = 64 * 1024


def load_certificate(pem: str) -> x509.Certificate:
    """The first certificate of a PEM text, its public key readable. Raises ValueError."""
    if len(pem) > MAX_PEM:
        raise ValueError(f"certificate has {len(pem)} characters, at most {MAX_PEM} are allowed")
    try:
        with warnings.catch_warnings():
            # It warns of what a later version will refuse, which is no news for the user of this one.
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            certificate = x509.load_pem_x509_certificate(pem.encode())
            certificate.public_key()
            _ = certificate.extensions, certificate.subject, certificate.not_valid_after_utc
    except _UNREADABLE as error:
        raise ValueError(f"not a PEM certificate ({error})") from None
    return certificate


def check_gateway(certificate: x509.Certificate) -> None:
    """May this become a trust anchor of the xDS port without making anybody else trusted? Raises ValueError.

    A gateway's certificate is its own anchor, so a CA there could issue certificates for any name. A version 1
    certificate counts as CA in OpenSSL when self-signed, and one that may sign certificates is one whatever it says.
    """
    if certificate.version is not x509.Version.v3:
        raise ValueError("is an X.509 v1 certificate, which libraries take for a CA: want v3 with CA:FALSE")
    basic = _extension(certificate, x509.BasicConstraints)
    usage = _extension(certificate, x509.KeyUsage)
    if (basic is not None and basic.ca) or (usage is not None and usage.key_cert_sign):
        raise ValueError(
            "is a CA certificate: want an end-entity certificate "
            "(with openssl req -x509: -addext basicConstraints=critical,CA:FALSE)"
        )
    names = _extension(certificate, x509.SubjectAlternativeName)
    uris = [] if names is None else names.get_values_for_type(x509.UniformResourceIdentifier)
    if not uris and not (names and names.get_values_for_type(x509.DNSName)):
        raise ValueError("has no URI or DNS name in its subject alternative names, by which Marbles could know it")
    for uri in uris:
        if _is_ours(uri):
            raise ValueError(f"claims the identity {uri[:200]!r}, which only the Coordinator may issue")
    for name in names.get_values_for_type(x509.DNSName) if names else ():
        if name.lower().rstrip(".").endswith("marblemesh.internal"):
            raise ValueError(f"claims the name {name[:200]!r}, which only the Coordinator may issue")


def _is_ours(uri: str) -> bool:
    try:
        parts = urlsplit(uri)
    except ValueError:
        return True  # no telling what a peer's parser makes of it
    return parts.scheme.lower() == "spiffe" and parts.path.lower().lstrip("/").split("/")[0] in (
        "marble",
        "coordinator",
    )


def _extension(certificate: x509.Certificate, kind: type[_E]) -> _E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
