# SPDX-License-Identifier: Apache-2.0
"""A local socket under clients that may not be there, or do not behave: they hurt themselves, and are counted."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpclib.const import Cardinality
from h2.config import H2Configuration
from h2.connection import H2Connection

from enclave_proxy import local_call
from enclave_proxy.local_call import Call, Method, Methods
from enclave_proxy.local_connection import MAX_CALLS
from enclave_proxy.local_path import Place
from enclave_proxy.local_peer import Access, Unwelcome
from enclave_proxy.local_server import LocalServer
from tests.kit.local_http2 import RawClient, request_head
from tests.kit.local_socket import local_server, me, serving_on

Connect = Callable[[], "RawClient"]
STRANGERS = Access(frozenset({os.geteuid() + 1}))


async def _echo(call: Call) -> None:
    while (body := await call.receive()) is not None:
        await call.send(body)


async def _flood(call: Call) -> None:
    while True:
        await call.send(bytes(64 * 1024))


async def _break(call: Call) -> None:
    await call.first()
    raise ValueError("secret=hunter2")


BOTH = Cardinality.STREAM_STREAM
SERVICE: Methods = {f"/t/{m.__name__}": Method(m.__name__, BOTH, m) for m in (_echo, _flood, _break)}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[LocalServer]:
    async with serving_on(tmp_path / "s", SERVICE) as running:
        yield running


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def channel(path: Path) -> AsyncIterator[grpc.aio.Channel]:
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
    async with grpc.aio.insecure_channel(f"unix:{path}", options=options) as opened:
        yield opened


async def echoed(path: Path) -> bool:
    """Does the server answer a client that behaves?"""
    async with channel(path) as opened:
        call = opened.stream_stream("/t/_echo")()
        await call.write(b"hello")
        return bool(await asyncio.wait_for(call.read(), 10) == b"hello")


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Connect]:
    """Makes clients that are closed after the test."""
    with ExitStack() as stack:

        def connect() -> RawClient:
            client = RawClient(tmp_path / "s")
            stack.callback(client.socket.close)
            return client

        yield connect


async def test_who_is_not_allowed_is_hung_up_on_counted_and_logged(
    connect: Connect, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving_on(tmp_path / "s", SERVICE, access=STRANGERS) as server:
        client = connect()
        assert await asyncio.to_thread(client.ended)
        assert server.counters.refused == {Unwelcome.NOT_ALLOWED: 1}
        assert server.counters.accepted == 0
    said = capsys.readouterr().out
    assert "local client refused" in said
    assert f"uid {os.geteuid()}" in said


async def test_a_platform_that_does_not_tell_who_connects_lets_nobody_in(
    connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless only code of the same enclave can connect at all."""
    monkeypatch.setattr(socket, "SO_PEERCRED", 4095)  # what no kernel knows
    async with serving_on(tmp_path / "s", SERVICE) as server:
        client = connect()
        assert await asyncio.to_thread(client.ended)
        assert server.counters.refused == {Unwelcome.UNKNOWN: 1}
    async with serving_on(tmp_path / "s", SERVICE, access=Access(frozenset(), needs_credentials=False)):
        assert await echoed(tmp_path / "s")


# Connects, sends what it is told, leaves the connection to a child, and ends. The child says what comes.
HANDS_ON = """
import os, socket, sys
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(bytes.fromhex(sys.argv[2]))
got = b""
while b"while it lives" not in got: got += s.recv(65536)
if os.fork(): os._exit(0)
try:
    while data := s.recv(65536): got += data
except ConnectionResetError: pass
with open(sys.argv[3] + ".new", "wb") as file: file.write(got)
os.rename(sys.argv[3] + ".new", sys.argv[3])
"""


