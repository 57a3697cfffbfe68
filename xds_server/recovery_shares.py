# SPDX-License-Identifier: Apache-2.0
"""Splitting a key into shares: XOR when everybody must come, Shamir when a threshold is enough.

Shamir in the form of HashiCorp Vault, which MarbleRun uses: each byte of the secret is the constant term of its own
polynomial over GF(2^8) (reduction 0x11B); a share is all the y bytes, then the x byte, 1 to 255.

Our own lines because the one Python library of this form (pyshamir) multiplies byte by byte and interpolates anew for
each byte: 254 shares take it minutes, on behalf of whoever uploads them. Here all bytes of a share are multiplied at
once in one integer, without tables indexed by secrets and without branches on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

MAX_SHARES = 255  # x is a byte, and 0 would be the secret itself


def xor(parts: Sequence[bytes]) -> bytes:
    """All parts added; they must be of one length. Raises ValueError."""
    if not parts or any(len(a) != len(b) for a, b in pairwise(parts)):
        raise ValueError("shares are not of one length")
    total = 0
    for part in parts:
        total ^= int.from_bytes(part)
    return total.to_bytes(len(parts[0]))


def split(secret: bytes, shares: int, threshold: int, rng: Callable[[int], bytes]) -> list[bytes]:
    """`shares` shares, any `threshold` of which give the secret back, and fewer say nothing about it.

    `rng(n)` gives n random bytes. Raises ValueError for impossible numbers.
    """
    if not secret or not 2 <= threshold <= shares <= MAX_SHARES:
        raise ValueError(f"cannot split {len(secret)} bytes into {shares} shares with threshold {threshold}")
    size = len(secret)
    coefficients = [int.from_bytes(rng(size)) for _ in range(threshold - 1)] + [int.from_bytes(secret)]
    result = []
    for x in range(1, shares + 1):  # an x is no secret: it stands in the share, and says only which one it is
        y = 0
        for coefficient in coefficients:
            y = _times(y, x, size) ^ coefficient
        result.append(y.to_bytes(size) + bytes([x]))
    return result


def combine(shares: Sequence[bytes]) -> bytes:
    """The secret of these shares, if they are enough; otherwise, or if one is false, other bytes. Raises ValueError."""
    xs = [share[-1] for share in shares if len(share) > 1]
    if len(xs) < 2 or len(xs) != len(shares) or len({len(share) for share in shares}) != 1:
        raise ValueError("at least two shares of one length are needed")
    if 0 in xs or len(set(xs)) != len(xs):
        raise ValueError("a share occurs twice or is at x = 0")
    size = len(shares[0]) - 1
    total = 0
    for share, x in zip(shares, xs, strict=True):
        # Lagrange's basis at 0: the product of other / (other - x); subtracting is adding.
        above = below = 1
        for other in xs:
            if other != x:
                above, below = _times(above, other, 1), _times(below, other ^ x, 1)
        total ^= _times(int.from_bytes(share[:-1]), _times(above, _inverse(below), 1), size)
    return total.to_bytes(size)


def _times(vector: int, scalar: int, size: int) -> int:
    """Each of the `size` bytes of `vector` times `scalar`, in GF(2^8)."""
    ones = int.from_bytes(b"\x01" * size)
    product = 0
    for bit in range(7, -1, -1):
        high = (product >> 7) & ones
        product = ((product ^ (high << 7)) << 1) ^ (high * 0x1B)
        product ^= vector * ((scalar >> bit) & 1)
    return product


def _inverse(value: int) -> int:
    """value^254, which is 1/value in a field of 256 elements."""
    result = 1
    for _ in range(7):
        value = _times(value, value, 1)
        result = _times(result, value, 1)
    return result
