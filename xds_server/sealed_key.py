# SPDX-License-Identifier: Apache-2.0
"""`sealed_key`: how the data key (DEK) lies on disk.

    in a TEE             u32 LE length ‖ key info ‖ nonce ‖ AES-256-GCM(sealing key, DEK), AAD = SHA-256(sealed_data)
    TEE without keys     no file; after a restart the key comes back by recovery only
    no attestation       the raw DEK, as MarbleRun's build without enclave writes it

The frame is MarbleRun's. The key info is ours, since ours asks the TEE in another way: JSON, at most 1 KiB, with `v` 1,
`platform`, `policy` (ProductKey or UniqueKey) and `salt` (32 bytes in hex). The sealing key is HKDF-SHA256 of the TEE's
key with that salt, and a prefix and the whole key info as info, so none of it can be changed unnoticed. The associated
data ties the file to the one `sealed_data` that it was written with: files of two commits do not fit each other.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import struct
from typing import Final, Protocol

from manifests.model import SealMode
from sds.attestation.errors import DeviceUnavailable
from sds.attestation.sealing_keys import SealingKeySource, SealPolicy
from xds_server.sealed_files import DEK_SIZES, seal, split_block, unseal
from xds_server.store_errors import KeyUnavailable, StoreDamaged, WrongKey

MAX_SEALED_KEY = 4096
_MAX_KEY_INFO = 1024
_SALT = 32
_PURPOSE = b"marblemesh sealed_key 1\0"
_HSM = b"HSM_SEALED"


class KeyProtection(Protocol):
    """How a data key lies on disk, and how it comes back. Blocking."""

    @property
    def survives_restart(self) -> bool:
        """Can a new process get the key without its owners?"""

    @property
    def wrong_key_is_fatal(self) -> bool:
        """Must a key file that does not open the state end the start, rather than lead to recovery?"""

    def protect(self, dek: bytes, mode: SealMode, sealed_data: bytes) -> bytes | None:
        """The file for this data key and this `sealed_data`, or None if there is none; raises KeyUnavailable."""

    def reveal(self, sealed_key: bytes, sealed_data: bytes) -> bytes:
        """The data key in the file; raises KeyUnavailable."""


class TeeProtection:
    """Sealed by the TEE's own keys."""

    survives_restart: Final = True
    wrong_key_is_fatal: Final = False

    def __init__(self, source: SealingKeySource) -> None:
        self._source = source

    def protect(self, dek: bytes, mode: SealMode, sealed_data: bytes) -> bytes:
        """See KeyProtection."""
        policy = SealPolicy.UNIQUE_KEY if mode is SealMode.UNIQUE_KEY else SealPolicy.PRODUCT_KEY
        salt = secrets.token_bytes(_SALT)
        members = {"v": 1, "platform": self._source.platform, "policy": policy.value, "salt": salt.hex()}
        info = json.dumps(members, separators=(",", ":")).encode()
        key = self._derive(policy, salt, info)
        return struct.pack("<I", len(info)) + info + seal(key, dek, hashlib.sha256(sealed_data).digest())

    def reveal(self, sealed_key: bytes, sealed_data: bytes) -> bytes:
        """See KeyProtection."""
        if sealed_key.startswith(_HSM):
            raise KeyUnavailable("it is sealed with a key of an Azure HSM, which is not supported here")
        try:
            info, sealed = split_block(sealed_key, "sealed_key", _MAX_KEY_INFO)
        except StoreDamaged:
            raise KeyUnavailable("it is no key that this program sealed") from None
        policy, salt = self._read_info(info)
        try:
            dek = unseal(self._derive(policy, salt, info), sealed, hashlib.sha256(sealed_data).digest())
        except WrongKey:
            raise KeyUnavailable(
                "it was sealed on another machine or by another enclave, or belongs to another sealed_data"
            ) from None
        if len(dek) not in DEK_SIZES:
            raise KeyUnavailable(f"the key in it has {len(dek)} bytes")
        return dek

    def _read_info(self, info: bytes) -> tuple[SealPolicy, bytes]:
        try:
            members = json.loads(info)
            version, platform = members["v"], members["platform"]
            policy, salt = SealPolicy(members["policy"]), bytes.fromhex(members["salt"])
        except (ValueError, TypeError, KeyError, RecursionError):
            raise KeyUnavailable("it is no key that this program sealed") from None
        if version != 1 or len(salt) != _SALT:
            raise KeyUnavailable("it is of a version that this program does not know")
        if platform != self._source.platform:
            raise KeyUnavailable(f"it was sealed on platform {str(platform)[:40]!a}, this is {self._source.platform}")
        return policy, salt

    def _derive(self, policy: SealPolicy, salt: bytes, info: bytes) -> bytes:
        try:
            return self._source.derive(policy, salt, _PURPOSE + info)
        except DeviceUnavailable as e:
            raise KeyUnavailable(f"the TEE gives no sealing key: {e}") from e


class NoSealing:
    """A TEE that has no sealing keys (a TDX guest): only its owners bring the key back."""

    survives_restart: Final = False
    wrong_key_is_fatal: Final = False

    def protect(self, dek: bytes, mode: SealMode, sealed_data: bytes) -> None:
        """See KeyProtection."""

    def reveal(self, sealed_key: bytes, sealed_data: bytes) -> bytes:
        """See KeyProtection."""
        raise KeyUnavailable("this platform has no sealing keys")


class PlainKey:
    """No protection at all: for `--insecure-no-attestation`, where nothing is protected anyway."""

    survives_restart: Final = True
    wrong_key_is_fatal: Final = True

    def protect(self, dek: bytes, mode: SealMode, sealed_data: bytes) -> bytes:
        """See KeyProtection."""
        return dek

    def reveal(self, sealed_key: bytes, sealed_data: bytes) -> bytes:
        """See KeyProtection."""
        if len(sealed_key) not in DEK_SIZES:
            raise KeyUnavailable(f"it has {len(sealed_key)} bytes, a raw data key has 32: was it sealed by a TEE?")
        return sealed_key