async def test_a_connection_that_outlives_its_process_gets_nothing_more(tmp_path: Path) -> None:
    async def when_told(call: Call) -> None:
        await call.send(b"while it lives")
        await gone.wait()
        await call.send(b"the key")

    gone, got = asyncio.Event(), tmp_path / "got"
    async with serving_on(tmp_path / "s", {"/t/when_told": Method("when_told", BOTH, when_told)}) as server:
        h2 = H2Connection(H2Configuration(header_encoding="ascii"))
        h2.initiate_connection()
        h2.send_headers(1, request_head("/t/when_told"))
        client = await asyncio.create_subprocess_exec(
            *(sys.executable, "-IS", "-c", HANDS_ON, str(tmp_path / "s"), h2.data_to_send().hex(), str(got))
        )
        assert await asyncio.wait_for(client.wait(), 20) == 0
        gone.set()
        await until(lambda: server.counters.refused == {Unwelcome.PROCESS_GONE: 1})
        assert server.counters.ended == {("when_told", "PERMISSION_DENIED"): 1}
        await until(got.exists)
    assert b"while it lives" in got.read_bytes()
    assert b"the key" not in got.read_bytes()


async def test_refusals_are_logged_a_few_times_and_counted_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving_on(tmp_path / "s", SERVICE, access=STRANGERS) as server:
        for _ in range(100):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(tmp_path / "s"))
        await until(lambda: server.counters.refused.total() == 100)
        assert server.counters.suppressed_logs >= 50
    assert capsys.readouterr().out.count("local client refused") <= 50


async def test_more_connections_than_allowed_are_refused_and_the_rest_is_served(
    connect: Connect, tmp_path: Path
) -> None:
    server = local_server([SERVICE], max_connections=2)
    await server.start(Place(tmp_path / "s"))
    try:
        first, _second, third = (connect() for _ in range(3))
        assert await asyncio.to_thread(third.ended)
        assert server.counters.refused == {Unwelcome.LIMIT: 1}
        first.socket.close()
        await until(lambda: server.counters.active == 1)
        assert await echoed(tmp_path / "s")
    finally:
        await server.stop()


async def test_more_calls_than_allowed_are_told_so(tmp_path: Path) -> None:
    server = local_server([SERVICE], max_calls=3)
    await server.start(Place(tmp_path / "s"))
    try:
        async with channel(tmp_path / "s") as opened:
            calls = [opened.stream_stream("/t/_echo")() for _ in range(3)]
            for call in calls:
                await call.write(b"x")
                assert await call.read() == b"x"
            assert await opened.stream_stream("/t/_echo")().code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            calls[0].cancel()
            await until(lambda: server.counters.streams.total() == 2)
            again = opened.stream_stream("/t/_echo")()
            await again.write(b"y")
            assert await again.read() == b"y"
        await until(lambda: server.counters.streams.total() == 0)
    finally:
        await server.stop()


async def test_a_message_of_a_hundred_megabytes_is_refused_by_its_announcement(
    connect: Connect, server: LocalServer, tmp_path: Path
) -> None:
    client = connect()
    client.open()
    stream = client.call()
    client.h2.send_data(stream, struct.pack(">BI", 0, 100 * 1024 * 1024) + bytes(1000))
    client.flush()
    await until(lambda: server.counters.ended["_echo", "RESOURCE_EXHAUSTED"])


async def test_a_call_whose_message_never_comes_whole_is_ended(
    connect: Connect, server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_call, "REQUEST_SECONDS", 0.05)
    client = connect()
    client.open()
    stream = client.call("/t/_break")
    client.h2.send_data(stream, struct.pack(">BI", 0, 1000) + b"x")
    client.flush()
    await until(lambda: server.counters.ended["_break", "DEADLINE_EXCEEDED"])


async def test_a_client_that_reads_nothing_is_not_waited_for(
    connect: Connect, server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_call, "SEND_SECONDS", 0.1)
    client = connect()
    client.open()
    client.call("/t/_flood")
    client.flush()
    await until(lambda: server.counters.ended["_flood", "DEADLINE_EXCEEDED"])
    assert server.counters.sent["_flood"] < 100
    assert await echoed(tmp_path / "s")


async def test_streams_that_are_reset_as_soon_as_they_are_opened_leave_nothing_behind(
    connect: Connect, server: LocalServer, tmp_path: Path
) -> None:
    client = connect()
    client.open()
    for _ in range(20):
        for _ in range(50):
            client.h2.reset_stream(client.call())
        client.flush()
        await asyncio.sleep(0.005)
        await until(lambda: not any(one.open_streams for one in server.connections))
    assert server.counters.streams.total() == 0
    assert await echoed(tmp_path / "s")
    client.socket.close()
    await until(lambda: server.counters.active == 0)


