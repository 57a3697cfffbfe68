# SPDX-License-Identifier: Apache-2.0
"""The Coordinator's records on disk, sealed: all of them at each commit, and all of a commit or nothing.

    records_json  records ↔ state JSON       sealed_files  state JSON ↔ sealed_data     state_dir  two files at once
    records_read                             sealed_key    data key ↔ sealed_key        file_ops   the operations

Everything here blocks (a commit waits for the disk: 5 fsyncs); the caller runs it in a thread, one call at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from manifests.errors import ManifestError, ManifestSyntaxError
from manifests.model import Manifest, SealMode
from manifests.parse import parse
from sds.logs import get_logger
from xds_server.file_ops import FileOps
from xds_server.records import Records
from xds_server.records_json import Writer
from xds_server.records_read import ReadState, read_records
from xds_server.recovery import RecoveryTerms
from xds_server.sealed_files import DEK_SIZES, SealedData
from xds_server.sealed_key import KeyProtection
from xds_server.state_dir import KEY, Found, StateDirectory
from xds_server.store_errors import CommitFailed, KeyUnavailable, StoreDamaged, StoreError, WrongKey

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Fresh:
    """Nothing is stored: a new deployment."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the last commit wrote."""

    records: Records


@dataclass(frozen=True, slots=True)
class Locked:
    """A state is there, but its key is not to be had here. `recovery_data` is what a RecoverySession starts from;
    `reason` is for the log."""

    recovery_data: bytes = field(repr=False)
    reason: str


@dataclass(frozen=True, slots=True)
class _Key:
    """A data key, and what its owners need to bring it back."""

    dek: bytes = field(repr=False)
    recovery_data: bytes = field(repr=False)


