# SPDX-License-Identifier: Apache-2.0
"""The 64 bytes of REPORTDATA: the only place that builds them, and the only place that compares them.

The TEE signs these bytes together with the measurement, so they are what ties evidence to one certificate. Both formats
are MarbleRun's: SHA-256 in the first half, zeros in the second.

A quote for one purpose cannot serve the other: the first hashes a Marble's TLS certificate, the second the
Coordinator's root certificate followed by the nonce. A nonce is at most 64 bytes, shorter than any certificate, so no
choice of it turns one DER certificate into another.
"""

from __future__ import annotations

import hashlib
import hmac

from sds.attestation.claims import Claims
from sds.attestation.errors import BindingMismatch

REPORT_DATA_SIZE = 64

# SHA-256 of a longer nonce gains nothing, and the nonce comes from a URL of strangers.
MAX_NONCE = 64


def marble_report_data(tls_certificate_der: bytes) -> bytes:
    """What a Marble's quote binds: the very certificate that it shows in TLS to the Coordinator."""
    return _hashed(tls_certificate_der)


def coordinator_report_data(root_certificate_der: bytes, nonce: bytes = b"") -> bytes:
    """What the Coordinator's quote binds: its root certificate and, when asked with one, the asker's nonce.

    :raises ValueError: if the nonce is longer than 64 bytes.
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
