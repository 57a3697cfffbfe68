# SPDX-License-Identifier: Apache-2.0
"""A local socket's file: who may open it, and that nobody takes it away from the one who serves on it."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from enclave_proxy.local_path import BoundSocket, Place, SocketPathError


@contextmanager
def claimed(place: Place) -> Iterator[BoundSocket]:
    bound = BoundSocket.claim(place)
    try:
        yield bound
    finally:
        bound.close()


def test_only_the_owner_may_connect_unless_said_otherwise(tmp_path: Path) -> None:
    with claimed(Place(tmp_path / "s")) as bound:
        assert stat.S_IMODE(bound.path.stat().st_mode) == 0o600


def test_mode_and_group_are_as_told_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        with claimed(Place(tmp_path / "s", mode=0o660, group=os.getegid())) as bound:
            status = bound.path.stat()
    finally:
        os.umask(before)
    assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o660, os.getegid())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_owner_and_group_may_be_others(tmp_path: Path) -> None:
    with claimed(Place(tmp_path / "s", owner=12345, group=23456)) as bound:
        status = bound.path.stat()
    assert (status.st_uid, status.st_gid) == (12345, 23456)


def test_a_second_server_does_not_take_the_socket(tmp_path: Path) -> None:
    with (
        claimed(Place(tmp_path / "s")) as bound,
        pytest.raises(SocketPathError, match="served by another process"),
        claimed(Place(tmp_path / "s")),
    ):
        pass
    assert not bound.path.exists()


def test_a_server_without_our_lock_is_not_pushed_aside(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        other.listen(1)
        with pytest.raises(SocketPathError, match="somebody answers"), claimed(Place(path)):
            pass
        assert path.exists()


def test_a_socket_that_nobody_answers_on_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    with claimed(Place(path)):
        pass
    assert not path.exists()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(SocketPathError, match="no socket"), claimed(Place(path)):
        pass
    assert path.read_text() == "precious"


def test_what_somebody_else_has_put_there_meanwhile_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with claimed(Place(path)):
        path.unlink()
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"


def test_after_closing_the_path_is_free_again(tmp_path: Path) -> None:
    for _ in range(2):
        with claimed(Place(tmp_path / "s")):
            pass


def test_a_directory_in_which_others_can_replace_the_socket_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(SocketPathError, match="may be written by others"), claimed(Place(shared / "s")):
        pass
    shared.chmod(0o1777)  # sticky, as /tmp: others may add files there, and touch none of ours
    with claimed(Place(shared / "s")):
        pass


@pytest.mark.parametrize(("path", "complaint"), [("x" * 108, "longer than 107"), ("not/there", "No such file")])
def test_a_path_that_cannot_be_had_is_named_with_the_reason(tmp_path: Path, path: str, complaint: str) -> None:
    with pytest.raises(SocketPathError, match=complaint), claimed(Place(tmp_path / path)):
        pass


@pytest.mark.parametrize(
    ("mode", "directory", "hidden"),
    [(0o600, 0o700, False), (0o660, 0o700, True), (0o660, 0o710, False), (0o666, 0o710, True), (0o666, 0o711, False)],
)
def test_a_directory_that_keeps_out_whom_the_mode_lets_in_is_noticed(mode: int, directory: int, hidden: bool) -> None:
    with TemporaryDirectory(prefix="mm-") as outer:
        Path(outer).chmod(0o711)
        inner = Path(outer) / "inner"
        inner.mkdir()
        inner.chmod(directory)
        assert Place(inner / "s", mode=mode).hidden_by() == (inner if hidden else None)
