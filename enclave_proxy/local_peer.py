# SPDX-License-Identifier: Apache-2.0
"""Who is at the other end of a UNIX socket, by the kernel's word, and whether that process may be there.

    SO_PEERCRED    user and group of the process at the moment it connected: nothing that the client says
    SO_PEERGROUPS  its further groups
    SO_PEERPIDFD   a handle on that very process (Linux 6.5): when it has ended it stays ended, whoever gets its number

The handle is held as long as the connection, so that a connection which outlives its process (inherited by a child, or
handed to somebody else) gets nothing more.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

# Python's socket module does not have these two; the values are the same on every architecture that has TEEs.
SO_PEERGROUPS = 59
SO_PEERPIDFD = 77

_UCRED = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_GID = struct.Struct("=I")
# The kernel gives no more than what fits, and no process needs to be in more groups than this to be recognised.
_MAX_GROUPS_BYTES = 1024
# What a kernel (or Gramine) says of an option that it does not have.
_NO_SUCH_OPTION = frozenset({errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.ENOSYS})


class Unwelcome(StrEnum):
    """Why a local client was not served. The values are metric labels."""

    NOT_ALLOWED = "not_allowed"
    UNKNOWN = "unknown"
    PROCESS_GONE = "process_gone"
    LIMIT = "limit"
    MISBEHAVED = "misbehaved"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A process as the kernel knew it when it connected. `pid` is for people who read logs: numbers are used again."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()

    def __str__(self) -> str:
        return f"process {self.pid}, uid {self.uid}, gid {self.gid}"


@dataclass(slots=True)
class Peer:
    """One connection's other end. `credentials` None: this platform does not tell. Close it with the connection."""

    credentials: Credentials | None
    _process: int | None = field(default=None, repr=False)

    @classmethod
    def of(cls, connection: socket.socket) -> Self:
        """Ask the kernel. Raises ProcessLookupError if the process has ended already, OSError for what cannot be."""
        try:
            credentials = _credentials(connection)
        except OSError as error:
            if error.errno in _NO_SUCH_OPTION:
                return cls(None)
            raise
        return cls(credentials, _process(connection))

    @property
    def alive(self) -> bool:
        """Is the process that connected still there? True where the kernel gives no handle to ask by."""
        if self._process is None:
            return True
        watch = select.poll()
        watch.register(self._process, select.POLLIN)
        return not watch.poll(0)

    def close(self) -> None:
        """Let go of the handle."""
        if self._process is not None:
            os.close(self._process)
            self._process = None


@dataclass(frozen=True, slots=True)
class Access:
    """Who may connect. `needs_credentials` False: a platform that does not tell, and on which only code of the same
    enclave can reach the socket at all, lets everybody in."""

    uids: frozenset[int]
    gids: frozenset[int] = frozenset()
    needs_credentials: bool = True

    def objection(self, peer: Peer) -> Unwelcome | None:
        """Why this peer is not served; None if it is."""
        known = peer.credentials
        if known is None:
            return Unwelcome.UNKNOWN if self.needs_credentials else None
        if not peer.alive:
            return Unwelcome.PROCESS_GONE
        if known.uid in self.uids or not self.gids.isdisjoint({known.gid, *known.groups}):
            return None
        return Unwelcome.NOT_ALLOWED


def _credentials(connection: socket.socket) -> Credentials:
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Credentials(pid, uid, gid, _groups(connection))


def _groups(connection: socket.socket) -> frozenset[int]:
    """Fewer groups than there are can only refuse somebody, so that a kernel without the option is no problem."""
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _MAX_GROUPS_BYTES)
    except OSError:
        return frozenset()
    return frozenset(gid for (gid,) in _GID.iter_unpack(raw))


def _process(connection: socket.socket) -> int | None:
    try:
        return connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError as error:
        if error.errno in _NO_SUCH_OPTION:
            return None
        if error.errno in (errno.EINVAL, errno.ESRCH, errno.ENODATA):
            # What kernels say when the process was reaped before anybody asked.
            raise ProcessLookupError(error.errno, "the process has ended") from error
        raise
