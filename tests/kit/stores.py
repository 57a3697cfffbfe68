# SPDX-License-Identifier: Apache-2.0
"""Stores on a simulated machine, and file operations with a fault in them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from sds.attestation.simulated import SimulatedEnclave
from tests.kit.platform import shared_platform
from tests.kit.records import records
from xds_server.file_ops import SystemFiles
from xds_server.records import Records
from xds_server.sealed_key import TeeProtection
from xds_server.store import Loaded, Store

DEK = bytes(range(32, 64))
COORDINATOR = SimulatedEnclave.default("coordinator")


def sealed_by(enclave: SimulatedEnclave = COORDINATOR) -> TeeProtection:
    """The keys of an enclave on this test process's one machine."""
    return TeeProtection(shared_platform().sealing_keys(enclave))


def filled(directory: Path, state: Records | None = None, *, recovery_data: bytes = b"null", times: int = 1) -> Records:
    """A directory in which a Coordinator was; what it committed last."""
    committed = state or records()
    with Store.open(directory, sealed_by()) as store:
        store.load()
        store.new_key(DEK, recovery_data)
        for _ in range(times):
            store.commit(committed)
    return committed


def loaded(store: Store) -> Records:
    match store.load():
        case Loaded(found):
            return found
        case other:
            raise AssertionError(f"expected a state that opens, found {other}")


class FailingFiles(SystemFiles):
    """Once armed, some operations fail; closing a file never does. `number` counts them all."""

    def __init__(self) -> None:
        self.number = 0
        self._faulty = range(0)
        self._code = errno.EIO

    def arm(self, at: int, times: int = 1, code: int = errno.EIO) -> None:
        """The operation `at` from now on (the next is 0) fails, and `times` in all."""
        self._faulty, self._code = range(self.number + at, self.number + at + times), code

    def _step(self) -> None:
        number, self.number = self.number, self.number + 1
        if number in self._faulty:
            raise OSError(self._code, os.strerror(self._code))

    def open(self, path: Path, flags: int) -> int:
        self._step()
        return super().open(path, flags)

    def write(self, descriptor: int, data: memoryview) -> int:
        self._step()
        return super().write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        self._step()
        super().fsync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._step()
        super().unlink(path)
