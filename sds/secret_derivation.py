# SPDX-License-Identifier: Apache-2.0
"""Keys of one instance, derived from the root secret: nothing is stored, and a restart finds the same keys again."""

from __future__ import annotations

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sds.errors import SdsError

# HKDF-SHA256 yields at most 255 blocks of 32 bytes (RFC 5869, 2.3).
MAX_BITS = 255 * 32 * 8


class DerivationError(SdsError):
    """No key of this size can be derived."""


def derive_symmetric(root_secret: bytes, uuid: str, name: str, marble_type_or_empty: str, bits: int) -> bytes:
    """The key `name` of the instance `uuid`, `bits` / 8 bytes: HKDF-SHA256 (RFC 5869), as MarbleRun derives it.

    Input key: the root secret; salt: the UUID (36 characters, lower case) and right behind it the secret's name; info:
    the Marble type, or "" for a type with DisableSecretBinding, whose instances may then change type and keep their
    keys. The UUID has a fixed length, so that no two (UUID, name) pairs share a salt. Raises DerivationError.
    """
    if not 0 < bits <= MAX_BITS or bits % 8:
        raise DerivationError(f"cannot derive a key of {bits} bits: expected a multiple of 8 up to {MAX_BITS}")
    kdf = HKDF(SHA256(), bits // 8, salt=(uuid.lower() + name).encode(), info=marble_type_or_empty.encode())
    return kdf.derive(root_secret)
