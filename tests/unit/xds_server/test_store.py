# SPDX-License-Identifier: Apache-2.0
"""The state directory: what a start finds, what a commit that fails leaves, who may use it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from manifests.parse import parse
from sds.attestation.simulated import SimulatedEnclave
from tests.kit.records import manifest_bytes, owners, records
from tests.kit.stores import COORDINATOR, DEK, FailingFiles, filled, loaded, sealed_by
from xds_server.records import Records
from xds_server.sealed_key import KeyProtection, NoSealing
from xds_server.store import Fresh, Loaded, Locked, Store
from xds_server.store_errors import CommitFailed, CommitInDoubt, StoreDamaged, StoreError, WrongKey

DISABLED = manifest_bytes(Config={"SealMode": "Disabled"})
UNIQUE = manifest_bytes(Config={"SealMode": "UniqueKey"})


def counted(number: int) -> Records:
    return records(activations={"web": number})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "not" / "there" / "yet"


def start(path: Path) -> Fresh | Loaded | Locked:
    with Store.open(path, sealed_by()) as store:
        return store.load()


def test_what_is_committed_is_what_the_next_start_finds(path: Path) -> None:
    committed = filled(path, records(security_versions={"p": 5}, counters={"a:b:c": 2**64 - 1}))
    assert start(path) == Loaded(committed)


def test_directory_and_files_are_for_their_owner_only(path: Path) -> None:
    filled(path, times=2)
    assert path.stat().st_mode & 0o777 == 0o700
    assert {file.name: file.stat().st_mode & 0o777 for file in path.iterdir()} == dict.fromkeys(
        ("lock", "sealed_data", "sealed_data.old", "sealed_key", "sealed_key.old"), 0o600
    )


def test_nothing_is_written_before_there_is_a_manifest(path: Path) -> None:
    with Store.open(path, sealed_by()) as store:
        store.commit(records(b""))
    assert start(path) == Fresh()


def test_a_first_commit_needs_a_data_key(path: Path) -> None:
    with Store.open(path, sealed_by()) as store, pytest.raises(CommitFailed, match="data key"):
        store.commit(records())


def test_two_coordinators_cannot_use_one_directory(path: Path) -> None:
    with Store.open(path, sealed_by()), pytest.raises(StoreError, match=r"in use by another Coordinator.*SEAL_DIR"):
        Store.open(path, sealed_by())
    Store.open(path, sealed_by()).close()


def test_another_process_is_kept_out_too(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from xds_server.store import Store;"
        "from xds_server.sealed_key import NoSealing; Store.open(Path(sys.argv[1]), NoSealing())"
    )
    with Store.open(path, sealed_by()):
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert "in use by another Coordinator" in done.stderr


# --- a commit that fails

# Two files, each opened, written and fsynced; four renames; three times the directory, opened and fsynced.
OPERATIONS = 16
AFTER_THE_COMMIT = range(14, 16)


def test_a_commit_has_so_many_operations(path: Path) -> None:
    filled(path)
    files = FailingFiles()
    with Store.open(path, sealed_by(), files) as store:
        state = loaded(store)
        before = files.number
        store.commit(state)
        assert files.number - before == OPERATIONS


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("at", range(OPERATIONS))
def test_whatever_fails_in_a_commit_the_old_state_stays_in_force(path: Path, at: int, code: int) -> None:
    filled(path, counted(1))
    files = FailingFiles()
    with Store.open(path, sealed_by(), files) as store:
        loaded(store)
        files.arm(at, code=code)
        with pytest.raises(CommitFailed, match=rf"{os.strerror(code)}; nothing has changed"):
            store.commit(counted(2))
    assert start(path) == Loaded(counted(1))


@pytest.mark.parametrize("at", range(OPERATIONS))
def test_after_a_failed_commit_the_next_one_works(path: Path, at: int) -> None:
    filled(path, counted(1))
    files = FailingFiles()
    with Store.open(path, sealed_by(), files) as store:
        loaded(store)
        files.arm(at)
        with pytest.raises(CommitFailed):
            store.commit(counted(2))
        store.commit(counted(3))
    assert start(path) == Loaded(counted(3))


@pytest.mark.parametrize("at", [at for at in range(OPERATIONS) if at not in AFTER_THE_COMMIT])
def test_a_disk_that_fails_for_good_keeps_the_old_state(path: Path, at: int) -> None:
    filled(path, counted(1))
    files = FailingFiles()
    with Store.open(path, sealed_by(), files) as store:
        loaded(store)
        files.arm(at, times=1000)
        for _ in range(2):
            with pytest.raises(CommitFailed):
                store.commit(counted(2))
    assert start(path) == Loaded(counted(1))


@pytest.mark.parametrize("at", AFTER_THE_COMMIT)
def test_a_commit_that_can_neither_be_made_safe_nor_be_undone_is_in_doubt(path: Path, at: int) -> None:
    filled(path, counted(1))
    files = FailingFiles()
    with Store.open(path, sealed_by(), files) as store:
        loaded(store)
        files.arm(at, times=3)
        for _ in range(2):  # and from then on the store takes nothing, though the disk works again
            with pytest.raises(CommitInDoubt, match="restart the Coordinator"):
                store.commit(counted(2))
    assert start(path) in (Loaded(counted(1)), Loaded(counted(2)))


@pytest.mark.parametrize("at", range(OPERATIONS - 2))
def test_a_first_commit_that_fails_leaves_nothing(path: Path, at: int) -> None:
    files = FailingFiles()
    with Store.open(path, sealed_by(), files) as store:
        assert store.load() == Fresh()
        store.new_key(DEK, b"null")
        files.arm(at)
        with pytest.raises(CommitFailed):
            store.commit(counted(1))
    assert start(path) == Fresh()


def test_a_key_is_forgotten_with_the_commit_that_failed(path: Path) -> None:
    filled(path, counted(1))
    files = FailingFiles()
    with Store.open(path, sealed_by(), files) as store:
        loaded(store)
        store.new_key(bytes(32), b"null")
        files.arm(0)
        with pytest.raises(CommitFailed):
            store.commit(counted(2))
        store.commit(counted(3))
    (path / "sealed_key").unlink()
    with Store.open(path, sealed_by()) as store:
        assert isinstance(store.load(), Locked)
        assert store.unlock(DEK) == counted(3)


def test_a_directory_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot use the state directory"):
        Store.open(tmp_path / "file" / "state", sealed_by())


def test_records_that_have_grown_too_large_are_not_written(path: Path) -> None:
    filled(path, counted(1))
    with Store.open(path, sealed_by()) as store:
        loaded(store)
        with pytest.raises(CommitFailed, match="at most"):
            store.commit(records(activations=dict.fromkeys(map(str, range(200_001)), 1)))
    assert start(path) == Loaded(counted(1))


# --- a state that does not open


@pytest.mark.parametrize(
    ("enclave", "manifest"),
    [
        (SimulatedEnclave.default("another"), UNIQUE),
        (replace(COORDINATOR, signer_id=bytes(32)), manifest_bytes()),
        (replace(COORDINATOR, product_id=9), manifest_bytes()),
        (replace(COORDINATOR, debug=True), manifest_bytes()),
    ],
)
def test_another_enclave_does_not_get_the_key(path: Path, enclave: SimulatedEnclave, manifest: bytes) -> None:
    filled(path, records(manifest))
    with Store.open(path, sealed_by(enclave)) as store:
        found = store.load()
    assert isinstance(found, Locked)
    assert "another machine or by another enclave" in found.reason


def test_a_new_version_of_the_enclave_gets_a_product_key(path: Path) -> None:
    committed = filled(path)
    new = replace(COORDINATOR, unique_id=bytes(32), security_version=9)
    with Store.open(path, sealed_by(new)) as store:
        assert loaded(store) == committed


def test_setting_a_new_manifest_keeps_the_state_that_its_owners_could_still_open(path: Path) -> None:
    filled(path, counted(1))
    key = (path / "sealed_key").read_bytes()
    (path / "sealed_key").write_bytes(b"not a key")
    with Store.open(path, sealed_by()) as store:
        assert isinstance(store.load(), Locked)
        with pytest.raises(CommitFailed, match="data key"):
            store.commit(counted(7))
        store.new_key(bytes(32), b"null")
        store.commit(counted(7))
    assert start(path) == Loaded(counted(7))
    assert (path / "sealed_key.kept-1").read_bytes() == b"not a key"
    (path / "sealed_data.kept-1").rename(path / "sealed_data")
    (path / "sealed_key").write_bytes(key)
    assert start(path) == Loaded(counted(1))


def test_unlocking_takes_effect_on_disk_with_the_next_commit(path: Path) -> None:
    filled(path, counted(1), recovery_data=b'{"' + b"0" * 64 + b'":true}')
    (path / "sealed_key").unlink()
    with Store.open(path, sealed_by()) as store:
        found = store.load()
        assert found == Locked(b'{"' + b"0" * 64 + b'":true}', "there is no sealed_key")
        with pytest.raises(WrongKey):
            store.unlock(bytes(32))
        state = store.unlock(DEK)
    assert isinstance(start(path), Locked)
    with Store.open(path, sealed_by()) as store:
        store.load()
        store.commit(replace(store.unlock(DEK), activations={"web": 2}))
    assert start(path) == Loaded(replace(state, activations={"web": 2}))
    assert not list(path.glob("*.kept-*"))


def test_damage_to_the_state_is_not_taken_for_a_fresh_start(path: Path) -> None:
    filled(path)
    data = (path / "sealed_data").read_bytes()
    for damaged in (b"", data[:3], data[:8], b"\xff" * 40, data[:20]):
        (path / "sealed_data").write_bytes(damaged)
        with pytest.raises(StoreDamaged, match="sealed_data is damaged"):
            start(path)
    (path / "sealed_data").write_bytes(data[:-1])
    assert isinstance(start(path), Locked)


def test_a_file_left_of_a_deleted_state_does_not_bring_it_back(path: Path) -> None:
    filled(path, times=2)
    (path / "sealed_data").unlink()
    assert start(path) == Fresh()


# --- seal modes and platforms


def test_with_seal_mode_disabled_nothing_is_written(path: Path) -> None:
    with Store.open(path, sealed_by()) as store:
        store.new_key(DEK, b"null")
        store.commit(records(DISABLED))
    assert start(path) == Fresh()
    assert [file.name for file in path.iterdir()] == ["lock"]


def test_an_update_to_disabled_sets_the_old_state_aside_so_that_a_restart_does_not_bring_it_back(path: Path) -> None:
    filled(path, times=2)
    with Store.open(path, sealed_by()) as store:
        loaded(store)
        store.commit(records(DISABLED))
        assert not (path / "sealed_data").exists()
        store.commit(counted(3))
    assert start(path) == Loaded(counted(3))
    assert (path / "sealed_data.kept-1").exists()


def test_an_update_of_the_seal_mode_takes_effect_with_its_commit(path: Path) -> None:
    filled(path)
    assert b'"policy":"ProductKey"' in (path / "sealed_key").read_bytes()
    with Store.open(path, sealed_by()) as store:
        loaded(store)
        store.commit(records(UNIQUE))
    assert b'"policy":"UniqueKey"' in (path / "sealed_key").read_bytes()


def test_without_sealing_keys_a_restart_needs_the_owners(path: Path) -> None:
    with Store.open(path, NoSealing()) as store:
        store.new_key(DEK, b"null")
        store.commit(records(manifest_bytes(RecoveryKeys={"o": owners()[0].pem})))
    assert not (path / "sealed_key").exists()
    with Store.open(path, NoSealing()) as store:
        assert isinstance(store.load(), Locked)
        assert store.recovery_terms(DEK).keys == {"o": owners()[0].pem}


def test_what_nobody_could_ever_open_is_not_written(path: Path) -> None:
    with Store.open(path, NoSealing()) as store:
        store.new_key(DEK, b"null")
        store.commit(records())
    assert start(path) == Fresh()


@pytest.mark.parametrize(
    ("protection", "members", "text"),
    [
        (sealed_by(), {"Config": {"SealMode": "Disabled"}}, "SealMode is Disabled"),
        (sealed_by(), {}, "no RecoveryKeys: another machine"),
        (NoSealing(), {}, "a restart of the Coordinator loses"),
        (NoSealing(), {"RecoveryKeys": {"o": "x"}}, "each restart of the Coordinator needs recovery"),
    ],
)
def test_whoever_sets_a_manifest_is_told_how_long_its_state_lives(
    path: Path, protection: KeyProtection, members: dict[str, object], text: str
) -> None:
    with Store.open(path, protection) as store:
        (warning,) = store.warnings(parse(manifest_bytes(**members)))
    assert text in warning


def test_with_recovery_keys_there_is_nothing_to_warn_of(path: Path) -> None:
    with Store.open(path, sealed_by()) as store:
        assert store.warnings(parse(manifest_bytes(RecoveryKeys={"o": owners()[0].pem}))) == ()
