# SPDX-License-Identifier: Apache-2.0
"""The 64 bytes of REPORTDATA: the only place that builds them, and the only place that compares them.

The TEE signs these bytes together with the measurement, so they are what ties evidence to one certificate. Both formats
are MarbleRun's: SHA-256 in the first half, zeros in the second.

A quote for one purpose does not serve the other, whatever nonce a stranger chooses: the first hashes a certificate, the
second a certificate followed by the nonce, and a DER certificate is never the beginning of another one, since it states
its own length. Only the Coordinator's quote without nonce could pass as a Marble's, for whoever holds the root's key.
"""

from __future__ import annotations

import hashlib
import hmac

from sds.attestation.claims import Claims
from sds.attestation.errors import BindingMismatch

REPORT_DATA_SIZE = 64

# It comes from the URL of a stranger. 32 random bytes are all that anybody needs, but some put a sentence there.
MAX_NONCE = 1024


def marble_report_data(tls_certificate_der: bytes) -> bytes:
    """What a Marble's quote binds: the very certificate that it shows in TLS to the Coordinator."""
    return _hashed(tls_certificate_der)


def coordinator_report_data(root_certificate_der: bytes, nonce: bytes = b"") -> bytes:
    """What the Coordinator's quote binds: its root certificate and, when asked with one, the asker's nonce.

    :raises ValueError: if the nonce is longer than 1 KiB.
    """
    if len(nonce) > MAX_NONCE:
        raise ValueError(f"nonce of {len(nonce)} bytes, at most {MAX_NONCE} are allowed")
    return _hashed(root_certificate_der + nonce)


def check_report_data(claims: Claims, expected: bytes) -> None:
    """Compare all 64 bytes, not only the hash in front: the rest must be the zeros that the format says.

    :raises BindingMismatch: if the evidence was made for something else.
    """
    if len(expected) != REPORT_DATA_SIZE:
        raise ValueError(f"expected report data has {len(expected)} bytes, not {REPORT_DATA_SIZE}")
    if not hmac.compare_digest(claims.report_data, expected):
        raise BindingMismatch(
            "report data: the quote is bound to another certificate or nonce"
            f" (it carries {claims.report_data[:8].hex()}..., expected {expected[:8].hex()}...)"
        )


def _hashed(data: bytes) -> bytes:
    return hashlib.sha256(data).digest().ljust(REPORT_DATA_SIZE, b"\0")
