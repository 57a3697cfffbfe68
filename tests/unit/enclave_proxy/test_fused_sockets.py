# SPDX-License-Identifier: Apache-2.0
"""The app's sockets in a fused process, at their edges: timeouts, doubled binds, refusals. Each script is an app that
checks itself; `peer` stands where the worker listens for the app, and answers each connection with what it got first.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

TRIED = """
import errno, os, socket, sys, threading, time
def tried(what):
    try:
        return what()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
"""


class Place:
    """A folder with the app's sockets in it, and a peer that answers on one of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.first: list[bytes] = []
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(folder / "db.sock"))
        self._server.listen(8)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection, suppress(ConnectionError):
                self.first.append(connection.recv(1))
                connection.sendall(b"peer:" + self.first[-1])

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()

    def run(self, script: str, *, closed: bool = False) -> list[str]:
        """What the app prints, one line each."""
        settings = {
            "listens": {"8080": str(self.folder / "8080.sock"), "8081": str(self.folder / "8081.sock")},
            "dials": {"db:5432": str(self.folder / "db.sock"), "gone:1": str(self.folder / "gone.sock")},
            "closed": closed,
        }
        command = [sys.executable, "-m", "tests.kit.fused_lab", json.dumps(settings), "python", "-c", TRIED + script]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()


@pytest.fixture
def place() -> Iterator[Place]:
    with TemporaryDirectory(prefix="mm-") as folder:
        made = Place(Path(folder))
        try:
            yield made
        finally:
            made.close()


def test_a_listening_socket_keeps_family_address_options_and_timeouts(place: Place) -> None:
    assert place.run("""
server = socket.create_server(("0.0.0.0", 8080))
server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
print(server.family == socket.AF_INET, server.getsockname(), os.path.exists(f"/proc/self/fd/{server.fileno()}"))
server.settimeout(0.05)
print(tried(server.accept))
server.setblocking(False)
print(tried(server.accept))
server.settimeout(None)
client = socket.create_connection(("localhost", 8080))
accepted, peer = server.accept()
client.sendall(b"to myself")
print(accepted.recv(9), peer, accepted.getsockname(), accepted.gettimeout(), client.getpeername())
""") == [
        "True ('127.0.0.1', 8080) True",
        "TimeoutError: timed out",
        "BlockingIOError: [Errno 11] Resource temporarily unavailable",
        "b'to myself' ('127.0.0.1', 0) ('127.0.0.1', 8080) None ('127.0.0.1', 8080)",
    ]


def test_a_port_is_bound_once_per_family_or_by_those_who_share_it_and_again_after_its_end(place: Place) -> None:
    assert place.run("""
four = socket.create_server(("", 8080))
six = socket.create_server(("::", 8080), family=socket.AF_INET6)
print(six.getsockname(), tried(lambda: socket.socket().bind(("", 8080))))
four.close()
client = socket.create_connection(("127.0.0.1", 8080))
print(six.accept()[1])
six.close()
again = socket.create_server(("", 8080))
print(tried(lambda: socket.create_connection(("127.0.0.1", 8080)).getpeername()))
shared = [socket.create_server(("", 8081), reuse_port=True) for _ in range(2)]
print(len(shared))
""") == [
        f"('::1', 8080, 0, 0) OSError: [Errno 98] port 8080 is bound already (it is {place.folder}/8080.sock here)",
        "('::1', 0, 0, 0)",
        "('127.0.0.1', 8080)",
        "2",
    ]


def test_a_peer_is_dialled_by_name_by_the_resolved_address_and_through_tls(place: Place) -> None:
    assert place.run("""
import ssl
def first(sock):
    sock.sendall(b"x")
    return sock.recv(9)
print(first(socket.create_connection(("db", 5432), timeout=5)))
one = socket.socket()
one.connect(("db", 5432))
print(first(one), one.getpeername(), tried(lambda: one.connect(("db", 5432))))
six = socket.socket(socket.AF_INET6)
print(six.connect_ex(socket.getaddrinfo("db", 5432, socket.AF_INET6)[0][4]), first(six))
context = ssl.create_default_context()
wrapped = context.wrap_socket(socket.socket(), server_hostname="db")
print(type(tried(lambda: wrapped.connect(("db", 5432)))).__name__)
print(socket.gethostbyname_ex("db"), tried(lambda: socket.getaddrinfo("db", 5432, type=socket.SOCK_DGRAM)))
""") == [
        "b'peer:x'",
        "b'peer:x' ('db', 5432) OSError: [Errno 106] Transport endpoint is already connected",
        "0 b'peer:x'",
        "str",
        "('db', [], ['127.93.0.1']) gaierror: [Errno -7] db is a peer of the mesh, which carries TCP only",
    ]
    assert place.first[-1] == b"\x16"  # a ClientHello, on its way to the peer


def test_a_peer_whom_the_worker_does_not_serve_refuses(place: Place) -> None:
    gone = f"nobody takes connections to 127.93.0.1 port 1 (unix:{place.folder}/gone.sock)"
    assert place.run("""
print(tried(lambda: socket.create_connection(("gone", 1))), socket.socket().connect_ex(("gone", 1)))
print(tried(lambda: socket.create_connection(("db", 80))), socket.socket().connect_ex(("db", 80)))
""") == [
        f"ConnectionRefusedError: [Errno 111] {gone} 111",
        "gaierror: [Errno -2] the manifest's Outgoing names db with port 5432, not 80 111",
    ]


