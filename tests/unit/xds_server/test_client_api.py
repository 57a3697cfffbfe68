# SPDX-License-Identifier: Apache-2.0
"""The client API's port: bounds on whatever a stranger sends by HTTP/1.1, clients that leave, what is counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.kit.client_api import HTTP1, HTTP2, ApiPort, client_api
from tests.kit.fake_operations import FakeOperations
from tests.kit.tls_port import client_context
from xds_server.client_api import HttpLimits

SMALL = HttpLimits(body_budget=30_000, body_timeout=0.3, keepalive=5)
ERROR_405 = b'{"status":"error","data":null}\n'


@pytest.fixture
async def fake() -> FakeOperations:
    return FakeOperations()


@pytest.fixture
async def port(fake: FakeOperations) -> AsyncIterator[ApiPort]:
    async with client_api(fake, SMALL, max_body=20_000, idle=0.5) as port:
        yield port


@pytest.mark.parametrize("path", ["/manifest", "/api/v2/manifest"])
async def test_a_body_that_is_too_large_is_refused_whether_announced_or_not(port: ApiPort, path: str) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield bytes(1000)

    async with aiohttp.ClientSession() as session:
        for body in (bytes(30_000), chunks()):
            async with session.post(port.url(path), data=body, ssl=client_context()) as reply:
                assert reply.status == 413
                assert (await reply.json(content_type=None))["message"] == "request body larger than 20000 bytes"


async def test_a_body_that_does_not_come_ends_in_time(port: ApiPort) -> None:
    answer = await port.raw(b"POST /manifest HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
    assert b" 408 " in answer.split(b"\r\n")[0]
    assert b"did not arrive within 0.3 s" in answer


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /manifest HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnot a length\r\n",
        b"POST /manifest HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    ],
)
async def test_bad_framing_is_an_answer_or_an_end_and_no_trace(
    port: ApiPort, request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert b" 400 " in await port.raw(request_) or b"5\r\n" in request_
    assert not caplog.records


async def test_a_client_that_leaves_in_the_middle_leaves_no_trace(
    port: ApiPort, caplog: pytest.LogCaptureFixture
) -> None:
    _, writer = await port.tls.connect()
    writer.write(b"POST /manifest HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
    (connection,) = port.tls.front._connections
    assert (await port.get("/status")).status == 200
    writer.transport.abort()
    await asyncio.wait_for(connection.lost, 5)
    assert (await port.get("/status")).status == 200
    assert not caplog.records


async def test_a_request_head_that_does_not_come_ends_in_time(port: ApiPort) -> None:
    assert await port.raw(b"GET /status HTTP/1.1\r\nHost:") == b""


async def test_all_bodies_together_are_bounded(port: ApiPort) -> None:
    head = b"POST /manifest HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n"
    answers = await asyncio.gather(*(port.raw(head + bytes(19_999)) for _ in range(3)))
    assert sorted(answer.split(b" ")[1] for answer in answers) == [b"408", b"503", b"503"]


@pytest.mark.parametrize("junk", [b"\0\1\2\3\r\n\r\n", b"GET / HTTP/1.1\r\nbad\xff header\r\n\r\n", b"G" * 70_000])
async def test_what_is_no_http_gets_a_short_400(port: ApiPort, junk: bytes, caplog: pytest.LogCaptureFixture) -> None:
    answer = await port.raw(junk)
    assert b"400 Bad Request" in answer
    assert len(answer) < 300
    assert not caplog.records


async def test_curl_is_told_to_go_on_before_a_large_body(port: ApiPort) -> None:
    head = (
        b"POST /manifest HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    )
    reader, writer = await port.tls.connect()
    writer.write(head)
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"{}")
    assert b"success" in await reader.read()
    writer.transport.abort()


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("https://other.test/status", "/status"),
        ("/%73tatus", "/status"),
        ("/status?a=b", "/status"),
        ("/status%20", "unknown"),
        ("/status%3Fa", "unknown"),
    ],
)
async def test_the_path_is_what_is_left_of_a_target(port: ApiPort, target: str, path: str) -> None:
    await port.raw(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    shown = port.metrics.registry.get_sample_value(
        "server_client_api_http_request_total",
        {"path": path, "code": "405" if path == "unknown" else "200", "method": "get"},
    )
    assert shown == 1


@pytest.mark.parametrize("target", ["/status%", "/status%2", "/%zz"])
async def test_a_malformed_path_is_a_400(port: ApiPort, target: str) -> None:
    answer = await port.raw(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("path", ["//evil.test/..", "/x/..//", "/a/%0d%0ab/../"])
async def test_a_redirect_leads_to_this_server(port: ApiPort, path: str) -> None:
    answer = await port.raw(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    location = next(line for line in answer.split(b"\r\n") if line.startswith(b"Location: "))
    assert location.startswith(b"Location: /")
    assert not location.startswith(b"Location: //")


@pytest.mark.parametrize("version", [HTTP1, HTTP2])
async def test_requests_are_counted_by_route_and_strangers_paths_are_not_labels(port: ApiPort, version: str) -> None:
    await port.get("/api/v2/status", version)
    await port.get("/no/such/path", version)
    await port.get("/no/such/path", version, "-X", "TRACE")
    found = port.metrics.registry.get_sample_value
    name = "server_client_api_http_request_total"
    assert found(name, {"path": "/api/v2/status", "code": "200", "method": "get"}) == 1
    assert found(name, {"path": "unknown", "code": "405", "method": "get"}) == 1
    assert found(name, {"path": "unknown", "code": "405", "method": "other"}) == 1


@pytest.mark.parametrize("version", [HTTP1, HTTP2])
async def test_a_bug_tells_the_client_nothing(port: ApiPort, fake: FakeOperations, version: str) -> None:
    fake.raw = None  # type: ignore[assignment]
    fake.refuse["manifest"] = ZeroDivisionError("secret")  # type: ignore[assignment]
    answer = await port.get("/api/v2/manifest", version)
    assert (answer.status, answer.message) == (500, "internal error")


@pytest.mark.parametrize("version", [HTTP1, HTTP2])
async def test_what_cannot_succeed_is_answered_before_the_body_is_read(
    port: ApiPort, fake: FakeOperations, version: str
) -> None:
    fake.users = set()
    for path in ("/api/v2/secrets", "/api/v2/update", "/api/v2/update-manifest"):
        answer = await port.post(path, bytes(100_000), version)
        assert (answer.status, answer.json["status"]) == (401, "fail")
    assert {name for name, *_ in fake.calls} == {"check_user"}
