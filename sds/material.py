# SPDX-License-Identifier: Apache-2.0
"""Identities and trust bundles: strict values, and the check that comes before any of them is used or sent.

Parsing refuses what is not exactly a list of certificates. `check_identity` and `check_bundle` then ask what a stock
proxy does not (it takes expired certificates, leaves as CAs and bundles without any CA): would our own verifier accept
this from a peer, right now? Whoever gets something else keeps the last good value.

Why no path builder of a library: cryptography's x509.verification enforces the web PKI's profile, which MarbleRun's CA
certificates do not meet (SANs and EKUs on CAs, no authority key id on self-signed ones, 292 years of life). A mesh
chain is one or two signatures long, so it is checked directly: issuer name, signature, CA flag, key usage, path length,
dates, extended key usage. OpenSSL checks the same again in every handshake.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID

from sds.identity import SpiffeId, spiffe_id_of
from sds.keys import MIN_RSA_BITS, PrivateKey
from sds.keys import MaterialError as MaterialError
from sds.x509_errors import X509_ERRORS

# A leaf with claims is about 2 KB in PEM, a CA certificate 1 KB. Eight deep is more than any mesh has; a bundle of 64
# covers a rotation (2) and every gateway that one port may list.
MAX_CHAIN = 8
MAX_BUNDLE = 64
MAX_CERTIFICATE_PEM = 32 * 1024

_BLOCK = rb"-----BEGIN CERTIFICATE-----\r?\n(?:[A-Za-z0-9+/=]{1,76}\r?\n)+-----END CERTIFICATE-----"
_BLOCKS = re.compile(rb"\s*(?:" + _BLOCK + rb"\s*)+")
_EXPECTED_USAGES = {"serverAuth": ExtendedKeyUsageOID.SERVER_AUTH, "clientAuth": ExtendedKeyUsageOID.CLIENT_AUTH}


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate chain (PEM, leaf first) with the leaf's private key.

    Making one parses the chain and compares the key; whether it is good *now* and *here* says `check_identity`.
    `not_before` and `not_after` (UTC) are the leaf's.
    """

    chain: bytes = field(repr=False)
    key: PrivateKey
    not_before: datetime = field(init=False, compare=False)
    not_after: datetime = field(init=False, compare=False)
    _parsed: tuple[x509.Certificate, ...] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        certificates = parse_certificates(self.chain, "certificate chain", MAX_CHAIN)
        if not self.key.matches(_public_key(certificates[0])):
            raise MaterialError("private key does not belong to the first certificate of the chain")
        object.__setattr__(self, "_parsed", certificates)
        object.__setattr__(self, "not_before", certificates[0].not_valid_before_utc)
        object.__setattr__(self, "not_after", certificates[0].not_valid_after_utc)

    def at_rest(self) -> Self:
        """The same as bytes alone, for whoever keeps thousands: 4 kB instead of 20. What is parsed of it and loaded is
        so for the one who asks, each time; who asks for much takes it `in_use`."""
        return self._copy(PrivateKey(self.key.pem), None)

    def in_use(self) -> Self:
        """The same with its certificates parsed."""
        return self if self._parsed is not None else self._copy(self.key, self.certificates)

    def _copy(self, key: PrivateKey, parsed: tuple[x509.Certificate, ...] | None) -> Self:
        copy = object.__new__(type(self))
        dates = (("not_before", self.not_before), ("not_after", self.not_after))
        for name, value in (("chain", self.chain), ("key", key), ("_parsed", parsed), *dates):
            object.__setattr__(copy, name, value)
        return copy

    @property
    def certificates(self) -> tuple[x509.Certificate, ...]:
        """The chain, parsed."""
        return self._parsed or parse_certificates(self.chain, "certificate chain", MAX_CHAIN)

    @property
    def leaf(self) -> x509.Certificate:
        return self.certificates[0]

    @property
    def spiffe_id(self) -> SpiffeId:
        """The leaf's SPIFFE ID. Raises IdentityError if it has not exactly one URI SAN."""
        return spiffe_id_of(self.leaf)


