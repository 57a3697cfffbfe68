# SPDX-License-Identifier: Apache-2.0
"""What a Coordinator does to its store: each scenario has a state before, a commit that is cut off, a state after."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from sds.attestation.simulated import SimulatedEnclave, SimulatedPlatform
from tests.kit.records import manifest_bytes, owners, records
from xds_server.file_ops import FileOps
from xds_server.records import Records
from xds_server.sealed_key import KeyProtection, NoSealing, PlainKey, TeeProtection
from xds_server.store import Fresh, Loaded, Locked, Store
from xds_server.store_errors import WrongKey

DEK, OTHER_DEK = secrets.token_bytes(32), secrets.token_bytes(32)
_WITH_OWNER = manifest_bytes(RecoveryKeys={"owner": owners(1)[0].pem})


@dataclass(frozen=True)
class World:
    """A machine: its state directory, and how keys are sealed there."""

    directory: Path
    protection: KeyProtection

    def open(self, files: FileOps | None = None) -> Store:
        return Store.open(self.directory, self.protection, files)

    def activations(self) -> int | None:
        """How far the state is that a start finds; None for a fresh start. A locked state is opened by its owner."""
        with self.open() as store:
            match store.load():
                case Fresh():
                    return None
                case Loaded(found):
                    return found.activations["web"]
                case Locked():
                    return unlocked(store).activations["web"]


def unlocked(store: Store) -> Records:
    """Its owner has the key: the one from before, or the one of the commit."""
    try:
        return store.unlock(DEK)
    except WrongKey:
        return store.unlock(OTHER_DEK)


@dataclass(frozen=True)
class Scenario:
    """`prepare` leaves what is there before; `act` is cut off; then `activations()` must be one of `allowed`."""

    name: str
    prepare: Callable[[World], None]
    act: Callable[[World, FileOps], None]
    allowed: tuple[int | None, int | None]


def worlds(folder: Path) -> Iterator[tuple[str, World]]:
    """A directory for each way to keep the key."""
    platform = SimulatedPlatform.open(folder / "platform", datetime.now(UTC))
    keys = platform.sealing_keys(SimulatedEnclave.default("coordinator"))
    yield "sealed", World(folder / "sealed", TeeProtection(keys))
    yield "raw", World(folder / "raw", PlainKey())
    yield "none", World(folder / "none", NoSealing())


def state(activations: int, manifest: bytes = _WITH_OWNER) -> Records:
    return records(manifest, activations={"web": activations})


def _first(world: World, files: FileOps | None = None, *, count: int = 1) -> None:
    with world.open(files) as store:
        store.load()
        store.new_key(DEK, b"null")
        for number in range(1, count + 1):
            store.commit(state(number))


def _next(world: World, files: FileOps) -> None:
    with world.open(files) as store:
        match store.load():
            case Loaded(found):
                store.commit(replace(found, activations={"web": 2}))
            case Locked():
                store.commit(replace(unlocked(store), activations={"web": 2}))
            case Fresh():
                raise AssertionError("the state is gone")


def _later(world: World) -> None:
    """With the leavings of earlier commits."""
    _first(world, count=3)
    with world.open() as store:
        if isinstance(store.load(), Locked):
            unlocked(store)
        store.commit(state(1))


def _new_key(world: World, files: FileOps) -> None:
    with world.open(files) as store:
        if isinstance(store.load(), Locked):
            unlocked(store)
        store.new_key(OTHER_DEK, b"null")
        store.commit(state(2))


def _overwrite_locked(world: World, files: FileOps) -> None:
    with world.open(files) as store:
        store.load()
        store.new_key(OTHER_DEK, b"null")
        store.commit(state(2))


def _cut_off(world: World) -> None:
    """A commit that ended right before it was one."""
    _first(world)
    (world.directory / "sealed_data").rename(world.directory / "sealed_data.old")
    (world.directory / "sealed_data.tmp").write_bytes(b"half")


def _lost_key(world: World) -> None:
    _first(world)
    (world.directory / "sealed_key").unlink(missing_ok=True)


def _forgotten(world: World) -> None:
    """Somebody deleted the state to start anew, but not all of it."""
    _first(world, count=2)
    (world.directory / "sealed_data").unlink()


def _nothing(world: World) -> None:
    """Not even the directory is there."""


SCENARIOS = (
    Scenario("the first commit", _nothing, _first, (None, 1)),
    Scenario("the second commit", _first, _next, (1, 2)),
    Scenario("a later commit", _later, _next, (1, 2)),
    Scenario("a new data key", _first, _new_key, (1, 2)),
    Scenario("a commit after one that was cut off", _cut_off, _next, (1, 2)),
    Scenario("the commit of a recovery", _lost_key, _next, (1, 2)),
    Scenario("a new manifest instead of a recovery", _lost_key, _overwrite_locked, (1, 2)),
    Scenario("the first commit after the state was deleted", _forgotten, _first, (None, 1)),
)
