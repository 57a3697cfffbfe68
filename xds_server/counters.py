# SPDX-License-Identifier: Apache-2.0
"""Monotonic counters of Marbles: numbers that the host cannot set back, because they are in the sealed state.

Rules only. A counter belongs to one instance (type and UUID) and a name of its choice; it persists over updates. The
whole state is written at each change, so their number is bounded: with names of 1 KiB, 10 000 of them are 14 MiB.
"""

from __future__ import annotations

import base64
import uuid as uuids
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import NameOID

from sds.ca import CertificateAuthority
from sds.errors import SdsError
from sds.identity import (
    MARBLE_TYPE_OID,
    MarbleIdentity,
    SpiffeId,
    marble_identity,
    marble_spiffe_id,
    parse_uuid,
    uri_names,
)
from sds.material import check_issued_by, is_ca
from xds_server.errors import CoordinatorError, Unauthorized
from xds_server.records import Records

MAX_COUNTERS = 10_000
MAX_NAME = 1024
MAX_VALUE = 2**64 - 1


def counter_id(marble_type: str, uuid: str, name: str) -> str:
    """MarbleRun's key of a counter; `uuid` in any form that the standard library reads."""
    parts = (marble_type.encode(), uuids.UUID(uuid).bytes, name.encode())
    return ":".join(base64.b64encode(part).decode("ascii") for part in parts)


def caller(ca: CertificateAuthority, certificates: Sequence[bytes], now: datetime) -> MarbleIdentity:
    """The Marble behind a TLS client certificate (DER, leaf first): one of the CA in force. Raises Unauthorized."""
    if not certificates:
        raise Unauthorized("unauthorized marble: no client certificate")
    try:
        leaf = x509.load_der_x509_certificate(certificates[0])
        if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
            raise Unauthorized("unauthorized marble: certificate is expired or not valid yet")
        check_issued_by(leaf, ca.marble_root)
        identity = marble_identity(leaf) if uri_names(leaf) else _marblerun_identity(leaf, ca.trust_domain)
        if is_ca(leaf) or identity.spiffe_id.trust_domain != ca.trust_domain:
            raise Unauthorized("unauthorized marble: certificate is not an identity of this mesh")
    except (
        SdsError,
        ValueError,
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
        UnsupportedAlgorithm,
    ) as e:
        raise Unauthorized(f"unauthorized marble: {e}") from None
    return identity


def _marblerun_identity(leaf: x509.Certificate, trust_domain: str) -> MarbleIdentity:
    """Who a certificate stands for that MarbleRun issued under this CA, before its state came to us: it has no SPIFFE
    ID. Nothing but an activation puts the type's extension into a certificate. Raises IdentityError, Unauthorized."""
    try:
        (name,) = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        marble_type = leaf.extensions.get_extension_for_oid(MARBLE_TYPE_OID).value.public_bytes().decode()
    except (ValueError, x509.ExtensionNotFound):
        raise Unauthorized("unauthorized marble: certificate names neither an instance nor a Marble type") from None
    uuid = parse_uuid(str(name.value))
    return MarbleIdentity(marble_type, uuid, SpiffeId.parse(marble_spiffe_id(trust_domain, marble_type, uuid)))


def raise_counter(records: Records, marble: MarbleIdentity, name: str, value: int) -> tuple[Records, int]:
    """The records with the counter at least at `value`, and what it was before (0 if there was none)."""
    if not 0 <= value <= MAX_VALUE:
        raise CoordinatorError(f"counter value {value} is out of range, expected 0 to {MAX_VALUE}")
    if len(name.encode("utf-8", "replace")) > MAX_NAME:
        raise CoordinatorError(f"counter name is longer than {MAX_NAME} bytes")
    key = counter_id(marble.type, marble.uuid, name)
    before = records.counters.get(key)
    if before is None and len(records.counters) >= MAX_COUNTERS:
        raise CoordinatorError(f"there are {MAX_COUNTERS} counters already, no more are kept")
    if before is not None and value <= before:
        return records, before
    counters = MappingProxyType({**records.counters, key: value})
    return replace(records, counters=counters), before or 0
