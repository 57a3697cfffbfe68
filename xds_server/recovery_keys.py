# SPDX-License-Identifier: Apache-2.0
"""The RSA side of recovery: encrypt to a key owner, decrypt what one sent, and whose signatures a recovery needs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP, PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from sds.keys import MIN_RSA_BITS
from xds_server.errors import CoordinatorError

# Beyond, one verification takes longer than 10 ms, and nobody has such keys.
_MAX_RSA_BITS = 16_384
_MAX_PEM = 16 * 1024
_LABEL = "-----BEGIN PUBLIC KEY-----"


class RecoveryError(CoordinatorError):
    """The secret does not help; the text says why. (API: 500 after `setting recovery key: `)"""


class SecretNotDecrypted(RecoveryError):
    """What was uploaded is neither a secret nor one encrypted to this Coordinator. (API: 400 fail)"""

    def __init__(self, why: str) -> None:
        super().__init__(f"failed to decrypt recovery secret: {why}")


class RecoveryKeyRefused(RecoveryError):
    """A manifest's recovery keys or threshold cannot be used. (set-manifest, update)"""


@dataclass(frozen=True, slots=True)
class RecoveryTerms:
    """The sealed manifest's `RecoveryKeys` (name → PEM) and `RecoveryThreshold`."""

    keys: Mapping[str, str]
    threshold: int


@dataclass(frozen=True, slots=True)
class Offered:
    """An accepted secret with its owner's signature over it (RSASSA-PKCS1-v1_5, SHA-256)."""

    secret: bytes = field(repr=False)
    signature: bytes = field(repr=False)


def oaep() -> OAEP:
    """RSA-OAEP with SHA-256 for both the hash and MGF1, and no label."""
    return OAEP(mgf=MGF1(SHA256()), algorithm=SHA256(), label=None)


def encrypt_to(name: str, pem: str, secret: bytes) -> bytes:
    """`secret` for the owner of a recovery key; raises RecoveryKeyRefused."""
    key = _load(name, pem)
    if not MIN_RSA_BITS <= key.key_size <= _MAX_RSA_BITS:
        raise RecoveryKeyRefused(
            f"recovery key {name} has {key.key_size} bits, expected {MIN_RSA_BITS} to {_MAX_RSA_BITS}"
        )
    return key.encrypt(secret, oaep())


def check_owners(terms: RecoveryTerms, offered: Iterable[Offered]) -> None:
    """Every needed owner signed its secret, each for itself; raises RecoveryError with MarbleRun's texts."""
    unused = {hashlib.sha256(one.secret).digest(): one for one in offered}  # distinct secrets
    wanted = terms.threshold or len(terms.keys)
    keys = {name: _load(name, pem) for name, pem in terms.keys.items()}
    if wanted == len(keys):
        if len(unused) != wanted:
            raise RecoveryError(
                "recovery keys in manifest do not match the keys used for recovery:"
                f" expected {wanted}, got {len(unused)}"
            )
        for name, key in keys.items():
            found = next((digest for digest, one in unused.items() if _signed(key, one)), None)
            if found is None:
                raise RecoveryError(f'no matching recovery key found for recovery public key "{name}"')
            del unused[found]
        return
    if len(unused) != wanted:
        raise RecoveryError(
            "recovery threshold in manifest does not match the number of keys used for recovery:"
            f" expected {wanted}, got {len(unused)}"
        )
    for one in unused.values():
        owner = next((name for name, key in keys.items() if _signed(key, one)), None)
        if owner is None:
            raise RecoveryError("no matching recovery public key found for recovery key")
        del keys[owner]


def _signed(key: rsa.RSAPublicKey, one: Offered) -> bool:
    try:
        key.verify(one.signature, one.secret, PKCS1v15(), SHA256())
    except InvalidSignature:
        return False
    return True


def _load(name: str, pem: str) -> rsa.RSAPublicKey:
    if len(pem) > _MAX_PEM or _LABEL not in pem:
        raise RecoveryKeyRefused(f"recovery key {name}: given PEM data is not a public key")
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise RecoveryKeyRefused(f"recovery key {name}: given PEM data is not a public key") from None
    if not isinstance(key, rsa.RSAPublicKey):
        raise RecoveryKeyRefused(f"recovery key {name}: unsupported type of public key")
    return key
