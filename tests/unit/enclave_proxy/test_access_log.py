# SPDX-License-Identifier: Apache-2.0
"""The access log: whole lines in a file or pipe, and nothing that a disk or a reader does reaches the relay."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from enclave_proxy.access_log import MAX_WAITING, Line, access_log, parse_destination, refuse_unwritable
from enclave_proxy.errors import StartError
from sds.logs import get_logger

LOG = get_logger("test")


def lines(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


async def test_lines_arrive_soon_and_the_last_ones_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    async with access_log(str(path), LOG) as log:
        assert log is not None
        log.add({"n": 1})
        await until(lambda: path.read_text() != "")
        assert lines(path) == [{"n": 1}]
        log.add({"n": 2, "name": "two\nlines"})
    assert lines(path) == [{"n": 1}, {"n": 2, "name": "two\nlines"}]
    assert path.stat().st_mode & 0o777 == 0o600
    assert (log.written, log.lost) == (2, 0)


async def test_off_is_nothing_at_all() -> None:
    async with access_log(parse_destination("off"), LOG) as log:
        assert log is None


async def test_a_file_that_was_renamed_or_removed_is_made_anew(tmp_path: Path) -> None:
    path, old = tmp_path / "access.log", tmp_path / "access.log.1"
    async with access_log(str(path), LOG) as log:
        assert log is not None
        steps: tuple[Callable[[], object], ...] = (lambda: path.rename(old), path.unlink, lambda: None)
        for number, step in enumerate(steps):
            log.add({"n": number})
            await until(lambda number=number: log.written == number + 1)  # type: ignore[misc]
            step()
    assert lines(old) == [{"n": 0}]
    assert lines(path) == [{"n": 2}]


async def test_after_a_disk_was_full_in_the_middle_of_a_line_the_next_one_begins_anew(tmp_path: Path) -> None:
    path, size = tmp_path / "access.log", 1 << 30
    path.touch()
    os.truncate(path, size)  # sparse: only this file reaches the limit
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with access_log(str(path), LOG) as log:
        assert log is not None
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 4, before[1]))
        try:
            log.add({"n": 1})
            await until(lambda: log.lost == 1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        log.add({"n": 2})
    with path.open("rb") as file:
        file.seek(size)
        assert file.read() == b'{"n"\n{"n":2}\n'


async def test_a_reader_that_takes_nothing_costs_lines_and_nobody_waits(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    line: Line = {"filler": "x" * 400}
    async with access_log(str(fifo), LOG) as log:
        assert log is not None
        for _ in range(MAX_WAITING + 100):  # without an await: nothing is written meanwhile
            log.add(line)
        assert log.lost == 100
        taken = b""
        os.set_blocking(reader, True)
        while taken.count(b"\n") < MAX_WAITING:
            taken += await asyncio.to_thread(os.read, reader, 1 << 20)
        await until(lambda: log.written == MAX_WAITING)
        log.add(line)  # there is room again
    assert log.lost == 100
    assert {*map(len, taken.splitlines())} == {len(json.dumps(line, separators=(",", ":")))}
    os.close(reader)


async def test_a_reader_that_has_gone_costs_lines_and_is_told_of_once(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    async with access_log(str(fifo), LOG) as log:
        assert log is not None
        os.close(reader)
        for lost in (1, 2):
            log.add({})
            await until(lambda lost=lost: log.lost == lost)  # type: ignore[misc]
        again = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        log.add({"n": 3})
        await until(lambda: log.written == 1)
        assert os.read(again, 100) == b'{"n":3}\n'
        os.close(again)


async def test_the_end_of_a_worker_does_not_wait_for_a_reader_that_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enclave_proxy.access_log.LAST_WORDS", 0.05)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    async with asyncio.timeout(20), access_log(str(fifo), LOG) as log:
        assert log is not None
        for _ in range(1000):
            log.add({"filler": "x" * 400})
    os.close(reader)  # which ends the thread


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.symlink_to("elsewhere"), "it is a symbolic link"),
        (os.mkfifo, "No such device or address"),
        (lambda path: path.with_name("file").touch(), None),
    ],
)
async def test_a_place_that_cannot_be_written_is_refused_at_the_start(
    tmp_path: Path, make: Callable[[Path], object], reason: str | None
) -> None:
    path = tmp_path / "access.log"
    make(path)
    if reason is None:
        path, reason = tmp_path / "file" / "access.log", "Not a directory"
    with pytest.raises(StartError, match=rf"EDG_MARBLE_ACCESS_LOG \(--access-log\): cannot write to .*: {reason}"):
        async with access_log(str(path), LOG):
            pass


def test_processes_that_share_a_pipe_do_not_mix_their_lines() -> None:
    code = """
        import asyncio, sys
        from enclave_proxy.access_log import access_log
        from sds.logs import get_logger
        async def main():
            async with access_log("-", get_logger("x")) as log:
                for n in range(2000):
                    log.add({"who": sys.argv[1], "n": n, "filler": sys.argv[1] * (n % 300)})
                    if not n % 50:
                        await asyncio.sleep(0.001)
        asyncio.run(main())
    """
    argv = [sys.executable, "-c", textwrap.dedent(code)]
    read, write = os.pipe()
    with subprocess.Popen([*argv, "a"], stdout=write), subprocess.Popen([*argv, "b"], stdout=write):
        os.close(write)
        with os.fdopen(read) as pipe:
            found = [json.loads(line) for line in pipe]
    for who in "ab":
        assert [line["n"] for line in found if line["who"] == who] == list(range(2000))


def test_the_destination_is_the_same_for_processes_in_other_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_destination("a.log") == str(tmp_path / "a.log")
    assert parse_destination("-") == "-"


def test_no_destination_is_none_and_standard_output_has_a_name_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="want a path, - or off"):
        parse_destination("")
    (tmp_path / "link").symlink_to("/dev/stdout")
    with pytest.raises(StartError, match=r"link': it is a symbolic link.*; standard output is '-', and 'off' is none"):
        refuse_unwritable(str(tmp_path / "link"))


async def test_looking_at_a_pipe_first_ends_nothing_for_its_reader(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        refuse_unwritable(str(path))
        async with access_log(str(path), LOG) as log:
            assert log is not None
            log.add({"n": 1})
        assert reader.read() == b'{"n":1}\n'