WHY = "and under SGX the host would read it: name it there"
REFUSED = {
    "listening": f"PermissionError: [Errno 13] TCP 127.0.0.1 port 9: not in the manifest's Incoming, {WHY}",
    "connecting": f"PermissionError: [Errno 13] TCP 127.0.0.1 port 9: not in the manifest's Outgoing, {WHY}",
    "looking up": "gaierror: [Errno -2] example.org port 80 is not in the manifest's Outgoing, and under SGX nothing "
    "else is looked up",
    "below the socket module": "PermissionError: [Errno 13] socket.connect ('127.0.0.1', 9): under SGX the host would "
    "read it; what the manifest does not name is refused",
    "datagrams": "PermissionError: [Errno 13] socket.sendto ('127.0.0.1', 9): under SGX the host would read it; what "
    "the manifest does not name is refused",
    "uvloop server": f"PermissionError: [Errno 13] TCP 127.0.0.1 port 9: not in the manifest's Incoming, {WHY}",
    "uvloop client": f"PermissionError: [Errno 13] TCP 127.0.0.1 port 9: not in the manifest's Outgoing, {WHY}",
    "uvloop datagrams": f"PermissionError: [Errno 13] UDP 127.0.0.1 port 9: not in the manifest's Outgoing, {WHY}",
}


def test_under_sgx_the_mesh_s_sockets_work_and_no_other(place: Place) -> None:
    assert place.run(
        """
import asyncio, uvloop, _socket
server = socket.create_server(("", 8080))
print(socket.create_connection(("db", 5432)).getpeername()[1])
print(tried(lambda: socket.socket().bind(("127.0.0.1", 9))))
print(tried(lambda: socket.create_connection(("127.0.0.1", 9))))
print(tried(lambda: socket.create_connection(("example.org", 80))))
print(tried(lambda: _socket.socket().connect(("127.0.0.1", 9))))
print(tried(lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))))
async def serve(): await asyncio.start_server(lambda *_: None, "127.0.0.1", 9)
async def dial(): await asyncio.open_connection("127.0.0.1", 9)
async def udp(): await asyncio.get_running_loop().create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", 9))
for what in (serve, dial, udp): print(tried(lambda: uvloop.run(what())))
print(len(socket.socketpair()), socket.getaddrinfo("localhost", 9)[0][4][1])
""",
        closed=True,
    ) == ["5432", *(REFUSED.values()), "2 9"]


def test_uvloop_takes_sockets_that_the_app_has_made_and_keeps_ports_apart(place: Place) -> None:
    assert place.run("""
import asyncio, uvloop
async def main():
    async def echo(reader, writer):
        writer.write(await reader.read(9)); writer.close()
    mine = socket.create_server(("", 8080))
    first = await asyncio.start_server(echo, sock=mine)
    second = await asyncio.start_server(echo, "0.0.0.0", 8081)
    for port in (8080, 8081):
        try:
            await asyncio.start_server(echo, "0.0.0.0", port)
        except OSError as error:
            print(errno.errorcode[error.errno])
        reader, writer = await asyncio.open_connection("localhost", port)
        writer.write(b"x"); print(await reader.read(9), await reader.read()); writer.close()
    client = socket.socket(); client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, ("db", 5432))
    reader, writer = await asyncio.open_connection(sock=client)
    writer.write(b"y"); print(await reader.read(9))
    writer.close(); await writer.wait_closed(); await asyncio.sleep(0.01)
    print(client.fileno(), mine.getsockname()[1])
    first.close(); await first.wait_closed(); await asyncio.sleep(0)
    print(mine.fileno(), tried(lambda: socket.create_server(("", 8080)).getsockname()[1]))
uvloop.run(main())
""") == ["EADDRINUSE", "b'x' b''", "EADDRINUSE", "b'x' b''", "b'peer:y'", "-1 8080", "-1 8080"]


def test_under_sgx_no_process_is_started_and_libraries_with_own_sockets_are_refused(place: Place) -> None:
    no_more = "under SGX a fused app starts no processes, each would be an enclave of its own"
    assert place.run(
        """
import multiprocessing, subprocess, grpc
print(tried(lambda: subprocess.run(["true"])))
print(tried(os.fork))
print(tried(lambda: multiprocessing.get_context("spawn").Process(target=print).start()))
print(tried(lambda: os.system("true")))
print(tried(lambda: __import__("gevent")))
print(tried(lambda: grpc.insecure_channel("127.0.0.1:9")))
""",
        closed=True,
    ) == [
        f"PermissionError: [Errno 1] _fork_exec: {no_more}",
        f"PermissionError: [Errno 1] fork: {no_more}",
        f"PermissionError: [Errno 1] fork_exec: {no_more}",
        f"PermissionError: [Errno 1] system: {no_more}",
        "ImportError: gevent has sockets of its own, which fused mode cannot watch: use threads or asyncio, or run the "
        "app without --fused",
        REFUSED["connecting"],
    ]
