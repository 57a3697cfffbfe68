# SPDX-License-Identifier: Apache-2.0
"""The certificate extension that carries what was attested, so that any peer or auditor can read it.

Extension 1.3.9903.2.100, non-critical (a verifier that does not know it still accepts the certificate): a DER
UTF8String with compact JSON, `{"v":1,"tee":"sgx","measurement":"…","signer":"…",…}`. It stands in the arc of
MarbleRun's own type extension, far from the number that MarbleRun uses; small numbers, because Go's encoding/asn1
refuses a whole certificate over an arc that does not fit into 31 bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from cryptography import x509

from sds.errors import SdsError

CLAIMS_OID = x509.ObjectIdentifier("1.3.9903.2.100")
CLAIMS_VERSION = 1

# A TDX statement with eight 48-byte registers in hex and 20 advisories is about 1.5 KB; the certificate travels in
# every handshake, so that a bound protects peers as well.
MAX_CLAIMS = 8 * 1024
_UTF8_STRING = 0x0C


class ClaimsError(SdsError):
    """A claims extension that is not in the form described by this module."""


def write_claims(claims: Mapping[str, object]) -> bytes:
    """The DER value of the extension. `claims` must hold JSON values only; the version member is added here."""
    text = json.dumps({"v": CLAIMS_VERSION, **claims}, separators=(",", ":"), sort_keys=True, allow_nan=False)
    data = text.encode()
    if len(data) > MAX_CLAIMS:
        raise ClaimsError(f"claims of {len(data)} bytes, at most {MAX_CLAIMS} fit into a certificate")
    return bytes([_UTF8_STRING]) + _length(len(data)) + data


def read_claims(value: bytes) -> Mapping[str, object]:
    """The claims inside an extension value; raises ClaimsError for anything that `write_claims` would not write."""
    if len(value) > MAX_CLAIMS + 4:
        raise ClaimsError(f"claims extension of {len(value)} bytes, at most {MAX_CLAIMS + 4} are accepted")
    for header in range(2, min(len(value), 4) + 1):
        if value[:header] == bytes([_UTF8_STRING]) + _length(len(value) - header):
            return _parse(value[header:])
    raise ClaimsError("claims extension is not one DER UTF8String")


def _parse(data: bytes) -> Mapping[str, object]:
    try:
        claims = json.loads(data.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise ClaimsError("claims extension does not hold a JSON object with distinct members") from None
    if not isinstance(claims, dict) or claims.get("v") != CLAIMS_VERSION:
        raise ClaimsError(f"claims extension is not of version {CLAIMS_VERSION}")
    return claims


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member")
    return members


def _length(length: int) -> bytes:
    """A definite length of DER (X.690, 8.1.3 and 10.1)."""
    if length < 0x80:
        return bytes([length])
    digits = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(digits)]) + digits
