# SPDX-License-Identifier: Apache-2.0
"""Who our peers are, as a metric may say it: by Marble type, never by instance, and never more names than are bounded.

A type is the manifest's word and is believed because the certificate was verified; whoever has no such name counts
among the others. The words in brackets cannot be mistaken for a type that somebody would write.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

from cryptography import x509

from enclave_proxy.relay_config import Membership, uris_of
from sds.identity import IdentityError, decode_segment

# Names in the counters of one listener; an app has a handful of kinds of peers.
MAX_TYPES = 100
OTHER, ANONYMOUS = "(other)", "(none)"


def count_peer(counts: Counter[str], certificate: x509.Certificate | None, membership: Membership) -> None:
    """Count one more connection with the holder of a verified certificate; None: it showed none."""
    label = ANONYMOUS if certificate is None else _type_of(certificate, membership)
    if label not in counts and len(counts) >= MAX_TYPES:
        label = OTHER
    counts[label] += 1


def _type_of(certificate: x509.Certificate, membership: Membership) -> str:
    for uri in uris_of(certificate):
        segment = _segment(uri)
        if segment and (membership.types is None or uri.startswith(membership.types.prefix)):
            return _name(segment)
    return OTHER


def _segment(uri: str) -> str:
    parts = uri.split("/", 6)  # spiffe: "" domain marble type uuid
    return parts[4] if len(parts) == 6 and parts[0] == "spiffe:" and parts[3] == "marble" else ""


@lru_cache(maxsize=1024)
def _name(segment: str) -> str:
    try:
        return decode_segment(segment)
    except IdentityError:
        return OTHER
