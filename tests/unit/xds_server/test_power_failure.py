# SPDX-License-Identifier: Apache-2.0
"""A power failure, modelled: of the changes to a directory since its last fsync, any subset may be lost; of a file that
was not fsynced, any part. Whatever is left, a start finds the old state or the new one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import pytest

from tests.kit.records import records
from tests.kit.stores import DEK, filled, loaded, sealed_by
from xds_server.file_ops import SystemFiles
from xds_server.sealed_key import KeyProtection, PlainKey
from xds_server.store import Fresh, Loaded, Store

Change = tuple[str, str, int]  # a name, the name it had before (or ""), the file


@dataclass
class Disk(SystemFiles):
    """Does what it is asked, and remembers what of it is durable. Files are numbers, with their contents beside."""

    durable: dict[str, int]
    contents: list[bytes]
    pending: list[Change | str] = field(default_factory=list)
    open_files: dict[int, int] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    crashes: list[dict[str, bytes]] = field(default_factory=list)

    @classmethod
    def of(cls, directory: Path) -> Disk:
        files = sorted(file for file in directory.iterdir() if file.name != "lock")
        disk = cls({file.name: number for number, file in enumerate(files)}, [file.read_bytes() for file in files])
        disk.names = dict(disk.durable)
        return disk

    def open(self, path: Path, flags: int) -> int:
        descriptor = super().open(path, flags)
        if not flags & os.O_DIRECTORY:
            self.contents.append(b"")
            self.open_files[descriptor] = self.names[path.name] = len(self.contents) - 1
            self.pending.append((path.name, "", self.names[path.name]))
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        self.contents[self.open_files[descriptor]] += data[: len(data) // 2].tobytes()
        self._crash()
        self.contents[self.open_files[descriptor]] += data[len(data) // 2 :].tobytes()
        return super().write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        self._crash()
        if descriptor not in self.open_files:
            self.durable, self.pending = dict(self.names), []
        super().fsync(descriptor)
        self._crash()

    def close(self, descriptor: int) -> None:
        self.open_files.pop(descriptor, None)
        super().close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self.names[target.name] = self.names.pop(source.name)
        self.pending.append((target.name, source.name, self.names[target.name]))
        super().rename(source, target)
        self._crash()

    def unlink(self, path: Path) -> None:
        del self.names[path.name]
        self.pending.append(path.name)
        super().unlink(path)
        self._crash()

    def _crash(self) -> None:
        """What may be on the disk if the power fails now."""
        for size in range(len(self.pending) + 1):
            for kept in combinations(self.pending, size):
                self.crashes.append({name: self.contents[file] for name, file in self._after(kept).items()})

    def _after(self, kept: tuple[Change | str, ...]) -> dict[str, int]:
        names = dict(self.durable)
        for change in kept:
            if isinstance(change, str):
                names.pop(change, None)
                continue
            name, before, file = change
            if before:
                names.pop(before, None)
            names[name] = file
        return names


def starts(disk: Disk, folder: Path, protection: KeyProtection) -> Iterator[object]:
    """What a start finds after each crash."""
    unique = {tuple(sorted(crash.items())) for crash in disk.crashes}
    for number, crash in enumerate(unique):
        directory = folder / str(number)
        directory.mkdir()
        for name, content in crash:
            (directory / name).write_bytes(content)
        with Store.open(directory, protection) as store:
            yield store.load()


@pytest.mark.parametrize("protection", [sealed_by(), PlainKey()], ids=["sealed", "raw key"])
def test_a_power_failure_in_a_commit_leaves_the_old_or_the_new_state(tmp_path: Path, protection: KeyProtection) -> None:
    old, new = records(activations={"web": 1}), records(activations={"web": 2})
    path = tmp_path / "state"
    with Store.open(path, protection) as store:
        store.new_key(DEK, b"null")
        store.commit(records())
        store.commit(old)
    disk = Disk.of(path)
    with Store.open(path, protection, disk) as store:
        loaded(store)
        store.commit(new)
    found = list(starts(disk, tmp_path, protection))
    assert len(found) > 10
    assert all(one in (Loaded(old), Loaded(new)) for one in found)
    assert Loaded(old) in found
    assert Loaded(new) in found


def test_a_power_failure_in_the_first_commit_leaves_nothing_or_the_state(tmp_path: Path) -> None:
    path, new = tmp_path / "state", records()
    path.mkdir()
    disk = Disk.of(path)
    with Store.open(path, sealed_by(), disk) as store:
        store.new_key(DEK, b"null")
        store.commit(new)
    assert all(one in (Fresh(), Loaded(new)) for one in starts(disk, tmp_path, sealed_by()))


def test_a_power_failure_while_a_cut_off_commit_is_cleared_away_leaves_the_old_state(tmp_path: Path) -> None:
    path = tmp_path / "state"
    old = filled(path)
    for name in ("sealed_data", "sealed_key"):
        (path / name).rename(path / f"{name}.old")
        (path / f"{name}.tmp").write_bytes(b"half")
    disk = Disk.of(path)
    with Store.open(path, sealed_by(), disk) as store:
        assert loaded(store) == old
    assert all(one == Loaded(old) for one in starts(disk, tmp_path, sealed_by()))