class Store:
    """One state directory, from `open` to `close`."""

    def __init__(self, directory: StateDirectory, protection: KeyProtection) -> None:
        self._directory = directory
        self._protection = protection
        self._writer = Writer()
        self._manifest: Manifest | None = None  # parsed form of the last raw manifest that was seen
        self._key: _Key | None = None
        self._next_key: _Key | None = None
        self._locked: SealedData | None = None
        self._unlocked = False

    @classmethod
    def open(cls, directory: Path, protection: KeyProtection, files: FileOps | None = None) -> Self:
        """Take a directory for this process, and make it (mode 0700) if need be; raises StoreError."""
        return cls(StateDirectory(directory, files), protection)

    def close(self) -> None:
        """Let go of the directory."""
        self._directory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def load(self) -> Fresh | Loaded | Locked:
        """What the last run left. Raises StoreError for what must end the start: going on would forget the state."""
        found = self._directory.read()
        if found is None:
            return Fresh()
        data = SealedData.parse(found.data)
        reasons = []
        for name, content in found.keys:
            try:
                dek = self._protection.reveal(content, found.data)
                plain = data.open(dek)
            except (KeyUnavailable, WrongKey) as e:
                reasons.append(f"{name}: {e}")
                continue
            state = self._read(plain)
            self._directory.fits(name)
            self._key = _Key(dek, data.recovery_data)
            return Loaded(state.records)
        return self._lock(found, data, reasons)

    def commit(self, records: Records) -> None:
        """Write everything. Raises CommitFailed, and then the state from before is in force, also after a restart.

        Nothing is written without a manifest or with SealMode Disabled (then a state from before is set aside), nor
        where nobody could ever open it: without sealing keys and without RecoveryKeys.
        """
        key, self._next_key = self._next_key or self._key, None
        if not records.manifest:
            return
        manifest = self._parsed(records.manifest)
        if self._is_volatile(manifest):
            self._directory.set_aside()
        else:
            self._write(records, manifest, key)
        self._key, self._locked, self._unlocked = key, None, False

    def new_key(self, dek: bytes, recovery_data: bytes) -> None:
        """Use this data key from the next commit on (set-manifest, or an update of the recovery keys). If that commit
        fails, the key is forgotten with it: give it again."""
        if len(dek) not in DEK_SIZES:
            raise StoreError(f"a data key has {DEK_SIZES[0]} bytes, not {len(dek)}")
        self._next_key = _Key(dek, recovery_data)

    def recovery_terms(self, dek: bytes) -> RecoveryTerms:
        """Who may recover the locked state, as its manifest says; raises WrongKey, or StoreError."""
        manifest = self._peek(dek).manifest
        if manifest is None:
            return RecoveryTerms({}, 0)
        return RecoveryTerms(manifest.recovery_keys, manifest.config.recovery_threshold)

    def unlock(self, dek: bytes) -> Records:
        """The locked state's records; raises WrongKey, or StoreError. It stays locked on disk until the next commit,
        which seals the key to this platform."""
        state = self._peek(dek)
        if self._locked is not None:  # it is, or _peek would have raised
            self._key, self._unlocked = _Key(dek, self._locked.recovery_data), True
        return state.records

    def warnings(self, manifest: Manifest) -> tuple[str, ...]:
        """What somebody who sets this manifest must know about its state's life on this platform."""
        if manifest.config.seal_mode is SealMode.DISABLED:
            return ("SealMode is Disabled: a restart of the Coordinator loses its certificates and all secrets",)
        if not self._protection.survives_restart:
            if manifest.recovery_keys:
                return ("this platform has no sealing keys: each restart of the Coordinator needs recovery",)
            return (
                "this platform has no sealing keys and the manifest has no RecoveryKeys:"
                " a restart of the Coordinator loses its certificates and all secrets",
            )
        if not manifest.recovery_keys:
            return (
                "the manifest has no RecoveryKeys: another machine, or new microcode on this one, loses the"
                " Coordinator's certificates and all secrets",
            )
        return ()

    # --- inside

    def _lock(self, found: Found, data: SealedData, reasons: list[str]) -> Locked:
        reason = "; ".join(reasons) or "there is no sealed_key"
        if self._protection.wrong_key_is_fatal and found.at_rest and found.keys[:1] and found.keys[0][0] == KEY:
            raise StoreDamaged(
                f"the state in {self._directory.path} does not open ({reason}): put the sealed_key that belongs to it"
                " there, or remove sealed_key to recover the state"
            )
        self._locked = data
        return Locked(data.recovery_data, reason)

    def _peek(self, dek: bytes) -> ReadState:
        if self._locked is None:
            raise StoreError("the state is not locked")
        return self._read(self._locked.open(dek))

    def _read(self, plain: bytes) -> ReadState:
        state = read_records(plain)
        self._manifest = state.manifest
        if state.unknown:
            _log.warning("the sealed state has entries of another version", count=len(state.unknown))
        return state

    def _parsed(self, raw: bytes) -> Manifest:
        if self._manifest is None or self._manifest.raw != raw:
            try:
                self._manifest = parse(raw)
            except (ManifestError, ManifestSyntaxError) as e:
                raise CommitFailed(f"cannot store a manifest that cannot be read: {e}") from e
        return self._manifest

    def _is_volatile(self, manifest: Manifest) -> bool:
        if manifest.config.seal_mode is SealMode.DISABLED:
            return True
        return not self._protection.survives_restart and not manifest.recovery_keys

    def _write(self, records: Records, manifest: Manifest, key: _Key | None) -> None:
        if key is None:
            raise CommitFailed("the state has no data key yet: set one before the first commit")
        try:
            plain = self._writer.write(records, manifest)
            data = SealedData.seal(key.dek, key.recovery_data, plain).to_bytes()
            sealed_key = self._protection.protect(key.dek, manifest.config.seal_mode, data)
        except StoreError as e:
            raise CommitFailed(f"cannot seal the state: {e}; nothing has changed") from e
        if self._locked is not None and not (self._unlocked and key is self._key):
            # Anybody may set a manifest while the state is locked: that must not destroy what its owners can open.
            self._directory.keep_copy()
        self._directory.write(data, sealed_key)
