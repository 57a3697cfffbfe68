# SPDX-License-Identifier: Apache-2.0
"""What a start makes of the files it finds: the state, recovery, or an end that says why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.coordinator import manifest
from tests.kit.coordinator_process import outcome
from tests.kit.deployment import b64
from tests.kit.recovering import deployment
from tests.kit.sealed import parts
from tests.kit.site import INSECURE, site
from xds_server.attestation_choice import StartError

LIMITED = manifest(Marbles={"web": {"Package": "app", "MaxActivations": 9}, "api": {"Package": "app"}})
COUNTING = manifest(Config={"FeatureGates": ["MonotonicCounter"]})
FILES = ("sealed_data", "sealed_key")


# --- when is written


async def test_nothing_is_written_before_a_manifest_and_each_start_makes_another_root(tmp_path: Path) -> None:
    async with site(tmp_path) as running:
        root = await running.outside.root()
        assert not (running.state / "sealed_data").exists()
        outside = await running.restart()
        assert (await outside.status(), await outside.root() == root) == (2, False)


async def test_setting_a_manifest_writes_both_files(tmp_path: Path) -> None:
    async with site(tmp_path, manifest()) as running:
        root = await running.outside.root()
        assert sorted(path.name for path in running.state.iterdir()) == ["lock", *FILES]
        outside = await running.restart()
        assert (await outside.status(), await outside.root() == root) == (3, True)


async def test_each_limited_activation_writes_both_files_anew_and_others_write_nothing(tmp_path: Path) -> None:
    async with site(tmp_path, LIMITED) as running:
        for marble_type, written in (("web", True), ("web", True), ("api", False)):
            before = [running.file(name) for name in FILES]
            await running.outside.activate(marble_type)
            after = [running.file(name) for name in FILES]
            assert [old != new for old, new in zip(before, after, strict=True)] == [written, written]


async def test_each_counter_that_rises_writes_both_files_anew(tmp_path: Path) -> None:
    async with site(tmp_path, COUNTING) as running:
        env = await running.outside.activate()
        for value, written in ((1, True), (2, True), (2, False)):
            before = [running.file(name) for name in FILES]
            assert (await running.outside.count(env, "foo", value)).status == 200
            after = [running.file(name) for name in FILES]
            assert [old != new for old, new in zip(before, after, strict=True)] == [written, written]


# --- into recovery


async def test_a_lost_sealed_key_leads_to_recovery(tmp_path: Path) -> None:
    async with deployment(tmp_path, "a") as made:
        assert await (await made.lose_key()).status() == 1


async def test_an_older_copy_of_either_file_leads_to_recovery(tmp_path: Path) -> None:
    for number, name in enumerate(FILES):
        async with site(tmp_path / str(number), LIMITED) as running:
            older = running.file(name)
            await running.outside.activate()
            await running.stop()
            for file in running.state.glob("*.old"):
                file.unlink()
            (running.state / name).write_bytes(older)
            assert await (await running.start()).status() == 1


async def test_older_copies_of_both_files_are_not_noticed(tmp_path: Path) -> None:
    """The host can do that, and no platform here has a counter that it could not turn back: see the guide to state."""
    async with site(tmp_path, LIMITED) as running:
        older = {name: running.file(name) for name in FILES}
        await running.outside.activate()
        await running.stop()
        for name, content in older.items():
            (running.state / name).write_bytes(content)
        assert await (await running.start()).status() == 3


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(bytes(32), id="raw"),
        pytest.param((1024).to_bytes(4, "little") + bytes(1024) + bytes(12 + 32 + 16), id="of MarbleRun in an enclave"),
        pytest.param(b"HSM_SEALED" + bytes(60), id="of an HSM"),
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff" * 100, id="junk"),
    ],
)
async def test_a_sealed_key_that_this_enclave_did_not_make_leads_to_recovery(tmp_path: Path, content: bytes) -> None:
    async with deployment(tmp_path, "a") as made:
        await made.site.stop()
        (made.site.state / "sealed_key").write_bytes(content)
        assert await (await made.site.start()).status() == 1
        assert await made.upload_all("a") == [0]


async def test_another_machine_needs_recovery_and_the_first_one_does_not(tmp_path: Path) -> None:
    async with site(tmp_path, manifest()) as running:
        assert await (await running.restart("another machine")).status() == 1
        assert await (await running.restart()).status() == 3


async def test_a_changed_byte_of_the_sealed_state_leads_to_recovery_which_finds_it(tmp_path: Path) -> None:
    async with deployment(tmp_path, "a") as made:
        await made.site.stop()
        data = made.site.file()
        (made.site.state / "sealed_data").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert await (await made.site.start()).status() == 1
        assert (await made.upload("a")).message.startswith("setting recovery key: wrong recovery secret")


async def test_in_recovery_the_old_files_stay_as_they_are(tmp_path: Path) -> None:
    async with deployment(tmp_path, "a") as made:
        before = made.site.file()
        await made.lose_key()
        await made.upload("a", bytes(32))
        assert made.site.file() == before


# --- to an end


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda data: data[:20], id="cut"),
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: b"\xff\xff\xff\x7f" + data[4:], id="a length beyond its end"),
    ],
)
async def test_sealed_data_whose_frame_is_broken_ends_the_start(
    tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    async with site(tmp_path, manifest()) as running:
        await running.stop()
        (running.state / "sealed_data").write_bytes(spoil(running.file()))
        with pytest.raises(StartError, match="sealed_data is damaged"):
            await running.start()


@pytest.mark.parametrize("wrong", [bytes(32), b"short"], ids=["another key", "no key"])
async def test_without_attestation_a_wrong_sealed_key_ends_the_start(tmp_path: Path, wrong: bytes) -> None:
    async with site(tmp_path, manifest(), **INSECURE) as running:
        await running.stop()
        (running.state / "sealed_key").write_bytes(wrong)
        with pytest.raises(StartError, match="does not open"):
            await running.start()


@pytest.mark.e2e
async def test_such_an_end_is_exit_code_1_and_one_line(tmp_path: Path) -> None:
    async with site(tmp_path, manifest(), **INSECURE) as running:
        await running.stop()
        (running.state / "sealed_key").write_bytes(bytes(32))
    free = [f"--{name}-addr=127.0.0.1:0" for name in ("client", "mesh", "xds")]
    code, _, err = await outcome(*free, "--insecure-no-attestation", f"--seal-dir={running.state}")
    assert code == 1
    assert err.splitlines()[-1].startswith(f"marblemesh coordinator: cannot use the state in {running.state}: ")


async def test_a_second_coordinator_on_the_same_directory_ends_at_once(tmp_path: Path) -> None:
    async with site(tmp_path, manifest()) as running:
        other = type(running)(tmp_path)
        with pytest.raises(StartError, match="is in use by another Coordinator"):
            await other.start()
        assert await running.outside.status() == 3


# --- backup


async def test_the_recovery_data_can_be_read_by_anybody_and_say_nothing_but_hashes(tmp_path: Path) -> None:
    async with deployment(tmp_path, "ab") as made:
        clear, _ = parts(made.site.file())
        assert all(len(bytes.fromhex(name)) == 32 for name in json.loads(clear))
        for share in made.secrets.values():
            assert share not in made.site.file()


async def test_a_copy_of_the_whole_directory_opens_on_this_machine(tmp_path: Path) -> None:
    async with site(tmp_path, manifest()) as running:
        shutil.copytree(running.state, tmp_path / "copy")
        await running.stop()
        outside = await running.start(EDG_COORDINATOR_SEAL_DIR=str(tmp_path / "copy"))
        assert (await outside.get("/api/v2/manifest")).data["manifest"] == b64(manifest())
