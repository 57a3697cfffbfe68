# SPDX-License-Identifier: Apache-2.0
"""An app under a user of its own: what it still may, and what is its own."""

from __future__ import annotations

import asyncio
import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from enclave_proxy.apply import write_files
from enclave_proxy.capture_settings import AppUser, capabilities
from enclave_proxy.child import Child
from enclave_proxy.errors import ParametersError

USER = AppUser(12345, 12346)
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")


@pytest.fixture
def fifo() -> Iterator[Path]:
    """One that everybody may write to."""
    with TemporaryDirectory(prefix="mm-") as directory:
        path = Path(directory) / "fifo"
        os.mkfifo(path)
        path.chmod(0o666)
        path.parent.chmod(0o755)
        yield path


async def test_the_app_has_no_privilege_of_the_worker_and_gets_none_back(fifo: Path) -> None:
    child = await Child.start(("/bin/sh", "-c", f"exec cat /proc/self/status >{fifo}"), {"PATH": os.defpath}, USER)
    status = await asyncio.to_thread(fifo.read_text)
    assert await child.wait() == 0
    lines = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert lines["Uid"].split() == ["12345"] * 4
    assert lines["Gid"].split() == ["12346"] * 4
    assert lines["Groups"].strip() == ""
    assert capabilities(status) == int(lines["CapPrm"], 16) == int(lines["CapAmb"], 16) == 0
    assert lines["NoNewPrivs"].strip() == "1"


async def test_the_app_dies_with_its_worker_all_the_same() -> None:
    worker = (
        "import asyncio, os, sys\n"
        "from enclave_proxy.capture_settings import AppUser\n"
        "from enclave_proxy.child import Child\n"
        "async def main():\n"
        "    child = await Child.start(('/bin/sleep', '60'), {'PATH': os.defpath}, AppUser(12345, 12346))\n"
        "    while open(f'/proc/{child.pid}/comm').read() != 'sleep\\n':\n"
        "        await asyncio.sleep(0.01)\n"
        "    print(child.pid, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", worker, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    assert process.stdout is not None
    pid = int(await process.stdout.readline())
    await process.wait()
    await asyncio.to_thread(gone, pid)


def gone(pid: int) -> None:
    """Returns once a process has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], 10)[0], "it lives on"
    finally:
        os.close(descriptor)


def test_files_of_the_manifest_and_their_folders_belong_to_the_app(tmp_path: Path) -> None:
    write_files({"conf/tls/key.pem": b"hush"}, tmp_path, USER)
    for path in ("conf", "conf/tls", "conf/tls/key.pem"):
        found = (tmp_path / path).stat()
        assert (found.st_uid, found.st_gid) == (USER.uid, USER.gid)
    assert (tmp_path / "conf/tls/key.pem").stat().st_mode & 0o777 == 0o600
    assert tmp_path.stat().st_uid == 0


def test_no_link_of_the_app_leads_the_worker_s_hand_elsewhere(tmp_path: Path) -> None:
    """The app of an earlier start could have put it there, and the worker is root."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_files({"conf/tls/key.pem": b"hush"}, tmp_path, USER)
    (tmp_path / "conf" / "tls").rename(tmp_path / "conf" / "old")
    (tmp_path / "conf" / "tls").symlink_to(elsewhere)
    with pytest.raises(ParametersError, match=r"cannot write file 'conf/tls/key.pem': "):
        write_files({"conf/tls/key.pem": b"hush"}, tmp_path, USER)
    assert list(elsewhere.iterdir()) == []


def test_a_link_that_the_app_could_not_have_made_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "conf").symlink_to("real")
    write_files({"conf/key.pem": b"hush"}, tmp_path, USER)
    write_files({"conf/key.pem": b"silence"}, tmp_path, USER)
    assert (tmp_path / "real" / "key.pem").read_bytes() == b"silence"
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["key.pem"]
