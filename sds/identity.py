# SPDX-License-Identifier: Apache-2.0
"""Who a certificate says its holder is: trust domain, SPIFFE ID, and what was attested.

A Marble is `spiffe://<trust domain>/marble/<type>/<uuid>`. A claim read from a certificate is worth nothing before the
chain is verified; this module only reads.
"""

from __future__ import annotations

import hashlib
import re
import uuid as uuids
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from cryptography import x509

from sds.claims_extension import CLAIMS_OID, read_claims
from sds.errors import SdsError

RESERVED_DOMAIN = "marblemesh.internal"
COORDINATOR_DNS_NAME = f"coordinator.{RESERVED_DOMAIN}"
# MarbleRun's extension: the Marble type as raw bytes, not wrapped in any ASN.1 string.
MARBLE_TYPE_OID = x509.ObjectIdentifier("1.3.9903.2.1")

# SPIFFE-ID specification, section 2: the whole ID at most 2048 bytes, the trust domain at most 255.
MAX_SPIFFE_ID = 2048
MAX_TRUST_DOMAIN = 255

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-.")


class IdentityError(SdsError):
    """A name or certificate that does not say who its holder is in the one accepted form."""


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """A SPIFFE ID in canonical form (SPIFFE-ID specification, sections 2.1 to 2.4)."""

    trust_domain: str
    path: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.trust_domain) > MAX_TRUST_DOMAIN or not _TRUST_DOMAIN.fullmatch(self.trust_domain):
            raise IdentityError(
                f"trust domain {self.trust_domain!r}: expected 1 to {MAX_TRUST_DOMAIN} of a-z, 0-9, '.', '-', '_'"
            )
        for segment in self.path:
            if not _SEGMENT.fullmatch(segment) or segment in (".", ".."):
                raise IdentityError(f"path segment {segment!r}: letters, digits, '.', '-', '_' only, not '.' or '..'")
        if len(str(self)) > MAX_SPIFFE_ID:
            raise IdentityError(f"SPIFFE ID of {len(str(self))} bytes, at most {MAX_SPIFFE_ID} are allowed")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a canonical SPIFFE ID; anything else (port, query, upper-case scheme, trailing slash) is refused."""
        if len(text) > MAX_SPIFFE_ID:
            raise IdentityError(f"SPIFFE ID of {len(text)} characters, at most {MAX_SPIFFE_ID} are allowed")
        if not text.startswith("spiffe://"):
            raise IdentityError(f"{text!r} is not a SPIFFE ID: it must start with 'spiffe://'")
        domain, *path = text.removeprefix("spiffe://").split("/")
        return cls(domain, tuple(path))

    def __str__(self) -> str:
        return "/".join((f"spiffe://{self.trust_domain}", *self.path))


@dataclass(frozen=True, slots=True)
class MarbleIdentity:
    """What a Marble's certificate says: its type, its instance, and what was attested (None: no claims extension)."""

    type: str
    uuid: str
    spiffe_id: SpiffeId
    claims: Mapping[str, object] | None = field(default=None, hash=False)


def trust_domain(root_der: bytes) -> str:
    """The mesh's trust domain: 128 bits of the Coordinator root certificate's SHA-256 under our reserved domain.

    A name only: what is trusted is decided by the bundle. 128 bits keep two meshes from sharing a name by chance or
    by somebody looking for a second root with the name of a given one.
    """
    return f"{hashlib.sha256(root_der).hexdigest()[:32]}.{RESERVED_DOMAIN}"


def encode_segment(name: str) -> str:
    """A manifest name as one SPIFFE path segment: injective, readable, without '%' (which SPIFFE forbids).

    Letters, digits, '-' and '.' stand for themselves, '_' becomes '__', every other byte of the UTF-8 text '_hh' (two
    lower-case hex digits). '.' and '..' alone would be relative paths: their first dot becomes '_2e'.
    """
    if not name:
        raise IdentityError("an empty name cannot be part of a SPIFFE ID")
    if name in (".", ".."):
        return "_2e" + name[1:]
    try:
        data = name.encode()
    except UnicodeEncodeError:
        raise IdentityError(f"name {name!r} is not valid Unicode text") from None
    return "".join(chr(b) if b in _PLAIN else "__" if b == ord("_") else f"_{b:02x}" for b in data)


