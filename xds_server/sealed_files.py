# SPDX-License-Identifier: Apache-2.0
"""`sealed_data`, byte for byte as MarbleRun's standalone store:

    u32 LE length ‖ recovery data (JSON, in clear) ‖ 12-byte nonce ‖ AES-256-GCM(DEK, state JSON), no associated data

Nonces are random, which is good for 2^32 commits under one data key (NIST SP 800-38D, 8.3): at 100 a second, for more
than a year of nothing else. The recovery data is not authenticated: whoever changes it can spoil a recovery, as by
deleting the file, but learns nothing by it.
"""

from __future__ import annotations

import secrets
import struct
from dataclasses import dataclass, field
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from xds_server.records_json import MAX_STATE
from xds_server.recovery import MAX_RECOVERY_DATA
from xds_server.store_errors import StoreDamaged, WrongKey

NONCE = 12
TAG = 16
DEK_SIZES = (32, 16)  # 16 bytes: states from before MarbleRun 1.9
MAX_SEALED_DATA = 4 + MAX_RECOVERY_DATA + NONCE + MAX_STATE + TAG


@dataclass(frozen=True, slots=True)
class SealedData:
    """The file's two parts."""

    recovery_data: bytes = field(repr=False)
    sealed: bytes = field(repr=False)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Raises StoreDamaged."""
        recovery_data, sealed = split_block(data, "sealed_data", MAX_RECOVERY_DATA)
        if len(data) > MAX_SEALED_DATA or len(sealed) < NONCE + TAG:
            raise StoreDamaged(f"sealed_data is damaged: its sealed part has {len(sealed)} bytes")
        return cls(recovery_data, sealed)

    @classmethod
    def seal(cls, dek: bytes, recovery_data: bytes, state: bytes) -> Self:
        return cls(recovery_data, seal(dek, state))

    def to_bytes(self) -> bytes:
        return struct.pack("<I", len(self.recovery_data)) + self.recovery_data + self.sealed

    def open(self, dek: bytes) -> bytes:
        """The state JSON; raises WrongKey."""
        return unseal(dek, self.sealed)


def split_block(data: bytes, what: str, limit: int) -> tuple[bytes, bytes]:
    """What a u32 LE length at the beginning counts, and the rest; raises StoreDamaged."""
    size = int.from_bytes(data[:4], "little")
    if len(data) < 4 or size > min(limit, len(data) - 4):
        raise StoreDamaged(f"{what} is damaged: it has {len(data)} bytes, and its first part claims {size}")
    return data[4 : 4 + size], data[4 + size :]


def seal(key: bytes, plain: bytes, associated: bytes | None = None) -> bytes:
    """nonce ‖ ciphertext ‖ tag."""
    nonce = secrets.token_bytes(NONCE)
    return nonce + AESGCM(key).encrypt(nonce, plain, associated)


def unseal(key: bytes, sealed: bytes, associated: bytes | None = None) -> bytes:
    """Raises WrongKey, also for a key of a length that AES does not have."""
    if len(key) not in DEK_SIZES or len(sealed) < NONCE + TAG:
        raise WrongKey(f"a key of {len(key)} bytes cannot open {len(sealed)} sealed bytes")
    try:
        return AESGCM(key).decrypt(sealed[:NONCE], sealed[NONCE:], associated)
    except InvalidTag:
        raise WrongKey("the key does not open the sealed state, or the state was changed") from None
