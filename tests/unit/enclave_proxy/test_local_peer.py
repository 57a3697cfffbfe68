# SPDX-License-Identifier: Apache-2.0
"""Who is at the other end of a socket: real sockets and processes, the kernel's answers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from enclave_proxy.local_peer import Access, Credentials, Peer, Unwelcome

ME = Access(frozenset({os.geteuid()}))
# Connects (as somebody else, if told), says which process it is, and waits until its input ends.
CLIENT = """
import os, socket, sys
if sys.argv[2:]:
    uid, gid, group = map(int, sys.argv[2:])
    os.setgroups([group]); os.setgid(gid); os.setuid(uid)
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
print(os.getpid(), flush=True); sys.stdin.read()
"""
# Connects, leaves the connection to a child, and ends.
HANDS_ON = """
import os, socket, sys
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.set_inheritable(True)
if os.fork(): os._exit(0)
sys.stdin.read()
"""


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A directory that other users can come through."""
    with TemporaryDirectory(prefix="mm-") as directory:
        Path(directory).chmod(0o711)
        yield Path(directory)


@contextmanager
def connected(path: Path, program: str, *ids: int) -> Iterator[tuple[socket.socket, subprocess.Popen[str]]]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen()
        listener.settimeout(20)
        client = subprocess.Popen(
            [sys.executable, "-IS", "-c", program, str(path), *map(str, ids)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            connection, _ = listener.accept()
            with connection:
                yield connection, client
        finally:
            client.communicate(timeout=20)


def test_the_kernel_says_who_connected(tmp_path: Path) -> None:
    with connected(tmp_path / "s", CLIENT) as (connection, client):
        peer = Peer.of(connection)
        assert peer.credentials is not None
        assert client.stdout is not None
        assert peer.credentials.pid == int(client.stdout.readline())
        assert (peer.credentials.uid, peer.credentials.gid) == (os.geteuid(), os.getegid())
        assert ME.objection(peer) is None
        peer.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_another_user_is_known_by_user_group_and_further_groups(open_dir: Path) -> None:
    with connected(open_dir / "s", CLIENT, 23456, 23457, 34567) as (connection, _):
        peer = Peer.of(connection)
        assert ME.objection(peer) is Unwelcome.NOT_ALLOWED
        assert Access(frozenset(), frozenset({34567})).objection(peer) is None
        assert Access(frozenset(), frozenset({23457})).objection(peer) is None
        assert Access(frozenset({23456})).objection(peer) is None
        assert Access(frozenset(), frozenset({45678})).objection(peer) is Unwelcome.NOT_ALLOWED
        peer.close()


def test_a_connection_that_outlives_its_process_is_noticed(tmp_path: Path) -> None:
    with connected(tmp_path / "s", CLIENT) as (connection, client):
        peer = Peer.of(connection)
        assert peer.alive
        client.kill()
        client.wait(timeout=20)
        assert not peer.alive
        assert ME.objection(peer) is Unwelcome.PROCESS_GONE
        peer.close()


def test_a_process_that_hands_its_connection_on_before_it_is_accepted_counts_as_gone(tmp_path: Path) -> None:
    with connected(tmp_path / "s", HANDS_ON) as (connection, client):
        client.wait(timeout=20)
        try:
            peer = Peer.of(connection)
        except ProcessLookupError:
            return  # the kernel does not hand out handles on what was reaped
        assert ME.objection(peer) is Unwelcome.PROCESS_GONE
        peer.close()


def test_the_handle_is_closed_with_the_connection(tmp_path: Path) -> None:
    with connected(tmp_path / "s", CLIENT) as (connection, _):
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(3):
            peer = Peer.of(connection)
            peer.close()
            peer.close()
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_without_credentials_nobody_is_let_in_unless_only_this_enclave_can_connect() -> None:
    unknown = Peer(None)
    assert ME.objection(unknown) is Unwelcome.UNKNOWN
    assert Access(frozenset(), needs_credentials=False).objection(unknown) is None


def test_where_credentials_are_known_they_count_even_if_they_are_not_needed() -> None:
    stranger = Peer(Credentials(1, os.geteuid() + 1, os.getegid() + 1))
    assert Access(frozenset({os.geteuid()}), needs_credentials=False).objection(stranger) is Unwelcome.NOT_ALLOWED