def decode_segment(segment: str) -> str:
    """The name that `encode_segment` made `segment` from. Raises IdentityError if it did not make it."""
    try:
        raw = re.sub(r"_(_|[0-9a-f]{2})", _unescape, segment).encode("latin-1")
        name = raw.decode()
        canonical = encode_segment(name)
    except (UnicodeError, IdentityError):
        raise IdentityError(f"path segment {segment!r} is not an encoded name") from None
    if canonical != segment:
        raise IdentityError(f"path segment {segment!r} is not in canonical form, expected {canonical!r}")
    return name


def _unescape(match: re.Match[str]) -> str:
    return "_" if match[1] == "_" else chr(int(match[1], 16))


def parse_uuid(text: str) -> str:
    """An instance's UUID in the one form used in names: 36 lower-case characters. Raises IdentityError."""
    try:
        canonical = str(uuids.UUID(text))
    except ValueError:
        canonical = None
    if canonical != text:
        raise IdentityError(f"{text!r} is not a UUID in lower-case 36-character form")
    return text


def marble_spiffe_id(trust_domain: str, marble_type: str, uuid: str) -> str:
    """`spiffe://<trust domain>/marble/<type>/<uuid>`; `uuid` in lower-case 36-character form."""
    return str(SpiffeId(trust_domain, ("marble", encode_segment(marble_type), parse_uuid(uuid))))


def coordinator_spiffe_id(trust_domain: str) -> str:
    """The Coordinator's own name in the mesh."""
    return str(SpiffeId(trust_domain, ("coordinator",)))


def type_prefix(trust_domain: str, marble_type: str) -> str:
    """What the SPIFFE IDs of all instances of a type start with; the final '/' keeps `web` apart from `web-admin`."""
    return f"{SpiffeId(trust_domain, ('marble', encode_segment(marble_type)))}/"


def any_marble_prefix(trust_domain: str) -> str:
    """What the SPIFFE IDs of all Marbles of a mesh start with."""
    return f"{SpiffeId(trust_domain, ('marble',))}/"


def is_reserved_name(dns_name: str) -> bool:
    """Whether a DNS name (or a wildcard that would match one) belongs to the mesh itself."""
    name = dns_name.rstrip(".").lower()
    return name == RESERVED_DOMAIN or name.endswith(f".{RESERVED_DOMAIN}") or name in ("*", "*.internal")


def uri_names(certificate: x509.Certificate) -> list[str]:
    """All URI SANs of a certificate, in order."""
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    except ValueError as e:
        raise IdentityError(f"certificate extensions cannot be read: {e}") from None
    return san.get_values_for_type(x509.UniformResourceIdentifier)


def spiffe_id_of(certificate: x509.Certificate) -> SpiffeId:
    """The one SPIFFE ID of an X.509-SVID (X509-SVID specification, section 2: exactly one URI SAN)."""
    names = uri_names(certificate)
    if len(names) != 1:
        raise IdentityError(f"certificate has {len(names)} URI names, expected exactly one")
    return SpiffeId.parse(names[0])


def marble_identity(certificate: x509.Certificate) -> MarbleIdentity:
    """What a Marble's certificate says about its holder. The chain must have been verified by the caller.

    Raises IdentityError unless there is exactly one URI SAN of the Marble form and, where MarbleRun's type extension
    is present, both name the same type.
    """
    spiffe_id = spiffe_id_of(certificate)
    match spiffe_id.path:
        case ("marble", encoded, uuid):
            marble_type = decode_segment(encoded)
        case _:
            raise IdentityError(f"{spiffe_id} is not the name of a Marble")
    type_extension = _raw_extension(certificate, MARBLE_TYPE_OID)
    if type_extension is not None and type_extension != marble_type.encode():
        raise IdentityError(f"certificate names the type {marble_type!r} in its URI and another one in its extension")
    claims = _raw_extension(certificate, CLAIMS_OID)
    return MarbleIdentity(marble_type, parse_uuid(uuid), spiffe_id, None if claims is None else read_claims(claims))


def _raw_extension(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> bytes | None:
    try:
        value = certificate.extensions.get_extension_for_oid(oid).value
    except x509.ExtensionNotFound:
        return None
    return value.public_bytes()
