# SPDX-License-Identifier: Apache-2.0
"""Certificate secrets: a new key, and a certificate made from a template and signed like a Marble's.

Issuer is the Marble root (signed with the intermediate's key), so that a client that trusts the Marble root, the
intermediate or, with the intermediate in the chain, the Coordinator's root verifies it. `generate_key` is the slow part
(RSA of 4096 bits: a second, as luck has it) and shares nothing with anything: OpenSSL works without the interpreter's
lock, so that a thread is enough to keep an event loop free; it can be pickled to a process as well.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)

from sds.ca import CertificateAuthority
from sds.secret_template import SecretError as SecretError
from sds.secret_template import SecretTemplate, extensions, subject
from sds.secrets import Secret, SecretKind

_CURVES: dict[int, ec.EllipticCurve] = {
    224: ec.SECP224R1(),
    256: ec.SECP256R1(),
    384: ec.SECP384R1(),
    521: ec.SECP521R1(),
}
_RSA_EXPONENT = 65537
MIN_RSA_BITS = 1024
# The time to find an RSA key grows with the fourth power of its size: 8192 bits take about ten seconds.
MAX_RSA_BITS = 8192

# Go's numbers for ECDSA with a hash; the issuer's key is an elliptic-curve key, so that no others fit.
_SIGNATURE_HASHES: dict[int, SHA256 | SHA384 | SHA512] = {0: SHA384(), 10: SHA256(), 11: SHA384(), 12: SHA512()}

PrivateKeys = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def generate_key(kind: SecretKind, size: int) -> bytes:
    """A new private key as PKCS#8 DER; `size` in bits, 0 for Ed25519. Raises SecretError."""
    key: PrivateKeys
    match kind:
        case SecretKind.CERT_RSA if MIN_RSA_BITS <= size <= MAX_RSA_BITS:
            key = rsa.generate_private_key(_RSA_EXPONENT, size)
        case SecretKind.CERT_ECDSA if size in _CURVES:
            key = ec.generate_private_key(_CURVES[size])
        case SecretKind.CERT_ED25519 if size == 0:
            key = ed25519.Ed25519PrivateKey.generate()
        case _:
            raise SecretError(f"no {kind.value} key of {size} bits can be generated")
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def issue(
    template: SecretTemplate,
    kind: SecretKind,
    size: int,
    ca: CertificateAuthority,
    now: datetime,
    *,
    shared: bool = False,
    key: bytes | None = None,
) -> Secret:
    """A certificate secret with a new key, or with `key` (PKCS#8 DER). Raises SecretError for an impossible template.

    The secret's `valid_for` is the effective one: 365 where the template gives neither days nor an end.
    """
    private = generate_key(kind, size) if key is None else key
    public = _public_key(private)
    certificate = _certificate(template, public, ca, now)
    return Secret(
        kind=kind,
        size=size,
        shared=shared,
        valid_for=template.effective_valid_for,
        certificate=certificate.public_bytes(Encoding.DER),
        private=private,
        public=public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    )


PublicKeys = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


def _public_key(private: bytes) -> PublicKeys:
    try:
        key = load_der_private_key(private, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise SecretError("the secret's private key is no PKCS#8 key") from None
    if not isinstance(key, PrivateKeys):
        raise SecretError("the secret's private key is neither RSA nor ECDSA nor Ed25519")
    return key.public_key()


def _certificate(
    template: SecretTemplate, public: PublicKeys, ca: CertificateAuthority, now: datetime
) -> x509.Certificate:
    issuer = ca.marble_root
    algorithm = _SIGNATURE_HASHES.get(template.signature_algorithm)
    if algorithm is None:
        raise SecretError(
            "requested SignatureAlgorithm does not match private key type: the issuer's key is ECDSA P-384, "
            "leave it out or use 10 to 12"
        )
    start = now.astimezone(UTC).replace(microsecond=0)
    try:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject(template))
            .issuer_name(issuer.subject)
            .serial_number(secrets.randbits(128) | 1)  # never zero (RFC 5280, 4.1.2.2)
            .not_valid_before(start)
            .not_valid_after(_not_after(template, start, issuer.not_valid_after_utc))
            .public_key(public)
        )
        for extension, critical in extensions(template, ca.trust_domain):
            builder = builder.add_extension(extension, critical)
        if template.is_ca:
            builder = builder.add_extension(x509.SubjectKeyIdentifier(_key_id(public)), critical=False)
        issuer_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id)
        return builder.add_extension(authority, critical=False).sign(ca.intermediate_key.load(), algorithm)
    except (ValueError, TypeError, OverflowError) as e:  # what the builder cannot express
        raise SecretError(f"creating certificate: {e}") from e


def _not_after(template: SecretTemplate, start: datetime, end_of_issuer: datetime) -> datetime:
    if template.not_after is not None:
        wanted = template.not_after.astimezone(UTC).replace(microsecond=0)
    else:
        # Days beyond the issuer's end mean nothing, and a number of 64 bits would overflow a date.
        days = min(template.effective_valid_for, (end_of_issuer - start).days)
        wanted = start + timedelta(days=days)
    return min(wanted, end_of_issuer)


def _key_id(public: PublicKeys) -> bytes:
    """Go's: the first 20 bytes of SHA-256 over the key's bit string."""
    match public:
        case rsa.RSAPublicKey():
            bits = public.public_bytes(Encoding.DER, PublicFormat.PKCS1)
        case ec.EllipticCurvePublicKey():
            bits = public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        case _:
            bits = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return hashlib.sha256(bits).digest()[:20]
