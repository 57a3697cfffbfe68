# SPDX-License-Identifier: Apache-2.0
"""The state on disk, read and written by the description of MarbleRun's format alone, without any code of ours.

sealed_data = u32 LE length ‖ recovery data ‖ 12-byte nonce ‖ AES-256-GCM(data key, JSON object key → base64)
"""

from __future__ import annotations

import base64
import functools
import json
import operator
import os
from collections.abc import Iterable, Mapping, Sequence

from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def parts(sealed_data: bytes) -> tuple[bytes, bytes]:
    """Recovery data, and the sealed rest from its nonce on."""
    length = int.from_bytes(sealed_data[:4], "little")
    return sealed_data[4 : 4 + length], sealed_data[4 + length :]


def unseal(sealed_data: bytes, dek: bytes) -> dict[str, bytes]:
    """The state's entries; raises cryptography's InvalidTag for another key."""
    _, sealed = parts(sealed_data)
    state = json.loads(AESGCM(dek).decrypt(sealed[:12], sealed[12:], None))
    return {key: base64.b64decode(value, validate=True) for key, value in state.items()}


def seal(entries: Mapping[str, bytes], dek: bytes, recovery_data: bytes = b"null") -> bytes:
    """The file that holds these entries."""
    state = json.dumps({key: base64.b64encode(value).decode() for key, value in entries.items()}).encode()
    nonce = os.urandom(12)
    return join(recovery_data, nonce + AESGCM(dek).encrypt(nonce, state, None))


def join(recovery_data: bytes, sealed: bytes) -> bytes:
    return len(recovery_data).to_bytes(4, "little") + recovery_data + sealed


def xor(shares: Sequence[bytes]) -> bytes:
    """The data key of owners who are needed all."""
    return bytes(_sum(column) for column in zip(*shares, strict=True))


def interpolate(shares: Sequence[bytes]) -> bytes:
    """The data key of a threshold: Lagrange at 0, byte by byte, in GF(2^8) with 0x11B; a share ends with its x."""
    xs = [share[-1] for share in shares]
    weights = []
    for x in xs:
        weight = 1
        for other in xs:
            if other != x:
                weight = _times(weight, _times(other, _inverse(other ^ x)))
        weights.append(weight)
    columns = zip(*(share[:-1] for share in shares), strict=True)
    return bytes(_sum(_times(y, weight) for y, weight in zip(column, weights, strict=True)) for column in columns)


def _sum(values: Iterable[int]) -> int:
    return functools.reduce(operator.xor, values)


def _times(a: int, b: int) -> int:
    product = 0
    while b:
        if b & 1:
            product ^= a
        a <<= 1
        if a & 0x100:
            a ^= 0x11B
        b >>= 1
    return product


def _inverse(a: int) -> int:
    return next(b for b in range(1, 256) if _times(a, b) == 1)
