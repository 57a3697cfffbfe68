# SPDX-License-Identifier: Apache-2.0
"""Quotes from devices: directories that behave like Gramine's and the kernel's, filled by a simulated platform."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sds.attestation.errors import DeviceUnavailable
from sds.attestation.issue_gramine import GramineIssuer
from sds.attestation.issue_tsm import ConfigFs, TsmIssuer
from sds.attestation.issuer import Issuer
from sds.attestation.select import choose_issuer
from sds.attestation.tee import Tee
from tests.kit.platform import REPORT_DATA, lab

Quoter = Callable[[bytes], bytes]


def sgx_quote(report_data: bytes) -> bytes:
    return lab().sgx(report_data=report_data).quote


def td_quote(report_data: bytes) -> bytes:
    return lab().tdx(report_data=report_data).quote


@contextmanager
def gramine(base: Path, quoter: Quoter = sgx_quote, kind: str = "dcap") -> Iterator[GramineIssuer]:
    """A /dev/attestation: ``quote`` is a FIFO, so that it is made when somebody opens it, as Gramine does."""
    (base / "attestation_type").write_text(kind)
    (base / "user_report_data").write_bytes(bytes(64))
    os.mkfifo(base / "quote")
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            with (base / "quote").open("wb", buffering=0) as pipe:  # waits for a reader
                # The next reader gets a FIFO of its own, so that this one sees the end of its answer.
                os.mkfifo(base / "next")
                (base / "next").rename(base / "quote")
                with suppress(BrokenPipeError):
                    pipe.write(quoter((base / "user_report_data").read_bytes()))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield GramineIssuer(base)
    finally:
        stop.set()
        # A reader that does not wait, and stays until the thread has ended: it may or may not be waiting for one.
        last_reader = os.open(base / "quote", os.O_RDONLY | os.O_NONBLOCK)
        thread.join()
        os.close(last_reader)


@dataclass
class FakeConfigFs:
    """A configfs-tsm: a directory has its attributes as soon as it is made, and they cannot be unlinked."""

    provider: bytes = b"tdx_guest\n"
    generation: bytes = b"1\n"
    failures: list[int] = field(default_factory=list)
    quoter: Quoter = td_quote
    requests: dict[Path, bytes] = field(default_factory=dict)
    made: list[Path] = field(default_factory=list)

    def mkdir(self, path: Path) -> None:
        self.made.append(path)
        self.requests[path] = b""

    def rmdir(self, path: Path) -> None:
        del self.requests[path]

    def write(self, path: Path, data: bytes) -> None:
        self._fail(path)
        assert path.name == "inblob"
        self.requests[path.parent] = data

    def read(self, path: Path, limit: int) -> bytes:
        if path.name != "outblob":
            return {"provider": self.provider, "generation": self.generation}[path.name]
        self._fail(path)
        return self.quoter(self.requests[path.parent])[:limit]

    def _fail(self, path: Path) -> None:
        if self.failures and (number := self.failures.pop(0)):
            raise OSError(number, os.strerror(number), str(path))


def tsm(files: FakeConfigFs) -> TsmIssuer:
    return TsmIssuer(Path("/tsm"), files, pause=lambda seconds: None)


def keeps_the_contract(issuer: Issuer, tee: Tee) -> None:
    evidence = issuer.issue(REPORT_DATA)
    assert (issuer.tee, evidence.tee) == (tee, tee)
    assert REPORT_DATA in evidence.quote
    for wrong in (b"", bytes(63), bytes(65)):
        with pytest.raises(ValueError, match="64 bytes"):
            issuer.issue(wrong)


def test_gramine_keeps_the_contract(tmp_path: Path) -> None:
    with gramine(tmp_path) as issuer:
        keeps_the_contract(issuer, Tee.SGX)


def test_configfs_keeps_the_contract() -> None:
    keeps_the_contract(tsm(FakeConfigFs()), Tee.TDX)


def test_threads_take_turns_at_gramines_two_files(tmp_path: Path) -> None:
    with gramine(tmp_path) as issuer:
        wanted = [bytes([n]) * 64 for n in range(8)]
        got: dict[bytes, bytes] = {}
        threads = [
            threading.Thread(target=lambda data=data: got.update({data: issuer.issue(data).quote})) for data in wanted
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(data in got[data] for data in wanted)


def test_a_quote_with_other_report_data_is_refused(tmp_path: Path) -> None:
    with (
        gramine(tmp_path, lambda _: sgx_quote(bytes(64))) as issuer,
        pytest.raises(DeviceUnavailable, match="does not carry the report data"),
    ):
        issuer.issue(REPORT_DATA)


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (b"", "quote header"),
        (sgx_quote(REPORT_DATA)[:900], "declared"),
        (bytes(20_000), "quote version: 0"),
        (b"td", "header"),
    ],
)
def test_a_device_that_gives_no_quote_is_unavailable(tmp_path: Path, answer: bytes, what: str) -> None:
    with gramine(tmp_path, lambda _: answer) as issuer, pytest.raises(DeviceUnavailable, match=what):
        issuer.issue(REPORT_DATA)


def test_a_quote_of_another_tee_is_refused(tmp_path: Path) -> None:
    with gramine(tmp_path, td_quote) as issuer, pytest.raises(DeviceUnavailable, match="of tdx, expected sgx"):
        issuer.issue(REPORT_DATA)


def test_gramine_without_remote_attestation_says_what_to_set(tmp_path: Path) -> None:
    with (
        gramine(tmp_path, kind="none") as issuer,
        pytest.raises(DeviceUnavailable, match=r'remote_attestation = "dcap"'),
    ):
        issuer.issue(REPORT_DATA)


def test_gramine_without_its_files_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(DeviceUnavailable, match="attestation_type: No such file"):
        GramineIssuer(tmp_path).issue(REPORT_DATA)


def test_each_request_has_its_own_directory_and_none_is_left() -> None:
    files = FakeConfigFs()
    issuer = tsm(files)
    issuer.issue(REPORT_DATA)
    issuer.issue(REPORT_DATA)
    assert len(set(files.made)) == 2
    assert not files.requests


def test_zero_padding_of_the_kernels_answer_is_cut() -> None:
    files = FakeConfigFs(quoter=lambda data: td_quote(data).ljust(8000, b"\0"))
    assert not tsm(files).issue(REPORT_DATA).quote.endswith(b"\0")


def test_a_busy_device_is_asked_again_but_not_for_ever() -> None:
    busy = [errno.EBUSY, errno.EBUSY, 0, errno.EBUSY]
    assert REPORT_DATA in tsm(FakeConfigFs(failures=busy)).issue(REPORT_DATA).quote
    files = FakeConfigFs(failures=[errno.EBUSY] * 100)
    with pytest.raises(DeviceUnavailable, match="busy"):
        tsm(files).issue(REPORT_DATA)
    assert not files.requests
    assert len(files.failures) == 92


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.EIO, "quote generation service"),
        (errno.ENXIO, "tdx_guest"),
        (errno.EACCES, "needs root"),
        (errno.ENOENT, "is this a TDX guest"),
        (errno.EINVAL, "Invalid argument"),
    ],
)
def test_other_failures_are_explained_and_the_directory_removed(number: int, hint: str) -> None:
    files = FakeConfigFs(failures=[number])
    with pytest.raises(DeviceUnavailable, match=hint):
        tsm(files).issue(REPORT_DATA)
    assert not files.requests


def test_a_second_writer_is_noticed_by_the_generation() -> None:
    files = FakeConfigFs(generation=b"2\n")
    with pytest.raises(DeviceUnavailable, match="generation is '2', expected '1'"):
        tsm(files).issue(REPORT_DATA)
    assert not files.requests


def test_another_provider_is_refused() -> None:
    with pytest.raises(DeviceUnavailable, match="provider is 'sev_guest', expected 'tdx_guest'"):
        tsm(FakeConfigFs(provider=b"sev_guest\n")).issue(REPORT_DATA)


def test_the_real_operations_work_on_a_directory(tmp_path: Path) -> None:
    files, request = ConfigFs(), tmp_path / "request"
    files.mkdir(request)
    (request / "inblob").write_bytes(b"")
    files.write(request / "inblob", REPORT_DATA)
    assert files.read(request / "inblob", 100) == REPORT_DATA
    assert len(files.read(request / "inblob", 10)) == 11
    (request / "inblob").unlink()
    files.rmdir(request)
    assert not request.exists()


def test_a_missing_configfs_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DeviceUnavailable, match="is this a TDX guest"):
        TsmIssuer(tmp_path / "none").issue(REPORT_DATA)


def test_the_platform_can_be_named(tmp_path: Path) -> None:
    assert isinstance(choose_issuer(f"gramine:{tmp_path}"), GramineIssuer)
    assert isinstance(choose_issuer(f"tdx:{tmp_path}"), TsmIssuer)


@pytest.mark.parametrize("spec", ["gramine:/nowhere", "tdx:/nowhere", "sev", "", "auto:/dir", "simulation"])
def test_a_platform_that_is_not_there_is_refused_with_the_way_out(spec: str) -> None:
    with pytest.raises(DeviceUnavailable, match="--simulation"):
        choose_issuer(spec)


@pytest.mark.skipif(
    Path("/dev/attestation/quote").exists() or Path("/sys/kernel/config/tsm/report").is_dir(), reason="runs in a TEE"
)
def test_outside_a_tee_nothing_is_found_and_nothing_pretended() -> None:
    with pytest.raises(DeviceUnavailable, match=r"neither /dev/attestation/quote .* nor /sys/kernel/config/tsm/report"):
        choose_issuer("auto")
