# SPDX-License-Identifier: Apache-2.0
"""Who this instance is between restarts: the UUID file. And the only one in its run directory: the lock.

The UUID is no secret and no proof of anything. It keeps a Marble's per-instance secrets the same over restarts, because
the Coordinator derives them from it; MarbleRun lays it on the untrusted file system for that reason, and so do we.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import uuid
from pathlib import Path
from typing import Self

from enclave_proxy.errors import StartError

# 36 characters and a newline; anything longer is not a UUID and need not be read.
_MAX_UUID_FILE = 64


def load_or_create_uuid(path: Path) -> str:
    """The instance's UUID, lower case, 36 characters; made at random (version 4) on first start.

    A final newline is accepted (MarbleRun refuses it), because that is what an editor or `uuidgen >` leaves and there
    is no second way to read it. Anything else is an error: a new UUID would silently lose the instance's secrets.
    """
    text = _read(path)
    if text is None:
        return _create(path)
    try:
        parsed = uuid.UUID(text.removesuffix("\n"))
    except ValueError:
        parsed = uuid.UUID(int=0)
    if str(parsed) != text.removesuffix("\n").lower() or parsed.int == 0:
        raise StartError(
            f"UUID file {str(path)!r} holds no UUID (expected 36 characters like "
            "6ba7b810-9dad-41d1-80b4-00c04fd430c8): restore it, or remove it to become a new instance"
        )
    return str(parsed)


def _read(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_UUID_FILE).decode("ascii", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StartError(f"cannot read UUID file {str(path)!r}: {error.strerror}") from error


def _create(path: Path) -> str:
    """Write beside it, then link: a crash leaves no half file, and of two first starts exactly one wins."""
    fresh = str(uuid.uuid4())
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(fresh)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return load_or_create_uuid(path)
        except OSError:
            # Gramine and some volumes know no hard links. Rename is as crash-safe; only the race between two first
            # starts is then decided by who comes last, and the run directory's lock forbids that race anyway.
            temporary.rename(path)
    except OSError as error:
        raise StartError(f"cannot write UUID file {str(path)!r}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return fresh


class RunDirectory:
    """The directory of this worker's sockets, held by one living worker at a time."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def claim(cls, path: Path) -> Self:
        """Create (0700) and lock the directory. Raises StartError if a worker lives in it or others may write."""
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = path.stat()
        except OSError as error:
            raise StartError(f"cannot use run directory {str(path)!r}: {error.strerror}") from error
        # Whoever may write here can replace our sockets by their own and read what the app says.
        if status.st_uid not in (os.geteuid(), 0) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise StartError(
                f"run directory {str(path)!r} may be written by others (owner {status.st_uid}, mode "
                f"{stat.S_IMODE(status.st_mode):o}): give --run-dir one of your own with mode 0700"
            )
        return cls(path, _lock(path / "worker.lock", path))

    def release(self) -> None:
        """Let go of the directory. The lock file stays: removing it would let two workers lock two different files."""
        os.close(self._lock)


def _lock(file: Path, run_dir: Path) -> int:
    try:
        lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StartError(f"cannot create {str(file)!r}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Gramine without `sys.experimental__enable_flock`: an enclave's sockets are its own, nobody else can be here.
        if error.errno in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
            return lock
        holder = os.pread(lock, 32, 0).decode("ascii", errors="replace").strip()
        os.close(lock)
        raise StartError(
            f"another worker (process {holder or 'unknown'}) uses run directory {str(run_dir)!r}: "
            "stop it, or give this one its own --run-dir"
        ) from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock
