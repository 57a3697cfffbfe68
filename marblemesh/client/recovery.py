# SPDX-License-Identifier: Apache-2.0
"""Recovery secrets: decrypted by their owner's key, signed with it, encrypted for the Coordinator. No network here.

RSA-OAEP with SHA-256 for hash and mask and without label, RSASSA-PKCS1-v1_5 with SHA-256 over the plaintext secret:
MarbleRun's choices. The owner's key is a PEM file (`PemRecoveryKey`) or on a token (`token.TokenRecoveryKey`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_private_key, load_pem_public_key

from marblemesh.client.errors import IdentityError

# A key (16 bytes in old versions), a share by XOR, a Shamir share with its x. No RSA ciphertext is as short.
PLAIN_SIZES = (16, 32, 33)
_OAEP = padding.OAEP(padding.MGF1(SHA256()), SHA256(), None)


class RecoveryKey(Protocol):
    """The private half of an RSA key that the manifest names in RecoveryKeys. Both calls may block for seconds."""

    def decrypt(self, ciphertext: bytes) -> bytes: ...

    def sign(self, message: bytes) -> bytes: ...


@dataclass(frozen=True, slots=True)
class PemRecoveryKey:
    """A recovery key in memory."""

    key: rsa.RSAPrivateKey = field(repr=False)

    @classmethod
    def from_pem(cls, pem: bytes) -> PemRecoveryKey:
        """An unencrypted PEM private key, PKCS#8 or PKCS#1. Raises IdentityError."""
        try:
            key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise IdentityError("the recovery key cannot be read: want one unencrypted PEM private key") from None
        if not isinstance(key, rsa.RSAPrivateKey):
            raise IdentityError("the recovery key is no RSA key, so no recovery secret was encrypted for it")
        return cls(key)

    def decrypt(self, ciphertext: bytes) -> bytes:
        try:
            return self.key.decrypt(ciphertext, _OAEP)
        except ValueError:
            raise IdentityError("the recovery secret was not encrypted for this key") from None

    def sign(self, message: bytes) -> bytes:
        return self.key.sign(message, padding.PKCS1v15(), SHA256())


def decrypt_recovery_data(data: bytes, key: RecoveryKey) -> bytes:
    """The plain recovery secret: `data` as the Coordinator gave it out (decoded from base64), or already decrypted.

    Raises IdentityError or TokenError if it was encrypted for another key.
    """
    if len(data) in PLAIN_SIZES:
        return data
    secret = key.decrypt(data)
    if len(secret) not in PLAIN_SIZES:
        raise IdentityError(f"the recovery data holds {len(secret)} bytes, a recovery secret has 16, 32 or 33")
    return secret


def encrypt_recovery_secret(public_key: rsa.RSAPublicKey, secret: bytes) -> bytes:
    """A plain secret for the Coordinator's eyes only: `public_key` is the one that `Client.recovery_public_key` got."""
    try:
        return public_key.encrypt(secret, _OAEP)
    except ValueError:
        limit = public_key.key_size // 8 - 66
        raise IdentityError(f"a secret of {len(secret)} bytes is too long for this key, at most {limit}") from None


def parse_public_key(data: bytes) -> rsa.RSAPublicKey:
    """An RSA public key, PEM or DER (PKIX). Raises IdentityError."""
    try:
        key = load_pem_public_key(data) if data.lstrip().startswith(b"-----BEGIN") else load_der_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise IdentityError("want an RSA public key: PEM, or PKIX DER") from None
    if not isinstance(key, rsa.RSAPublicKey):
        raise IdentityError("the public key is no RSA key")
    return key
