# SPDX-License-Identifier: Apache-2.0
"""Who would still be captured when the app has ended: what it has started in sessions of their own outlives it."""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")


def processes_of(uid: int) -> list[int]:
    """Processes of this user in this network namespace. One whose namespace may not be looked at counts."""
    own = (_PROC / "self" / "ns" / "net").stat()
    found = []
    for process in _PROC.iterdir():
        if not process.name.isdigit():
            continue
        try:
            if _lives_as(uid, (process / "status").read_text()) and _is_in(own, process):
                found.append(int(process.name))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
    return sorted(found)


def _lives_as(uid: int, status: str) -> bool:
    lines = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    return str(uid) in lines["Uid"].split() and not lines["State"].startswith(("Z", "X"))


def _is_in(namespace: os.stat_result, process: Path) -> bool:
    try:
        return os.path.samestat((process / "ns" / "net").stat(), namespace)
    except PermissionError:
        return True
