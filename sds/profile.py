# SPDX-License-Identifier: Apache-2.0
"""The certificate profiles: which extensions stand in a CA certificate and in a leaf, byte for byte as MarbleRun's.

CA: CA:TRUE (critical, no path length), digitalSignature and keyCertSign, server and client authentication, the names of
the Coordinator (its root serves TLS directly), key id = the first 20 bytes of SHA-256 over the uncompressed point, as
Go does. Leaf: CA:FALSE, digitalSignature and keyAgreement, server and client authentication, no key id of its own; and
beyond MarbleRun one URI name and the claims extension. Everything is signed with ECDSA-SHA384.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sds.claims_extension import CLAIMS_OID, write_claims
from sds.csr import IPAddress
from sds.identity import MARBLE_TYPE_OID
from sds.keys import MaterialError, PrivateKey

# Go's largest duration, 2^63-1 nanoseconds: what MarbleRun gives to everything that is not meant to expire (292 years).
LONGEST = timedelta(microseconds=(2**63 - 1) // 1000)

# The subject attributes that Go's pkix.Name carries over, in its order; the common name and the organisation are ours.
_SUBJECT_ORDER = (
    NameOID.COUNTRY_NAME,
    NameOID.ORGANIZATIONAL_UNIT_NAME,
    NameOID.LOCALITY_NAME,
    NameOID.STATE_OR_PROVINCE_NAME,
    NameOID.STREET_ADDRESS,
    NameOID.POSTAL_CODE,
    NameOID.COMMON_NAME,
    NameOID.SERIAL_NUMBER,
)
AlternativeNames = tuple[tuple[str, ...], tuple[IPAddress, ...]]
Extension = tuple[x509.ExtensionType, bool]  # with its critical flag


@dataclass(frozen=True, slots=True)
class Leaf:
    """Everything that a leaf certificate will say."""

    subject: x509.Name
    dns_names: tuple[str, ...]
    ip_addresses: tuple[IPAddress, ...]
    uri: str
    key: PrivateKey
    not_before: datetime
    not_after: datetime
    extensions: tuple[x509.UnrecognizedExtension, ...]


def ca_certificate(
    common_name: str,
    key: PrivateKey,
    names: AlternativeNames,
    now: datetime,
    issuer: tuple[x509.Certificate, PrivateKey] | None = None,
) -> x509.Certificate:
    """A CA certificate valid from `now`; self-signed unless an issuer is given."""
    point = key.load().public_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    start = now.astimezone(UTC).replace(microsecond=0)
    extensions: list[Extension] = [
        (_key_usage(cert_sign=True), True),
        (_both_usages(), False),
        (x509.BasicConstraints(ca=True, path_length=None), True),
        (x509.SubjectKeyIdentifier(key_id(point)), False),
        (_alternative(*names), False),
    ]
    if issuer is not None:
        extensions.insert(4, (_authority(issuer[0]), False))
    builder = _builder(subject, issuer[0].subject if issuer else subject, start, start + LONGEST).public_key(point)
    return _signed(builder, extensions, issuer[1] if issuer else key)


def leaf_certificate(leaf: Leaf, issuer: x509.Certificate, issuer_key: PrivateKey) -> x509.Certificate:
    """The leaf's certificate, signed with the issuer's key."""
    extensions: list[Extension] = [
        (_key_usage(cert_sign=False), True),
        (_both_usages(), False),
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_authority(issuer), False),
        (_alternative(leaf.dns_names, leaf.ip_addresses, leaf.uri), False),
        *((extension, False) for extension in leaf.extensions),
    ]
    builder = _builder(leaf.subject, issuer.subject, leaf.not_before.replace(microsecond=0), leaf.not_after)
    return _signed(builder.public_key(leaf.key.load().public_key()), extensions, issuer_key)


def marble_subject(requested: x509.Name, uuid: str) -> x509.Name:
    """The request's subject with the UUID as common name and without organisation; attributes Go drops are dropped."""
    kept = [a for a in requested if a.oid in _SUBJECT_ORDER and a.oid != NameOID.COMMON_NAME]
    kept.append(x509.NameAttribute(NameOID.COMMON_NAME, uuid))
    return x509.Name(sorted(kept, key=lambda a: _SUBJECT_ORDER.index(a.oid)))


def marble_extensions(marble_type: str, claims: Mapping[str, object] | None) -> tuple[x509.UnrecognizedExtension, ...]:
    """MarbleRun's type extension (raw bytes, no ASN.1 string around them) and, if there are claims, ours."""
    type_extension = x509.UnrecognizedExtension(MARBLE_TYPE_OID, marble_type.encode())
    if claims is None:
        return (type_extension,)
    return type_extension, x509.UnrecognizedExtension(CLAIMS_OID, write_claims(claims))


def key_id(public_key: object) -> bytes:
    """Go's subject key id of an elliptic-curve key."""
    if not isinstance(public_key, ec.EllipticCurvePublicKey):
        raise MaterialError("the mesh's CA keys are elliptic-curve keys")
    return hashlib.sha256(public_key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)).digest()[:20]


def _builder(subject: x509.Name, issuer: x509.Name, start: datetime, end: datetime) -> x509.CertificateBuilder:
    # 128 random bits; zero is not allowed (RFC 5280, 4.1.2.2) and `| 1` costs one bit instead of a loop.
    serial = secrets.randbits(128) | 1
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).serial_number(serial)
    return builder.not_valid_before(start).not_valid_after(end)


def _signed(builder: x509.CertificateBuilder, extensions: list[Extension], key: PrivateKey) -> x509.Certificate:
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(key.load(), SHA384())


def _authority(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    ski = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski)


def _alternative(
    dns_names: tuple[str, ...], ip_addresses: tuple[IPAddress, ...], uri: str | None = None
) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in dns_names]
    names += [x509.IPAddress(address) for address in ip_addresses]
    return x509.SubjectAlternativeName([*names, x509.UniformResourceIdentifier(uri)] if uri else names)


def _both_usages() -> x509.ExtendedKeyUsage:
    return x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])


def _key_usage(*, cert_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=cert_sign,
        key_agreement=not cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
