# SPDX-License-Identifier: Apache-2.0
"""The few operations by which the state directory changes: the edge at which a crash test can end the process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol


class FileOps(Protocol):
    """Each raises OSError."""

    def open(self, path: Path, flags: int) -> int: ...

    def write(self, descriptor: int, data: memoryview) -> int: ...

    def fsync(self, descriptor: int) -> None: ...

    def close(self, descriptor: int) -> None: ...

    def rename(self, source: Path, target: Path) -> None: ...

    def unlink(self, path: Path) -> None: ...


class SystemFiles:
    """The operating system's."""

    def open(self, path: Path, flags: int) -> int:
        return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def write(self, descriptor: int, data: memoryview) -> int:
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def unlink(self, path: Path) -> None:
        path.unlink()
