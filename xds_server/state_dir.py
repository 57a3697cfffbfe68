# SPDX-License-Identifier: Apache-2.0
"""The state directory: two files that change together, though a file system renames only one at a time.

A commit, where D and K are the old and d and k the new data and key, and │ is an fsync of the directory:

    1  write and fsync d as sealed_data.tmp, k as sealed_key.tmp                                   │
    2  sealed_key → sealed_key.old, sealed_data → sealed_data.old                                  │
    3  sealed_key.tmp → sealed_key, sealed_data.tmp → sealed_data   (this last one is the commit)  │

So what is read is sealed_data, if it is there, and else sealed_data.old, if sealed_data.tmp shows that a commit was
under way; with whichever of the three key files fits it. Every instant, and every subset of the renames of one step
that a power failure may leave, has exactly one such pair, complete: D and K up to the last rename, then d and k.
When an operation fails, what was done is undone, so that after a restart the state is the one that the caller knows of.
"""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass, field
from pathlib import Path

from sds.logs import get_logger
from xds_server.file_ops import FileOps, SystemFiles
from xds_server.sealed_files import MAX_SEALED_DATA
from xds_server.sealed_key import MAX_SEALED_KEY
from xds_server.store_errors import CommitFailed, CommitInDoubt, StoreDamaged, StoreError

DATA, KEY = "sealed_data", "sealed_key"
OLD, TMP = ".old", ".tmp"
LOCK = "lock"
_MAX_KEPT = 1000

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """What lies in the directory: the one `sealed_data` that counts, and every key file, by name.

    `at_rest`: no commit was cut off, so that `sealed_key`, if it is there, belongs to the data."""

    data: bytes = field(repr=False)
    keys: tuple[tuple[str, bytes], ...] = field(repr=False)
    at_rest: bool


