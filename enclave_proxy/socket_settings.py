# SPDX-License-Identifier: Apache-2.0
"""How the worker's local sockets are set up: where they lie, who owns them, who may connect.

Users and groups are numbers, never names: the file that says which name has which number may be the host's.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path

from enclave_proxy.local_path import MODE, Place

# What the kernel shows for every user that this user namespace does not know: nobody in particular.
OVERFLOW_ID = 65534
MAX_ID = 2**32 - 2
MAX_IDS = 256

_MODE = re.compile(r"0?[0-7]{3}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketSettings:
    """`sds` and `workload` are absolute paths, None: that socket is off. Who may connect: the worker's own user always,
    and whom the lists name."""

    sds: Path | None
    workload: Path | None
    mode: int = MODE
    owner: int | None = None
    group: int | None = None
    allow_uids: frozenset[int] = frozenset()
    allow_gids: frozenset[int] = frozenset()

    @property
    def names_others(self) -> bool:
        """Does the operator rely on being told who connects?"""
        return bool(self.allow_uids or self.allow_gids)

    @property
    def contradiction(self) -> str | None:
        """Why clients that the lists allow could never connect; None if they could."""
        opened = self.mode & (stat.S_IWGRP | stat.S_IWOTH)
        if self.names_others and not opened and self.owner not in self.allow_uids:
            return f"allows users that mode {self.mode:04o} keeps out: set a mode such as 0660 (with a group) or 0666"
        return None

    def place(self, path: Path) -> Place:
        """One of the paths, with the rest."""
        return Place(path, self.mode, self.owner, self.group)


def parse_mode(text: str) -> int:
    """`0660`. Raises ValueError; so does a mode that keeps the owner out."""
    if not _MODE.fullmatch(text) or int(text, 8) & 0o600 != 0o600:
        raise ValueError(
            f"{text!r} is not the mode of a socket: three octal digits with rw for the owner, such as 0660"
        )
    return int(text, 8)


def parse_id(text: str) -> int:
    """A user's or group's number. Raises ValueError."""
    if not text.isascii() or not text.isdigit() or int(text) > MAX_ID:
        raise ValueError(f"{text[:40]!r} is not the number of a user or group")
    return int(text)


def parse_ids(text: str) -> frozenset[int]:
    """Comma-separated numbers of users or groups that may connect. Raises ValueError."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if len(parts) > MAX_IDS:
        raise ValueError(f"names {len(parts)} users or groups, at most {MAX_IDS} can be")
    found = frozenset(parse_id(part) for part in parts)
    if OVERFLOW_ID in found:
        raise ValueError(f"{OVERFLOW_ID} stands for every user or group that is unknown here: it cannot be allowed")
    return found
