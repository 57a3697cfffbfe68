# SPDX-License-Identifier: Apache-2.0
"""EME-OAEP decoding (RFC 8017, 7.1.2 step 3) with SHA-256 and no label, for tokens that do the RSA part only.

Its timing tells something about a bad padding (Manger's attack), but to nobody: the one who runs it owns the key, and
asks for one decryption by hand.
"""

from __future__ import annotations

import hashlib
import hmac

_SIZE = hashlib.sha256().digest_size
_LABEL_HASH = hashlib.sha256(b"").digest()


def unpad(block: bytes) -> bytes:
    """The message in an RSA block (as long as the modulus). Raises ValueError if it is not padded so."""
    if len(block) < 2 * _SIZE + 2:
        raise ValueError("block too short")
    masked_seed, masked = block[1 : 1 + _SIZE], block[1 + _SIZE :]
    seed = _xor(masked_seed, _mask(masked, _SIZE))
    data = _xor(masked, _mask(seed, len(masked)))
    rest = data[_SIZE:].lstrip(b"\0")
    good = hmac.compare_digest(data[:_SIZE], _LABEL_HASH) and block[0] == 0 and rest[:1] == b"\1"
    if not good:
        raise ValueError("not padded by OAEP with SHA-256")
    return rest[1:]


def _mask(seed: bytes, size: int) -> bytes:
    """MGF1 (RFC 8017, B.2.1)."""
    blocks = (hashlib.sha256(seed + counter.to_bytes(4)).digest() for counter in range(-(-size // _SIZE)))
    return b"".join(blocks)[:size]


def _xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b, strict=True))