@dataclass(frozen=True, slots=True)
class TrustBundle:
    """The certificates (PEM) that peers' chains must end in. Never empty: to Envoy that would mean "trust anybody"."""

    pem: bytes = field(repr=False)
    certificates: tuple[x509.Certificate, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "certificates", parse_certificates(self.pem, "trust bundle", MAX_BUNDLE))


def parse_certificates(pem: bytes, what: str, limit: int) -> tuple[x509.Certificate, ...]:
    """All certificates of a PEM text that holds nothing else but white space; at least one, at most `limit`."""
    if len(pem) > limit * MAX_CERTIFICATE_PEM:
        raise MaterialError(f"{what} of {len(pem)} bytes, at most {limit * MAX_CERTIFICATE_PEM} are accepted")
    if not pem.strip():
        raise MaterialError(f"{what} is empty, expected at least one certificate")
    if not _BLOCKS.fullmatch(pem):
        raise MaterialError(f"{what} is not a plain sequence of PEM certificates, nothing else may stand in it")
    if (count := pem.count(b"-----BEGIN")) > limit:
        raise MaterialError(f"{what} holds {count} certificates, at most {limit} are accepted")
    try:
        certificates = tuple(x509.load_pem_x509_certificates(pem))
        for certificate in certificates:
            _ = certificate.extensions, certificate.subject, certificate.issuer  # parsed lazily: find faults here
    except X509_ERRORS as e:
        raise MaterialError(f"{what} holds a certificate that cannot be parsed: {e}") from None
    return certificates


def check_identity(identity: Identity, bundle: TrustBundle, now: datetime) -> None:
    """Raise MaterialError unless a peer that trusts `bundle` would accept `identity` at `now`, as client and as server.

    `now` must be aware. Revocation is not checked: identities are short-lived, and a root that is gone revokes.
    """
    check_chain(identity, now)
    check_leaf(identity.leaf)
    # From the top: a chain that ends in the anchor itself needs no further signature check.
    if not any(
        _is_anchored(certificate, anchor, position, now)
        for position, certificate in reversed(tuple(enumerate(identity.certificates)))
        for anchor in bundle.certificates
    ):
        raise MaterialError(
            "chain does not end in the trust bundle: no certificate of the bundle issued any part of it"
        )


def check_chain(identity: Identity, now: datetime) -> None:
    """Raise MaterialError unless every certificate of the chain is valid at `now` and issued by the one behind it."""
    for position, certificate in enumerate(identity.certificates):
        check_dates(certificate, "leaf" if position == 0 else f"chain certificate {position + 1}", now)
    for position, (certificate, issuer) in enumerate(pairwise(identity.certificates)):
        try:
            check_issued_by(certificate, issuer, intermediates=position)
        except MaterialError as e:
            raise MaterialError(f"chain is not in order at certificate {position + 1}: {e}") from None


def check_bundle(bundle: TrustBundle, now: datetime, *, pinned_leaves: bool = False) -> None:
    """Raise MaterialError unless every certificate of the bundle can verify a peer at `now`.

    With `pinned_leaves` certificates that are no CAs may stand beside at least one CA: each of them admits only itself
    (a gateway's own certificate), because OpenSSL and Envoy let no certificate without the CA flag issue another. One
    that has expired admits nobody, and must not keep the bundle from bringing a new root.
    """
    cas = 0
    for position, certificate in enumerate(bundle.certificates, start=1):
        if pinned_leaves and not is_ca(certificate):
            continue
        check_dates(certificate, f"bundle certificate {position}", now)
        try:
            _check_can_issue(certificate, intermediates=0)
        except MaterialError as e:
            raise MaterialError(f"bundle certificate {position}: {e}") from None
        cas += 1
    if not cas:
        raise MaterialError("trust bundle holds no CA certificate, expected at least one")


def check_issued_by(certificate: x509.Certificate, issuer: x509.Certificate, intermediates: int = 0) -> None:
    """Raise MaterialError unless `issuer` is a CA, names itself as the issuer of `certificate` and signed it.

    `intermediates` is the number of CA certificates that stand between `certificate` and the leaf, itself included
    where it is one. Dates are the caller's business.
    """
    _check_can_issue(issuer, intermediates)
    try:
        certificate.verify_directly_issued_by(issuer)
    except ValueError:
        raise MaterialError("issuer name differs from the subject of the certificate above it") from None
    except (InvalidSignature, TypeError, UnsupportedAlgorithm):
        raise MaterialError("signature was not made by the certificate above it") from None
    wanted, offered = authority_key_id(certificate), subject_key_id(issuer)
    if wanted is not None and offered is not None and wanted != offered:
        raise MaterialError("authority key id differs from the subject key id of the certificate above it")


