# SPDX-License-Identifier: Apache-2.0
"""File operations that end the process with SIGKILL at the n-th of them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from xds_server.file_ops import SystemFiles


class DeadlyFiles(SystemFiles):
    """The n-th operation (from 0) is the last: it does not happen, or in the case of a write only half of it does."""

    def __init__(self, deadly: int) -> None:
        self.left = deadly

    def _step(self) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1

    def open(self, path: Path, flags: int) -> int:
        self._step()
        return super().open(path, flags)

    def write(self, descriptor: int, data: memoryview) -> int:
        if self.left == 0:
            super().write(descriptor, data[: len(data) // 2])
        self._step()
        return super().write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        self._step()
        super().fsync(descriptor)

    def close(self, descriptor: int) -> None:
        self._step()
        super().close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._step()
        super().unlink(path)
