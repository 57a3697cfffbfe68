# SPDX-License-Identifier: Apache-2.0
"""Keys that only this enclave, or enclaves of the same signer, can get on this machine.

A sealing key never leaves this package as it came from the platform: `derive` gives keys made from it for one purpose.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sds.attestation.errors import DeviceUnavailable
from sds.attestation.issue_gramine import GRAMINE_DEVICE
from sds.attestation.issuer import read_device

# EGETKEY gives 128 bits. A key that reads shorter, or as zeros, is one that Gramine has not set.
_SGX_KEY = 16
_MAX_KEY = 64


class SealPolicy(StrEnum):
    """Whom a key is bound to; the words of the manifest's SealMode."""

    PRODUCT_KEY = "ProductKey"  # the enclave's signer (and product): a new version of it gets the key too
    UNIQUE_KEY = "UniqueKey"  # the enclave's measurement: only this very code


class SealingKeySource(Protocol):
    """A platform's sealing keys. `platform` names it in what is stored, so that a key is not asked of another one."""

    @property
    def platform(self) -> str: ...

    def derive(self, policy: SealPolicy, salt: bytes, info: bytes) -> bytes:
        """32 bytes for one purpose; blocking. Raises DeviceUnavailable.

        The same arguments give the same key as long as machine, code (by `policy`) and security version stay.
        """


@dataclass(frozen=True, slots=True)
class GramineSealingKeys:
    """Gramine's `keys/_sgx_mrsigner` and `keys/_sgx_mrenclave` (EGETKEY).

    They change with the CPU's microcode and with the enclave's ISVSVN; then only recovery opens what was sealed.
    """

    base: Path = GRAMINE_DEVICE

    @property
    def platform(self) -> str:
        return "gramine"

    def derive(self, policy: SealPolicy, salt: bytes, info: bytes) -> bytes:
        """See SealingKeySource."""
        name = "_sgx_mrenclave" if policy is SealPolicy.UNIQUE_KEY else "_sgx_mrsigner"
        path = self.base / "keys" / name
        try:
            key = read_device(path, _MAX_KEY)
        except OSError as e:
            raise DeviceUnavailable(f"{path}: {e.strerror}: is this an SGX enclave under Gramine?") from e
        if len(key) != _SGX_KEY or not any(key):
            raise DeviceUnavailable(f"{path} has {len(key)} bytes, expected {_SGX_KEY} that are not all zero")
        return derive(key, salt, info)


def derive(key: bytes, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA256 (RFC 5869): a platform may use its key for other things too, such as encrypted mounts."""
    return HKDF(SHA256(), 32, salt, info).derive(key)
