# SPDX-License-Identifier: Apache-2.0
"""The Coordinator's records on disk. (signatures; see the methods)"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from manifests.model import Manifest
from xds_server.records import Records
from xds_server.recovery import RecoveryTerms
from xds_server.sealed_key import KeyProtection


@dataclass(frozen=True, slots=True)
class Fresh:
    """Nothing is stored: a new deployment."""


@dataclass(frozen=True, slots=True)
class Loaded:
    records: Records


@dataclass(frozen=True, slots=True)
class Locked:
    """A state is there, but its key is not to be had here: `recovery_data` (2.8) is what a RecoverySession needs;
    `reason` for the log."""

    recovery_data: bytes = field(repr=False)
    reason: str


class Store:
    @classmethod
    def open(cls, directory: Path, protection: KeyProtection) -> Self:
        """Take the directory (made with mode 0700 if need be) for this process; raises StoreError."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the directory."""
        raise NotImplementedError

    def load(self) -> Fresh | Loaded | Locked:
        """What the last run left; raises StoreError (fatal)."""
        raise NotImplementedError

    def commit(self, records: Records) -> None:
        """Write all of it; blocking. Raises CommitFailed, and then the old state is in force.
        Writes nothing without a manifest or with SealMode Disabled."""
        raise NotImplementedError

    def new_key(self, dek: bytes, recovery_data: bytes) -> None:
        """Use this data key from the next commit on (set-manifest, or new recovery keys). If that commit fails,
        the key is forgotten with it: give it again."""
        raise NotImplementedError

    def recovery_terms(self, dek: bytes) -> RecoveryTerms:
        """Who may recover the locked state, as its manifest says (for RecoverySession); raises WrongKey."""
        raise NotImplementedError

    def unlock(self, dek: bytes) -> Records:
        """Open the locked state; commit afterwards, to seal its key to this machine. Raises WrongKey."""
        raise NotImplementedError

    def warnings(self, manifest: Manifest) -> tuple[str, ...]:
        """What somebody who sets this manifest must know about its durability here."""
        raise NotImplementedError
