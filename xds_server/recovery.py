# SPDX-License-Identifier: Apache-2.0
"""Recovery: how the data key is shared out among key owners, and how it comes back. (signatures)"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from xds_server.errors import CoordinatorError


class RecoveryError(CoordinatorError):
    """The secret does not help; the text says why. (API: 500, prefix `setting recovery key: `)"""


class SecretNotDecrypted(RecoveryError):
    """Begins with `failed to decrypt recovery secret: `. (API: 400 fail)"""


class RecoveryKeyRefused(RecoveryError):
    """A manifest's recovery key or threshold cannot be used. (set-manifest)"""


@dataclass(frozen=True, slots=True)
class NewRecovery:
    """`encrypted`: recovery key name → RSA-OAEP ciphertext for its owner."""

    dek: bytes = field(repr=False)
    recovery_data: bytes = field(repr=False)
    encrypted: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class RecoveryTerms:
    """The sealed manifest's `RecoveryKeys` (name → PEM) and `RecoveryThreshold`."""

    keys: Mapping[str, str]
    threshold: int


@dataclass(frozen=True, slots=True)
class Progress:
    """`dek` once it is complete and everybody's signature was right."""

    remaining: int
    dek: bytes | None = field(default=None, repr=False)


def new_recovery(recovery_keys: Mapping[str, str], threshold: int, rng: Callable[[int], bytes]) -> NewRecovery:
    """A new data key, shared out to the key owners; raises RecoveryKeyRefused. `rng(n)` gives n random bytes."""
    raise NotImplementedError


class RecoverySession:
    """One recovery, from Locked until the key is there. Blocking and thread-safe: call by asyncio.to_thread."""

    def __init__(
        self, recovery_data: bytes, terms: Callable[[bytes], RecoveryTerms], monotonic: Callable[[], float]
    ) -> None:
        """`terms` is Store.recovery_terms. Raises RecoveryError for recovery data that cannot be read."""
        raise NotImplementedError

    def public_key(self) -> bytes:
        """The ephemeral RSA-4096 key in PKIX DER; made at the first call (seconds)."""
        raise NotImplementedError

    def offer(self, secret: bytes, signature: bytes) -> Progress:
        """One owner's secret, plain or encrypted to `public_key`; raises RecoveryError."""
        raise NotImplementedError
