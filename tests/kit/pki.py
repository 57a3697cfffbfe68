# SPDX-License-Identifier: Apache-2.0
"""Identities for tests: the real CA for good ones, a hand-made signer for everything a real CA refuses to sign."""

from __future__ import annotations

import uuid as uuids
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sds.ca import CertificateAuthority, LeafTemplate, pem_of
from sds.csr import CertificateRequest
from sds.keys import PrivateKey
from sds.material import Identity

BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
HOUR = timedelta(hours=1)


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def make_ca(at: datetime | None = None) -> CertificateAuthority:
    """A CA of its own, a day old so that leaves may begin in the past."""
    return CertificateAuthority.create(["localhost"], [], at or now() - timedelta(days=1))


@cache
def shared_ca() -> CertificateAuthority:
    """One CA for all tests that only need some CA."""
    return make_ca()


@cache
def other_ca() -> CertificateAuthority:
    """Another mesh's CA."""
    return make_ca()


def request(
    dns_names: Sequence[str] = ("localhost",), ip_addresses: Sequence[str] = ("127.0.0.1",)
) -> CertificateRequest:
    return CertificateRequest(tuple(dns_names), tuple(ip_address(a) for a in ip_addresses), x509.Name([]))


def marble(
    ca: CertificateAuthority,
    marble_type: str = "web",
    *,
    uuid: str | None = None,
    lifetime: timedelta | None = HOUR,
    claims: Mapping[str, object] | None = None,
    at: datetime | None = None,
) -> Identity:
    """A Marble's identity as the Coordinator issues it."""
    template = LeafTemplate(marble_type, uuid or str(uuids.uuid4()), request(), claims, lifetime)
    return ca.issue_marble(template, at or now())


def odd_leaf(
    ca: CertificateAuthority,
    *,
    uris: Sequence[str] = ("spiffe://odd.test/marble/web/1",),
    dns_names: Sequence[str] = ("localhost",),
    usages: Sequence[x509.ObjectIdentifier] | None = BOTH,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
    is_ca: bool = False,
    key: PrivateKey | None = None,
    extensions: Sequence[x509.ExtensionType] = (),
    self_signed: bool = False,
) -> Identity:
    """A leaf with exactly these properties, signed by the CA's Marble key (or by itself) without any check."""
    key = key or PrivateKey.generate_p256()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "odd")])
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(u) for u in uris]
    names += [x509.DNSName(d) for d in dns_names]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if self_signed else ca.marble_root.subject)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before or now() - HOUR)
        .not_valid_after(not_after or now() + HOUR)
        .public_key(key.load().public_key())
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if usages is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    certificate = builder.sign((key if self_signed else ca.intermediate_key).load(), SHA384())
    return Identity(pem_of(certificate) if self_signed else pem_of(certificate) + pem_of(ca.intermediate), key)


def csr(
    key: PrivateKey | None = None,
    *,
    subject: x509.Name | None = None,
    names: Sequence[x509.GeneralName] = (x509.DNSName("localhost"),),
) -> bytes:
    """A DER certificate request, self-signed as it should be."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject or x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign((key or PrivateKey.generate_p256()).load(), SHA384()).public_bytes(Encoding.DER)


def private_key(key: PrivateKeyTypes) -> PrivateKey:
    """Any of cryptography's keys as our value."""
    return PrivateKey(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
