# SPDX-License-Identifier: Apache-2.0
"""Private keys as values: PKCS#8 PEM that cannot be printed, loaded only where it is used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from sds.errors import SdsError

SigningKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey

# An RSA-4096 key in PKCS#8 PEM is 3.3 KB; 16 KiB leaves room for RSA-16384, beyond which nobody signs handshakes.
MAX_KEY_PEM = 16 * 1024
# NIST SP 800-57 part 1: below 2048 bits RSA gives less than 112 bits of security.
MIN_RSA_BITS = 2048


class MaterialError(SdsError):
    """Keys, certificates or bundles that our own verifier would not accept. The text never quotes a key."""


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """One private key: the PEM text of an unencrypted PKCS#8 (RFC 5958) or SEC 1 (RFC 5915) structure."""

    pem: bytes = field(repr=False)
    # Reading a P-384 key costs OpenSSL a millisecond, as much as two signatures; a key is read once.
    _loaded: SigningKey | None = field(default=None, init=False, repr=False, compare=False)

    def __reduce__(self) -> tuple[type[PrivateKey], tuple[bytes]]:
        return type(self), (self.pem,)  # the loaded key is OpenSSL's and stays in this process

    @classmethod
    def generate_p384(cls) -> Self:
        """A new P-384 key: what the CA and MarbleRun's Marbles use."""
        return cls._of(ec.generate_private_key(ec.SECP384R1()))

    @classmethod
    def generate_p256(cls) -> Self:
        """A new P-256 key: signs a handshake about 20 times faster than P-384 in OpenSSL, at 128 bits of security."""
        return cls._of(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def _of(cls, key: ec.EllipticCurvePrivateKey) -> Self:
        made = cls(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        object.__setattr__(made, "_loaded", key)
        return made

    def load(self) -> SigningKey:
        """The usable key. Raises MaterialError for anything that cannot sign a TLS handshake safely."""
        if self._loaded is not None:
            return self._loaded
        if len(self.pem) > MAX_KEY_PEM:
            raise MaterialError(f"private key of {len(self.pem)} bytes, at most {MAX_KEY_PEM} are accepted")
        try:
            key = load_pem_private_key(self.pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            # The parser's own text is dropped with its cause: it may quote what it stumbled over.
            raise MaterialError("private key cannot be read: expected one unencrypted PKCS#8 PEM block") from None
        if isinstance(key, rsa.RSAPrivateKey) and key.key_size < MIN_RSA_BITS:
            raise MaterialError(f"RSA key of {key.key_size} bits, at least {MIN_RSA_BITS} are needed")
        if not isinstance(key, SigningKey):
            raise MaterialError("private key type cannot sign a TLS handshake: use ECDSA, Ed25519 or RSA")
        object.__setattr__(self, "_loaded", key)
        return key

    def matches(self, public_key: PublicKeyTypes) -> bool:
        """Whether this is the private half of `public_key`."""
        return _spki(self.load().public_key()) == _spki(public_key)


def _spki(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
