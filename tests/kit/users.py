# SPDX-License-Identifier: Apache-2.0
"""Users of a manifest: a key and a self-signed certificate each, made once for all tests that only need some user."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID


@dataclass(frozen=True, slots=True)
class User:
    """PEM of both, as `openssl req -x509` makes them."""

    certificate: bytes
    key: bytes = field(repr=False)
    der: bytes


def user(name: str = "alice", *, key: str = "P-256") -> User:
    """A user; `key` is P-256, P-384, P-521 or RSA."""
    return _user(name, key)


@cache
def _user(name: str, key: str) -> User:
    curves: dict[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
    private = rsa.generate_private_key(65537, 2048) if key == "RSA" else ec.generate_private_key(curves[key])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .public_key(private.public_key())
        .sign(private, SHA256())
    )
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return User(certificate.public_bytes(Encoding.PEM), pem, certificate.public_bytes(Encoding.DER))


def recovery_key(number: int = 0) -> rsa.RSAPrivateKey:
    """The private half of a recovery key."""
    return _recovery_key(number)


@cache
def _recovery_key(number: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048 + 1024 * (number % 2))


def key_pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_pem(key: rsa.RSAPublicKey) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
