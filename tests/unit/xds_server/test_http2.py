# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 on the client API: many requests at once, bounds of each and of all, floods, and how connections end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.fuzz_http2 import PING, fuzz_one
from tests.fuzz.fuzz_http2 import frame as h2_frame
from tests.kit.client_api import HTTP2, ApiPort, RawH2, client_api
from tests.kit.fake_operations import FakeOperations
from tests.kit.marble_client import MarbleCredentials
from xds_server.client_api import MAX_STREAMS, HttpLimits
from xds_server.h2_meter import CREDIT

SMALL = HttpLimits(body_budget=30_000, body_timeout=0.3, keepalive=0.5)
STATUS = RawH2.head("/api/v2/status")
POST = RawH2.head("/manifest", "POST")


@pytest.fixture
async def fake() -> FakeOperations:
    return FakeOperations()


@pytest.fixture
async def port(fake: FakeOperations) -> AsyncIterator[ApiPort]:
    async with client_api(fake, SMALL, max_body=20_000) as port:
        yield port


@pytest.fixture
async def raw(port: ApiPort) -> AsyncIterator[RawH2]:
    client = await port.h2()
    yield client
    client.abort()


async def test_requests_of_one_connection_are_answered_side_by_side(raw: RawH2, fake: FakeOperations) -> None:
    fake.gate = asyncio.Event()
    raw.h2.send_headers(1, POST)
    raw.h2.send_data(1, b"{}", end_stream=True)
    raw.h2.send_headers(3, STATUS, end_stream=True)
    assert (await raw.answers([3]))[3][0] == 200
    fake.gate.set()
    assert (await raw.answers([1]))[1] == (200, b'{"status":"success","data":null}\n')


async def test_a_large_answer_waits_for_the_windows_of_a_slow_reader(raw: RawH2, fake: FakeOperations) -> None:
    fake.raw = random.randbytes(300_000)
    raw.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 1000})
    raw.h2.send_headers(1, RawH2.head("/api/v2/manifest"), end_stream=True)
    status, body = (await raw.answers([1]))[1]
    assert (status, len(body) > 400_000) == (200, True)


async def test_an_answer_that_nobody_takes_ends_in_time(raw: RawH2, fake: FakeOperations) -> None:
    fake.raw = bytes(300_000)
    raw.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
    raw.h2.send_headers(1, RawH2.head("/api/v2/manifest"), end_stream=True)
    assert (await raw.answers([1]))[1] == (-ErrorCodes.CANCEL, b"")


@pytest.mark.parametrize("announced", [{}, {"content_length": "30000"}])
async def test_a_body_that_is_too_large_is_refused_and_the_upload_stopped(
    raw: RawH2, announced: dict[str, str]
) -> None:
    raw.h2.send_headers(1, RawH2.head("/manifest", "POST", **announced))
    for _ in range(3):
        raw.h2.send_data(1, bytes(10_000))
    answer = await raw.answers([1])
    assert answer[1][0] == 413
    assert b"larger than 20000 bytes" in answer[1][1]
    raw.h2.send_headers(3, STATUS, end_stream=True)
    assert (await raw.answers([3]))[3][0] == 200


async def test_a_body_that_does_not_come_ends_in_time(raw: RawH2) -> None:
    raw.h2.send_headers(1, POST)
    assert (await raw.answers([1]))[1][0] == 408


async def test_all_bodies_together_are_bounded(raw: RawH2, port: ApiPort) -> None:
    for stream in (1, 3, 5):
        raw.h2.send_headers(stream, POST)
        raw.h2.send_data(stream, bytes(15_000))
    answers = await raw.answers([1, 3, 5])
    assert [answers[stream][0] for stream in (1, 3, 5)] == [408, 408, 503]
    assert port.api.budget.used == 0


async def test_who_asks_whether_to_go_on_is_told_so(raw: RawH2) -> None:
    raw.h2.send_headers(1, RawH2.head("/manifest", "POST", expect="100-continue"))
    raw.flush()
    async for event in raw.events():
        if type(event).__name__ == "InformationalResponseReceived":
            break
    raw.h2.send_data(1, b"{}", end_stream=True)
    assert (await raw.answers([1]))[1][0] == 200


async def test_requests_beyond_what_the_port_serves_at_once_are_refused_and_may_be_repeated(
    raw: RawH2, port: ApiPort, fake: FakeOperations
) -> None:
    port.api._http2.limits = replace(port.api._http2.limits, calls=3)
    raw = await port.h2()
    fake.gate = asyncio.Event()
    streams = [1, 3, 5, 7, 9]
    for stream in streams:
        raw.h2.send_headers(stream, POST)
        raw.h2.send_data(stream, b"{}", end_stream=True)
    refused = await raw.answers(streams[3:])
    assert {code for code, _ in refused.values()} == {-ErrorCodes.REFUSED_STREAM}
    fake.gate.set()
    answers = await raw.answers(streams[:3])
    assert {status for status, _ in answers.values()} == {200}
    assert port.api._http2.calls == 0
    raw.abort()