async def test_a_flood_of_resets_costs_the_client_its_connection(
    connect: Connect, server: LocalServer, tmp_path: Path
) -> None:
    client = connect()
    client.open()
    for _ in range(MAX_CALLS + 1):
        client.h2.reset_stream(client.call())
    await asyncio.to_thread(client.flush)
    assert await asyncio.to_thread(client.ended)
    await until(lambda: server.counters.refused == {Unwelcome.MISBEHAVED: 1})
    assert await echoed(tmp_path / "s")


async def test_a_client_that_asks_and_asks_and_reads_nothing_is_cut_off(
    connect: Connect, server: LocalServer, tmp_path: Path
) -> None:
    client = connect()
    client.open()
    pings = b"".join(b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + n.to_bytes(8, "big") for n in range(1000))

    def flood() -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(1000):
                client.socket.sendall(pings)
            pytest.fail("17 MB of pings were taken")

    await asyncio.to_thread(flood)
    assert server.counters.refused == {Unwelcome.MISBEHAVED: 1}
    assert await echoed(tmp_path / "s")


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), bytes(10_000)],
    ids=["HTTP/1.1", "TLS", "no settings", "zeros"],
)
async def test_what_is_not_http2_ends_the_connection(
    connect: Connect, server: LocalServer, tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect()
    client.socket.sendall(data)
    assert await asyncio.to_thread(client.ended)
    await until(lambda: server.counters.refused == {Unwelcome.MISBEHAVED: 1})
    assert "Traceback" not in caplog.text


async def test_a_connection_on_which_nothing_is_asked_for_is_closed(connect: Connect, tmp_path: Path) -> None:
    server = local_server([SERVICE])
    server.shared.first_call_seconds = server.shared.idle_seconds = 0.05
    await server.start(Place(tmp_path / "s"))
    try:
        silent = connect()
        assert await asyncio.to_thread(silent.ended)
        asked = connect()
        asked.open()
        stream = asked.call()
        asked.h2.send_data(stream, struct.pack(">BI", 0, 1) + b"x", end_stream=True)
        asked.flush()
        assert await asyncio.to_thread(asked.ended)
        assert server.counters.ended["_echo", "OK"] == 1
        assert not server.counters.refused
    finally:
        await server.stop()


async def test_a_fault_of_ours_is_reported_without_its_text(
    server: LocalServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with channel(tmp_path / "s") as opened:
        call = opened.stream_stream("/t/_break")()
        await call.write(b"x")
        assert await call.code() is grpc.StatusCode.INTERNAL
        assert await call.details() == "internal error"
    said = capsys.readouterr().out
    assert "ValueError" in said
    assert "hunter2" not in said


async def test_a_method_that_does_not_exist_is_said_to_be_so(server: LocalServer, tmp_path: Path) -> None:
    async with channel(tmp_path / "s") as opened:
        assert await opened.stream_stream("/t/other")().code() is grpc.StatusCode.UNIMPLEMENTED


async def test_stopping_ends_calls_and_removes_the_file(tmp_path: Path) -> None:
    server = local_server([SERVICE], me())
    await server.start(Place(tmp_path / "s"))
    async with channel(tmp_path / "s") as opened:
        call = opened.stream_stream("/t/_echo")()
        await call.write(b"x")
        assert await call.read() == b"x"
        await server.stop()
        assert await asyncio.wait_for(call.code(), 10) is grpc.StatusCode.UNAVAILABLE
    assert not (tmp_path / "s").exists()
    assert server.counters.active == 0


@pytest.mark.parametrize("turns", range(5))
async def test_who_connects_in_the_moment_of_its_end_is_hung_up_on(tmp_path: Path, turns: int) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        async with serving_on(tmp_path / "s", SERVICE):
            await asyncio.sleep(0.01)  # it waits for somebody by then
            client.connect(str(tmp_path / "s"))
            for _ in range(turns):
                await asyncio.sleep(0)
        client.setblocking(False)
        with suppress(ConnectionResetError):
            async with asyncio.timeout(5):
                while await asyncio.get_running_loop().sock_recv(client, 4096):
                    pass
    gc.collect()  # an accepted socket that nobody has closed is an error of this test