class StateDirectory:
    """A directory of one process. Not thread-safe: the caller lets one operation end before the next."""

    def __init__(self, path: Path, files: FileOps | None = None) -> None:
        """Take it, and make it (0700) if need be; raises StoreError, also if another process has it."""
        self.path = path
        self._files = files or SystemFiles()
        # Renames that bring the pair in force back to its names; done before anything else is moved.
        self._unsettled: list[tuple[str, str]] = []
        self._in_doubt: CommitInDoubt | None = None
        self._lock = self._take()

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._lock)

    def read(self) -> Found | None:
        """What a start finds, None in a directory without state; raises StoreError."""
        data = self._read(DATA, MAX_SEALED_DATA)
        if data is None and self._exists(DATA + TMP):
            data = self._read(DATA + OLD, MAX_SEALED_DATA)
            if data is not None:
                _log.info("the last commit was cut off, the state before it is in force")
                self._unsettled.append((DATA + OLD, DATA))
        if data is None:
            return None
        names = (KEY, KEY + OLD, KEY + TMP)
        keys = tuple((name, key) for name in names if (key := self._read(name, MAX_SEALED_KEY)) is not None)
        return Found(data, keys, at_rest=not self._unsettled)

    def fits(self, key_name: str) -> None:
        """Say which of the key files belongs to the data that was read; brings both back to their names."""
        if key_name != KEY:
            self._unsettled.append((key_name, KEY))
        try:
            self._settle()
        except OSError as e:
            _log.warning("state directory cannot be put in order yet", error=e.strerror)

    def write(self, data: bytes, key: bytes | None) -> None:
        """Replace both files, or neither; raises CommitFailed. Without `key` there is no key file afterwards."""
        if self._in_doubt is not None:
            raise CommitInDoubt(str(self._in_doubt))
        done: list[tuple[str, str]] = []
        try:
            self._settle()
            self._forget_old()
            if key is not None:
                self._create(KEY + TMP, key)
            self._create(DATA + TMP, data)
            self._sync()
            for name in (KEY, DATA):
                self._move(name, name + OLD, done, if_there=True)
            self._sync()
            if key is not None:
                self._move(KEY + TMP, KEY, done)
            self._move(DATA + TMP, DATA, done)
            self._sync()
        except OSError as e:
            raise self._undo(done, e) from e

    def set_aside(self) -> None:
        """Take the state out of force without destroying it, for it to be never loaded again; raises CommitFailed."""
        if self._in_doubt is not None:
            raise CommitInDoubt(str(self._in_doubt))
        try:
            self._settle()
            if self._exists(DATA):
                self._files.rename(self.path / DATA, self.path / f"{DATA}{self._unused_suffix()}")
                self._sync()
        except OSError as e:
            raise self._failed("set the old state aside", e) from e

    def keep_copy(self) -> None:
        """Copy data and keys beside themselves, for a state that is about to be replaced without having been opened;
        raises CommitFailed."""
        suffix = self._unused_suffix()
        try:
            self._settle(clean=False)
            for name in (KEY, KEY + OLD, KEY + TMP, DATA):
                if (content := self._read(name, MAX_SEALED_DATA)) is not None:
                    self._create(f"{name}{suffix}{TMP}", content)
                    self._files.rename(self.path / f"{name}{suffix}{TMP}", self.path / f"{name}{suffix}")
            self._sync()
        except OSError as e:
            raise self._failed("keep a copy of the locked state", e) from e

    # --- inside

    def _take(self) -> int:
        try:
            if not self.path.is_dir():
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._sync(self.path.parent)
            descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as e:
            raise StoreError(f"cannot use the state directory {self.path}: {e.strerror}") from e
        try:
            _flock(descriptor)
        except OSError as e:
            os.close(descriptor)
            if e.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise StoreError(
                    f"the state directory {self.path} is in use by another Coordinator: end that one, or name another"
                    " directory with EDG_COORDINATOR_SEAL_DIR"
                ) from None
            raise StoreError(f"cannot lock the state directory {self.path}: {e.strerror}") from e
        return descriptor

    def _exists(self, name: str) -> bool:
        return (self.path / name).exists()

    def _read(self, name: str, limit: int) -> bytes | None:
        try:
            with (self.path / name).open("rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError:
            return None
        except OSError as e:
            raise StoreError(f"cannot read {self.path / name}: {e.strerror}") from e
        if len(data) > limit:
            raise StoreDamaged(f"{self.path / name} has more than {limit} bytes: it is not what this program writes")
        return data

    def _create(self, name: str, data: bytes) -> None:
        descriptor = self._files.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._files.write(descriptor, rest) :]
            self._files.fsync(descriptor)
        finally:
            self._files.close(descriptor)

    def _move(self, source: str, target: str, done: list[tuple[str, str]], *, if_there: bool = False) -> None:
        if if_there and not self._exists(source):
            return
        self._files.rename(self.path / source, self.path / target)
        done.append((source, target))

    def _sync(self, path: Path | None = None) -> None:
        """Make renames durable."""
        descriptor = self._files.open(path or self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._files.fsync(descriptor)
        except OSError as e:
            if e.errno != errno.EINVAL:  # a file system that keeps directories its own way says that it cannot
                raise
        finally:
            self._files.close(descriptor)

    def _settle(self, *, clean: bool = True) -> None:
        """Do the renames that are still to be done, then remove what a cut-off commit left."""
        if self._unsettled:
            while self._unsettled:
                source, target = self._unsettled[0]
                if self._exists(source):
                    self._files.rename(self.path / source, self.path / target)
                del self._unsettled[0]
            self._sync()
        if clean:
            for name in (DATA + TMP, KEY + TMP):
                if self._exists(name):
                    self._files.unlink(self.path / name)

    def _forget_old(self) -> None:
        """Without a state in force, one from before (its file was deleted, or set aside) must not come back when the
        first commit is cut off."""
        if not self._exists(DATA) and self._exists(DATA + OLD):
            self._files.unlink(self.path / (DATA + OLD))
            self._sync()

    def _undo(self, done: list[tuple[str, str]], cause: OSError) -> CommitFailed:
        committed = (DATA + TMP, DATA) in done
        # Data first: with it back at its name, the old pair is the one that a start finds, wherever the keys are.
        back = [(DATA + OLD, DATA), (KEY + OLD, KEY)]
        self._unsettled = [move for move in back if move[::-1] in done] or self._unsettled
        try:
            if committed and (DATA, DATA + OLD) not in done:  # there was no state before
                self._files.unlink(self.path / DATA)
            self._settle()
            self._sync()
        except OSError as e:
            if committed:
                self._in_doubt = CommitInDoubt(
                    f"cannot write the state to {self.path}: {cause.strerror}; nor can it be taken back: {e.strerror};"
                    " restart the Coordinator and look which state is in force"
                )
                return self._in_doubt
        return self._failed("write the state", cause)

    def _failed(self, what: str, e: OSError) -> CommitFailed:
        return CommitFailed(f"cannot {what} in {self.path}: {e.strerror}; nothing has changed")

    def _unused_suffix(self) -> str:
        for number in range(1, _MAX_KEPT):
            if not self._exists(f"{DATA}.kept-{number}"):
                return f".kept-{number}"
        raise CommitFailed(f"{self.path} holds {_MAX_KEPT} old states ({DATA}.kept-*): remove those not needed")


def _flock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        if e.errno not in (errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        # Gramine has flock only as an option, record locks always; both only among its own processes.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
