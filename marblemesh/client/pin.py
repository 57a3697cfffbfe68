# SPDX-License-Identifier: Apache-2.0
"""A pinned root certificate: read from the PEM of a chain file, as a Coordinator's quote answer brings it."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from marblemesh.client.errors import NotTrusted

# Two certificates have 2 KB.
MAX_PIN = 64 * 1024


def read_chain(pem: bytes) -> tuple[x509.Certificate, ...]:
    """The certificates of a PEM file, in its order. Raises NotTrusted if there is none."""
    if len(pem) > MAX_PIN:
        raise NotTrusted(f"certificate file has {len(pem)} bytes, at most {MAX_PIN} are allowed")
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except (ValueError, x509.InvalidVersion):
        raise NotTrusted("holds no PEM certificate: want the Coordinator's certificate chain") from None


def read_pin(pem: bytes) -> x509.Certificate:
    """The root among the certificates of a PEM file: the last one, which is self-signed. Raises NotTrusted."""
    root = read_chain(pem)[-1]
    try:
        root.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        raise NotTrusted("the last certificate is no self-signed root: want the Coordinator's chain") from None
    return root
