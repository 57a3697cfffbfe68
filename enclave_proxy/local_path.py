# SPDX-License-Identifier: Apache-2.0
"""A UNIX socket file that is ours alone: who may open it, and how a second server is kept from taking its place.

Binding a path again silently takes the socket away from whoever served there. So a lock file is held, a socket file
that is there already is removed only if nobody answers on it, and a directory in which others could replace the file is
not accepted. The file is born closed to everybody but its owner and opened up only when owner, group and mode are set.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from enclave_proxy.errors import StartError

MODE = 0o600
# grpclib's default of 100 made 200 clients that came at once wait for each other.
BACKLOG = 4096
# sizeof(sockaddr_un.sun_path) - 1 on Linux.
MAX_PATH = 107
# File systems without locks (Gramine knows none on some mounts): the probe alone must do.
_NO_LOCKS = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK})


class SocketPathError(StartError):
    """This path cannot be served on: somebody else does, or others could take it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a socket lies and who may open it; `owner` and `group` None: as they come."""

    path: Path
    mode: int = MODE
    owner: int | None = None
    group: int | None = None

    def hidden_by(self) -> Path | None:
        """The directory that keeps those out whom `mode` would let in; None if there is none."""
        if not self.mode & (stat.S_IWGRP | stat.S_IWOTH):
            return None
        # A member of the group comes through a directory by either bit, whoever is let in as "others" by one only.
        need = stat.S_IXOTH if self.mode & stat.S_IWOTH else stat.S_IXGRP | stat.S_IXOTH
        return next((directory for directory in self.path.parents if not directory.stat().st_mode & need), None)


class BoundSocket:
    """A listening socket on a path of its own. Make it with `claim`, give it up with `close`."""

    def __init__(self, listener: socket.socket, path: Path, lock: int | None) -> None:
        self.listener = listener
        self.path = path
        self._lock = lock
        self._file = _file_at(path)

    @classmethod
    def claim(cls, place: Place) -> BoundSocket:
        """Listen there. Raises SocketPathError naming the path and what is in the way."""
        path = place.path
        if len(os.fsencode(path)) > MAX_PATH:
            raise SocketPathError(f"{str(path)!r} is longer than {MAX_PATH} bytes, a socket cannot have that name")
        try:
            _check_directory(path.parent)
            lock = _take_lock(path)
            try:
                _remove_stale(path)
                return cls(_listen(place), path, lock)
            except BaseException:
                if lock is not None:
                    os.close(lock)
                raise
        except OSError as error:
            raise SocketPathError(f"cannot listen on {str(path)!r}: {error.strerror or error}") from error

    def close(self) -> None:
        """Stop listening and remove the file, if it is still ours."""
        self.listener.close()
        if self._file is not None and self._file == _file_at(self.path):
            self.path.unlink(missing_ok=True)
        if self._lock is not None:
            # The lock file stays: removing it would let two others lock two different files of the same name.
            os.close(self._lock)
            self._lock = None


def _check_directory(directory: Path) -> None:
    """Whoever may rename files here can put a socket of his own in place of ours, and give the app his identity."""
    status = directory.stat()
    shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX
    if shared or status.st_uid not in (os.geteuid(), 0):
        raise SocketPathError(
            f"directory {str(directory)!r} may be written by others (owner {status.st_uid}, mode "
            f"{stat.S_IMODE(status.st_mode):o}), who could replace the socket: choose another path"
        )


def _take_lock(path: Path) -> int | None:
    """Hold `<path>.lock` until the descriptor is closed. None: the file system has no locks."""
    descriptor = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise SocketPathError(f"{path} is served by another process: give each worker its own run directory") from None
    except OSError as error:
        os.close(descriptor)
        if error.errno in _NO_LOCKS:
            return None
        raise
    return descriptor


def _remove_stale(path: Path) -> None:
    """Never waits: connecting to a UNIX socket is decided at once."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SocketPathError(f"{path} exists and is no socket: remove it or choose another path")
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass  # a full backlog: somebody listens
    raise SocketPathError(f"somebody answers on {path}: give each worker its own run directory")


def _listen(place: Place) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        before = os.umask(0o777 & ~MODE)
        try:
            listener.bind(str(place.path))
        finally:
            os.umask(before)
    except BaseException:
        listener.close()
        raise
    try:
        # Nobody can connect before `listen`, so that the file is never open to more users than intended.
        if place.owner is not None or place.group is not None:
            keep = -1
            owner, group = (keep if number is None else number for number in (place.owner, place.group))
            os.chown(place.path, owner, group, follow_symlinks=False)
        place.path.chmod(place.mode)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        place.path.unlink(missing_ok=True)
        raise
    return listener


def _file_at(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
