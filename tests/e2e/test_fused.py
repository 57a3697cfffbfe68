# SPDX-License-Identifier: Apache-2.0
"""Worker and Python app in one process, in a mesh of real processes: an app that only knows TCP ports and host names
serves peers in mTLS and reaches them, whatever it opens its sockets with. One mesh is run, and looked at by all tests.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.kit.mesh import ECHO, PATIENCE, Json, MeshHarness, RunningWorker, ask, free_port

pytestmark = pytest.mark.e2e
KIT = Path(__file__).parents[1] / "kit"
FUSED = ("--fused",)


@dataclass(frozen=True)
class Story:
    """What was seen of one run of both apps."""

    ports: list[int]
    listening: Json
    heard: Json
    sockets: dict[str, bool]
    plaintext: bytes
    listening_tcp: set[int]
    statuses: tuple[int, int]
    web: RunningWorker
    admin: int
    left: list[str]


@asynccontextmanager
async def outside() -> AsyncIterator[int]:
    """A server that is no part of the mesh."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"outsider!")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def tell() -> Story:
    ports = [free_port() for _ in range(6)]
    numbers = [str(port) for port in ports]
    outgoing = {"Outgoing": [{"Addr": "db", "Port": port} for port in numbers]}
    incoming = {"Incoming": [{"Port": port, "Peers": ["web"]} for port in numbers]}
    with TemporaryDirectory(prefix="mm-") as directory:
        async with MeshHarness(Path(directory)) as mesh, outside() as foreign:
            await mesh.start_coordinator()
            tags = {"web": outgoing, "db": incoming}
            await mesh.set_manifest(mesh.manifest({"web": {}, "db": {}}, tags))
            db = await mesh.start_worker("db", "python", str(KIT / "fused_server.py"), *numbers, flags=FUSED)
            listening = await db.logged("app listening")
            await serves(db)
            client = ("python", str(KIT / "fused_client.py"), str(foreign), *numbers)
            web = await mesh.start_worker("web", *client, flags=FUSED)
            heard = await web.logged("heard")
            first = await web.wait()
            plain = await mesh.start_worker("web", *ECHO, "web", "unused.sock", name="web2")
            await plain.ready()
            await ask(plain.run_dir / f"db-{ports[0]}.sock", b"hello", b"asyncio:%d:hello" % ports[0])
            sockets = {number: (db.run_dir / f"{number}.sock").is_socket() for number in numbers}
            plaintext = await over_tcp(ports[1], b"GET / HTTP/1.0\r\n\r\n")
            admin = int((await db.logged("admin listening"))["address"].rpartition(":")[2])
            tcp = listening_ports(db.pid)
            db.send(signal.SIGTERM)
            statuses = (first, await db.wait())
            left = [path.name for path in db.run_dir.iterdir() if path.is_socket()]
    return Story(ports, listening, heard, sockets, plaintext, tcp, statuses, web, admin, left)


async def serves(worker: RunningWorker) -> None:
    """Ready: the app answers on all its sockets."""
    async with asyncio.timeout(PATIENCE):
        while (await worker.admin("/readyz"))[0] != 200:
            await asyncio.sleep(0.05)


async def over_tcp(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


def listening_ports(pid: int) -> set[int]:
    """The TCP ports on which a process listens."""
    inodes = {link.readlink().name for link in Path(f"/proc/{pid}/fd").iterdir() if "socket:" in str(link.readlink())}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and f"socket:[{columns[9]}]" in inodes:
                found.add(int(columns[1].rpartition(":")[2], 16))
    return found


@pytest.fixture(scope="module")
def story() -> Story:
    return asyncio.run(tell())


@pytest.mark.parametrize(
    ("client", "answer"),
    [
        ("asyncio", "asyncio:{0}:hello True"),
        ("urllib", "http.server {1} 127.0.0.1"),
        ("aiohttp", "aiohttp db 127.0.0.1"),
        ("aiohttp on uvloop", "aiohttp db 127.0.0.1"),
        ("http.client", "uvicorn"),
        ("grpc", "grpc:hello"),
        ("grpc.aio", "grpc.aio:hello"),
        ("socket", "asyncio:{digit} True"),
    ],
)
def test_an_unchanged_client_reaches_an_unchanged_server(story: Story, client: str, answer: str) -> None:
    assert story.heard[client] == answer.format(*story.ports, digit=str(story.ports[0])[0])


def test_on_uvloop_a_peer_s_address_is_that_of_a_unix_socket(story: Story) -> None:
    assert story.heard["uvloop"] == f"asyncio:{story.ports[0]}:hello False"


def test_of_the_app_s_ports_only_the_worker_s_mtls_is_on_the_network(story: Story) -> None:
    assert story.listening_tcp == {*story.ports, story.admin}
    assert story.plaintext == b""
    assert all(story.sockets.values())


def test_a_server_is_told_the_port_that_it_asked_for(story: Story) -> None:
    assert story.listening["bound"] == story.ports[4:]


def test_an_app_reaches_its_own_port_without_leaving_the_process(story: Story) -> None:
    assert story.listening["itself"] == f"http.server {story.ports[1]} 127.0.0.1"


@pytest.mark.parametrize("client", ["wrong port", "wrong port of grpc"])
def test_a_peer_s_port_that_the_manifest_does_not_name_is_refused(story: Story, client: str) -> None:
    assert story.heard[client].startswith("ConnectionRefusedError: [Errno 111] the manifest's Outgoing names db with ")
    assert story.heard[client].endswith(", not 1")


def test_a_peer_s_name_is_answered_without_dns(story: Story) -> None:
    assert story.heard["resolved"] == "127.93.0.1"


def test_what_the_manifest_does_not_name_passes_in_simulation_and_is_told(story: Story) -> None:
    assert story.heard["outside"] == "outsider! True"
    told = [line for line in story.web.lines if "in plaintext outside the mesh" in line["event"]]
    assert len(told) == 1
    assert told[0]["address"].startswith("TCP 127.0.0.1 port ")


def test_the_process_ends_with_the_app_s_status_and_leaves_no_socket_behind(story: Story) -> None:
    assert story.statuses == (7, 9)
    assert story.left == []