def is_ca(certificate: x509.Certificate) -> bool:
    """Whether the basic constraints say CA:TRUE."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _is_anchored(certificate: x509.Certificate, anchor: x509.Certificate, position: int, now: datetime) -> bool:
    if certificate == anchor and position > 0:
        return True  # its dates and its place as a CA were checked as part of the chain
    try:
        check_dates(anchor, "anchor", now)
        check_issued_by(certificate, anchor, intermediates=position)
    except MaterialError:
        return False
    return True


def check_dates(certificate: x509.Certificate, what: str, now: datetime) -> None:
    """Raise MaterialError unless the certificate, called `what`, is valid at `now`."""
    if now < certificate.not_valid_before_utc:
        raise MaterialError(f"{what} is not valid before {certificate.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}")
    if now > certificate.not_valid_after_utc:
        raise MaterialError(f"{what} expired at {certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}")


def check_leaf(leaf: x509.Certificate) -> None:
    """Raise MaterialError unless this can be a mesh identity: no CA, a strong key, for servers and for clients."""
    if is_ca(leaf):
        raise MaterialError("leaf is a CA certificate: a peer could issue identities with it")
    usage = _key_usage(leaf)
    if usage is not None and (usage.key_cert_sign or usage.crl_sign):
        raise MaterialError("leaf's key usage allows signing certificates or CRLs")
    check_server(leaf)
    _check_purpose(leaf, "clientAuth")


def check_server(leaf: x509.Certificate) -> None:
    """Raise MaterialError unless a TLS 1.3 server can present this, to whoever believes it."""
    _check_strength(leaf)
    usage = _key_usage(leaf)
    if usage is not None and not usage.digital_signature:
        raise MaterialError("leaf's key usage lacks digitalSignature, TLS 1.3 cannot use it")
    _check_purpose(leaf, "serverAuth")


def _key_usage(leaf: x509.Certificate) -> x509.KeyUsage | None:
    """None: an absent extension restricts nothing (RFC 5280, 4.2.1.3)."""
    try:
        return leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return None


def _check_purpose(leaf: x509.Certificate, name: str) -> None:
    try:
        usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    if _EXPECTED_USAGES[name] not in usages:
        raise MaterialError(f"leaf's extended key usage lacks {name}: peers would refuse it")


def _check_can_issue(issuer: x509.Certificate, intermediates: int) -> None:
    try:
        constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        raise MaterialError("certificate has no basic constraints, so it is not a CA") from None
    if not constraints.ca:
        raise MaterialError("certificate is not a CA")
    if constraints.path_length is not None and constraints.path_length < intermediates:
        raise MaterialError(
            f"CA allows {constraints.path_length} intermediate certificates, {intermediates} stand below"
        )
    _check_strength(issuer)
    try:
        if not issuer.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign:
            raise MaterialError("CA's key usage lacks keyCertSign")
    except x509.ExtensionNotFound:
        pass


def _check_strength(certificate: x509.Certificate) -> None:
    match _public_key(certificate):
        case rsa.RSAPublicKey() as key if key.key_size < MIN_RSA_BITS:
            raise MaterialError(f"RSA key of {key.key_size} bits, at least {MIN_RSA_BITS} are needed")
        case ec.EllipticCurvePublicKey() as key if key.curve.key_size < 256:
            raise MaterialError(f"elliptic-curve key of {key.curve.key_size} bits, at least 256 are needed")


def _public_key(certificate: x509.Certificate) -> CertificatePublicKeyTypes:
    try:
        return certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise MaterialError("certificate has a public key of an unknown kind") from None


def authority_key_id(certificate: x509.Certificate) -> bytes | None:
    """Which key signed it, as it says itself; None if it does not."""
    try:
        return certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        return None


def subject_key_id(certificate: x509.Certificate) -> bytes | None:
    """How others name its key; None if it has no name."""
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return None