async def test_as_many_streams_as_clients_expect_and_no_more(raw: RawH2) -> None:
    streams = [1 + 2 * number for number in range(MAX_STREAMS + 1)]
    for stream in streams:
        raw.h2.send_headers(stream, POST)
    assert await raw.goaway() == ErrorCodes.PROTOCOL_ERROR


async def test_a_head_that_is_too_large_ends_the_connection(raw: RawH2) -> None:
    raw.h2.send_headers(1, [*STATUS, *((f"x-{n}", "y" * 1000) for n in range(70))], end_stream=True)
    assert await raw.goaway() == ErrorCodes.ENHANCE_YOUR_CALM


async def test_a_bomb_of_compressed_headers_ends_the_connection(raw: RawH2) -> None:
    raw.h2.send_headers(1, [*STATUS, ("x-bomb", "y" * 3000)], end_stream=True)
    assert (await raw.answers([1]))[1][0] == 200
    raw.h2.send_headers(3, [*STATUS, *[("x-bomb", "y" * 3000)] * 100], end_stream=True)
    assert await raw.goaway() == ErrorCodes.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("kind", ["ping", "settings", "window", "empty data", "reset", "priority", "closed stream"])
async def test_floods_end_the_connection(raw: RawH2, kind: str) -> None:
    if kind == "closed stream":
        raw.h2.send_headers(1, STATUS, end_stream=True)
        await raw.answers([1])
    else:
        raw.h2.send_headers(1, POST)
        raw.flush()
    frames = {
        "ping": h2_frame(PING, 0, 0, bytes(8)),
        "settings": h2_frame(4, 0, 0),
        "window": h2_frame(8, 0, 0, b"\0\0\0\1"),
        "empty data": h2_frame(0, 0, 1),
        "priority": h2_frame(2, 0, 7, b"\0\0\0\0\1"),
        "closed stream": h2_frame(0, 0, 1, b"x"),
    }
    if kind == "reset":
        for number in range(1, CREDIT // 8):
            raw.h2.send_headers(1 + 2 * number, STATUS)
            raw.h2.reset_stream(1 + 2 * number)
    else:
        raw.writer.write(frames[kind] * (CREDIT + 10))
    assert await raw.goaway() == ErrorCodes.ENHANCE_YOUR_CALM


async def test_an_idle_connection_is_told_before_it_is_closed(raw: RawH2) -> None:
    raw.h2.send_headers(1, STATUS, end_stream=True)
    assert (await raw.answers([1]))[1][0] == 200
    assert await raw.goaway() == ErrorCodes.NO_ERROR


async def test_pings_do_not_keep_a_connection(raw: RawH2) -> None:
    for _ in range(5):
        raw.h2.ping(bytes(8))
    assert await raw.goaway() == ErrorCodes.NO_ERROR


async def test_stop_lets_the_request_in_flight_end_and_refuses_new_ones(
    raw: RawH2, port: ApiPort, fake: FakeOperations
) -> None:
    fake.gate = asyncio.Event()
    raw.h2.send_headers(1, POST)
    raw.h2.send_data(1, b"{}", end_stream=True)
    raw.h2.send_headers(3, STATUS, end_stream=True)
    await raw.answers([3])
    await port.api.stop(0.1)
    raw.h2.send_headers(5, STATUS, end_stream=True)
    assert (await raw.answers([5]))[5][0] == -ErrorCodes.REFUSED_STREAM
    fake.gate.set()
    assert (await raw.answers([1]))[1][0] == 200
    assert await raw.goaway() in (ErrorCodes.NO_ERROR, None)


async def test_a_client_that_leaves_stops_nothing(port: ApiPort, fake: FakeOperations) -> None:
    fake.gate = asyncio.Event()
    client = await port.h2()
    client.h2.send_headers(1, POST)
    client.h2.send_data(1, b"{}", end_stream=True)
    client.h2.send_headers(3, STATUS, end_stream=True)
    await client.answers([3])
    (connection,) = port.tls.front._connections
    client.abort()
    await asyncio.wait_for(connection.lost, 5)
    assert (await port.get("/status", HTTP2)).status == 200
    assert port.api._http2.sessions == set()


async def test_the_client_s_certificate_reaches_the_route(port: ApiPort, fake: FakeOperations) -> None:
    who = MarbleCredentials.make()
    fake.users = {who.certificate_der}
    client = await port.h2(who)
    client.h2.send_headers(1, RawH2.head("/secrets?s=a"), end_stream=True)
    assert (await client.answers([1]))[1][0] == 200
    assert fake.asked("check_user") == [((who.certificate_der,),)]
    client.abort()


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=300))
def test_no_frames_escape(data: bytes) -> None:
    fuzz_one(data)


def test_no_script_of_frames_escapes() -> None:
    rng = random.Random(7)
    for _ in range(60):
        fuzz_one(rng.randbytes(rng.randrange(600)))
