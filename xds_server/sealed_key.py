# SPDX-License-Identifier: Apache-2.0
"""`sealed_key`: the data key, protected. (signatures)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from manifests.model import SealMode
from sds.attestation.sealing_keys import SealingKeySource


class KeyProtection(Protocol):
    """How a data key lies on disk."""

    def protect(self, dek: bytes, mode: SealMode, sealed_data: bytes) -> bytes | None: ...

    def reveal(self, sealed_key: bytes, sealed_data: bytes) -> bytes: ...


@dataclass(frozen=True, slots=True)
class TeeProtection:
    """Sealed by the TEE."""

    source: SealingKeySource

    def protect(self, dek: bytes, mode: SealMode, sealed_data: bytes) -> bytes | None:
        raise NotImplementedError

    def reveal(self, sealed_key: bytes, sealed_data: bytes) -> bytes:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class NoSealing:
    """A TEE without sealing keys (TDX): no key file, always recovery."""

    def protect(self, dek: bytes, mode: SealMode, sealed_data: bytes) -> bytes | None:
        raise NotImplementedError

    def reveal(self, sealed_key: bytes, sealed_data: bytes) -> bytes:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class PlainKey:
    """`--insecure-no-attestation`: the raw key, as MarbleRun's no-enclave build has it."""

    def protect(self, dek: bytes, mode: SealMode, sealed_data: bytes) -> bytes | None:
        raise NotImplementedError

    def reveal(self, sealed_key: bytes, sealed_data: bytes) -> bytes:
        raise NotImplementedError
