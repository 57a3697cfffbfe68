# SPDX-License-Identifier: Apache-2.0
"""Frames that break the rules of HTTP/2, or use them against us: their connection ends, with the code that says why."""

from __future__ import annotations

import pytest
from h2.errors import ErrorCodes
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.rpc_peer import GREETING, REQUEST, Raw, framed, literal, open_stream
from xds_server.rpc_frames import PREFACE, WINDOW, frame, settings
from xds_server.rpc_framing import CREDIT, CREDIT_PER_SECOND
from xds_server.rpc_h2 import H2Limits

DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, UPDATE, CONTINUATION = range(10)
E = ErrorCodes
FAULTS: dict[str, tuple[bytes, ErrorCodes]] = {
    "HEADERS on an even stream": (frame(HEADERS, 4, 2, literal(REQUEST)), E.PROTOCOL_ERROR),
    "HEADERS on stream 0": (frame(HEADERS, 4, 0, literal(REQUEST)), E.PROTOCOL_ERROR),
    "HEADERS that cannot be decompressed": (frame(HEADERS, 4, 1, b"\xff\xff\xff\xff\xff\xff"), E.COMPRESSION_ERROR),
    "HEADERS padded beyond their end": (frame(HEADERS, 4 | 8, 1, b"\x05abc"), E.PROTOCOL_ERROR),
    "HEADERS too short for a priority": (frame(HEADERS, 4 | 0x20, 1, b"abc"), E.FRAME_SIZE_ERROR),
    "a header block of 17 KiB": (
        frame(HEADERS, 0, 1, bytes(16384)) + frame(CONTINUATION, 4, 1, bytes(1000)),
        E.ENHANCE_YOUR_CALM,
    ),
    "CONTINUATION without end": (
        frame(HEADERS, 0, 1) + frame(CONTINUATION, 0, 1) * 20,
        E.ENHANCE_YOUR_CALM,
    ),
    "a small block that becomes a large list": (
        frame(HEADERS, 4, 1, b"\x40\x01a\x7f\xb9\x16" + b"x" * 3000 + b"\xbe" * 1000),
        E.ENHANCE_YOUR_CALM,
    ),
    "CONTINUATION of nothing": (frame(CONTINUATION, 4, 1, b""), E.PROTOCOL_ERROR),
    "a block interrupted by another frame": (frame(HEADERS, 0, 1) + frame(PING, 0, 0, bytes(8)), E.PROTOCOL_ERROR),
    "a block continued on another stream": (frame(HEADERS, 0, 1) + frame(CONTINUATION, 4, 3), E.PROTOCOL_ERROR),
    "DATA on an idle stream": (frame(DATA, 0, 5, b"x"), E.PROTOCOL_ERROR),
    "DATA on stream 0": (frame(DATA, 0, 0, b"x"), E.PROTOCOL_ERROR),
    "DATA padded beyond its end": (open_stream() + frame(DATA, 8, 1, b"\x09abc"), E.PROTOCOL_ERROR),
    "RST_STREAM on an idle stream": (frame(RST, 0, 1, bytes(4)), E.PROTOCOL_ERROR),
    "RST_STREAM of wrong size": (open_stream() + frame(RST, 0, 1, bytes(3)), E.FRAME_SIZE_ERROR),
    "SETTINGS on a stream": (frame(SETTINGS, 0, 1), E.PROTOCOL_ERROR),
    "SETTINGS of wrong size": (frame(SETTINGS, 0, 0, bytes(5)), E.FRAME_SIZE_ERROR),
    "SETTINGS with ACK and a payload": (frame(SETTINGS, 1, 0, bytes(6)), E.FRAME_SIZE_ERROR),
    "a thousand settings in one frame": (frame(SETTINGS, 0, 0, bytes(6) * 1000), E.ENHANCE_YOUR_CALM),
    "a window over 2^31-1 in SETTINGS": (settings({4: 1 << 31}), E.FLOW_CONTROL_ERROR),
    "a frame size below the least": (settings({5: 100}), E.PROTOCOL_ERROR),
    "a push setting that is no boolean": (settings({2: 2}), E.PROTOCOL_ERROR),
    "PUSH_PROMISE": (frame(PUSH, 4, 1, bytes(4)), E.PROTOCOL_ERROR),
    "PING on a stream": (frame(PING, 0, 1, bytes(8)), E.PROTOCOL_ERROR),
    "PING of wrong size": (frame(PING, 0, 0, bytes(7)), E.FRAME_SIZE_ERROR),
    "GOAWAY on a stream": (frame(GOAWAY, 0, 1, bytes(8)), E.PROTOCOL_ERROR),
    "PRIORITY on stream 0": (frame(PRIORITY, 0, 0, bytes(5)), E.PROTOCOL_ERROR),
    "PRIORITY of wrong size": (frame(PRIORITY, 0, 1, bytes(4)), E.FRAME_SIZE_ERROR),
    "WINDOW_UPDATE of nothing": (frame(UPDATE, 0, 0, bytes(4)), E.PROTOCOL_ERROR),
    "WINDOW_UPDATE of wrong size": (frame(UPDATE, 0, 0, bytes(3)), E.FRAME_SIZE_ERROR),
    "WINDOW_UPDATE beyond 2^31-1": (frame(UPDATE, 0, 0, b"\x7f\xff\xff\xff"), E.FLOW_CONTROL_ERROR),
    "WINDOW_UPDATE on an idle stream": (frame(UPDATE, 0, 9, b"\0\0\0\1"), E.PROTOCOL_ERROR),
    "a frame larger than we allow": (b"\x00\x40\x01" + frame(DATA, 0, 1)[3:], E.FRAME_SIZE_ERROR),
}
# Each allowed once, and useless by the thousand.
FLOODS: dict[str, bytes] = {
    "pings": frame(PING, 0, 0, bytes(8)),
    "settings": settings({3: 100}),
    "empty DATA": frame(DATA, 0, 1),
    "window updates": frame(UPDATE, 0, 0, b"\0\0\0\1"),
    "priorities": frame(PRIORITY, 0, 1, bytes(5)),
    "frames of an unknown type": frame(0x42, 0, 0),
    "DATA for a stream that has ended": frame(DATA, 0, 3),
}


@pytest.mark.parametrize(("data", "code"), FAULTS.values(), ids=FAULTS)
def test_who_breaks_the_rules_is_told_how_and_has_nothing_left(data: bytes, code: ErrorCodes) -> None:
    peer = Raw()
    peer.feed(data)
    assert peer.code is code
    assert peer.server.ended
    assert sorted(peer.log.over) == sorted(peer.log.streams)
    said = len(peer.heard)
    peer.feed(open_stream(99))
    assert len(peer.heard) == said, "nothing is taken in any more"


@pytest.mark.parametrize(
    "greeting",
    [b"GET / HTTP/1.1\r\n\r\n", PREFACE[:-1] + b"x", PREFACE + frame(PING, 0, 0, bytes(8)), PREFACE + settings({})[:4]],
)
def test_without_preface_and_settings_nothing_begins(greeting: bytes) -> None:
    peer = Raw(greeting=greeting)
    assert peer.code in (E.PROTOCOL_ERROR, None)
    peer.feed(open_stream())
    assert peer.log.streams == {}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(DATA, 0, 1, bytes(16384)) * 3 + frame(DATA, 0, 1, bytes(16383)) + b"", None),
        (frame(DATA, 1, 1) + frame(DATA, 0, 1, b"x"), E.STREAM_CLOSED),
        (frame(DATA, 1, 1) + open_stream(1, end=True), E.STREAM_CLOSED),
        (open_stream(1), E.PROTOCOL_ERROR),
        (frame(UPDATE, 0, 1, bytes(4)), E.PROTOCOL_ERROR),
        (frame(UPDATE, 0, 1, b"\x7f\xff\xff\xff"), E.FLOW_CONTROL_ERROR),
    ],
    ids=[
        "a full window",
        "DATA after the end",
        "HEADERS after the end",
        "HEADERS in the middle",
        "no step",
        "overflow",
    ],
)
def test_what_is_wrong_with_one_stream_ends_that_one_alone(data: bytes, code: ErrorCodes | None) -> None:
    peer = Raw()
    peer.feed(open_stream(1) + open_stream(3))
    peer.log.streams[1].paused = True
    peer.feed(data)
    assert peer.reset_code(1) is code
    assert peer.code is None
    peer.feed(frame(DATA, 0, 3, framed(b"still here")))
    assert peer.log.messages[3] == [b"still here"]


def test_more_data_than_a_stream_may_have_ends_it() -> None:
    peer = Raw()
    peer.feed(open_stream(1))
    peer.log.streams[1].paused = True
    for _ in range(5):  # the connection's own window is opened again meanwhile
        peer.feed(frame(DATA, 0, 1, bytes(WINDOW // 5 + 1)))
    assert peer.reset_code(1) is E.FLOW_CONTROL_ERROR


@pytest.mark.parametrize(
    "fields",
    [
        [*REQUEST, (b":path", b"/again")],
        [*REQUEST, (b":status", b"200")],
        [*REQUEST, (b"Upper", b"x")],
        [*REQUEST, (b"", b"x")],
        [*REQUEST, (b"connection", b"close")],
        [*REQUEST[:4], (b"te", b"gzip"), REQUEST[5]],
        [REQUEST[4], *REQUEST[:4], REQUEST[5]],
        REQUEST[1:],
    ],
    ids=["twice", "of a response", "upper case", "nameless", "of HTTP/1", "te", "behind a field", "no method"],
)
def test_a_malformed_request_is_reset(fields: list[tuple[bytes, bytes]]) -> None:
    peer = Raw()
    peer.feed(open_stream(1, fields=fields) + open_stream(3))
    assert peer.reset_code(1) is E.PROTOCOL_ERROR
    assert list(peer.log.streams) == [3]


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_a_flood_of_what_costs_more_than_it_brings_ends_its_connection(flood: bytes) -> None:
    peer = Raw()
    peer.feed(open_stream(1) + open_stream(3) + frame(RST, 0, 3, bytes(4)))
    count = 0
    while not peer.server.ended:
        peer.feed(flood)
        count += 1
        assert count <= CREDIT
    assert peer.code is E.ENHANCE_YOUR_CALM


def test_streams_that_are_opened_and_reset_at_once_end_their_connection() -> None:
    peer = Raw()
    for number in range(1, 2 * CREDIT, 2):
        peer.feed(open_stream(number) + frame(RST, 0, number, bytes(4)))
    assert peer.code is E.ENHANCE_YOUR_CALM
    assert len(peer.log.streams) < CREDIT // 10


def test_tls_records_that_bring_nothing_end_their_connection() -> None:
    peer = Raw()
    for _ in range(CREDIT):
        peer.feed(b"", overhead=16 * 1024)
        peer.feed(frame(PING, 0, 0, bytes(8)))
    assert peer.code is E.ENHANCE_YOUR_CALM


def test_who_takes_its_time_may_ping_for_ever() -> None:
    peer = Raw()
    for second in range(1, 200):
        for _ in range(CREDIT_PER_SECOND - 1):
            peer.feed(frame(PING, 0, 0, bytes(8)), now=float(second))
    assert peer.code is None


def test_pushes_and_their_answers_never_use_a_client_up() -> None:
    peer = Raw()
    peer.feed(open_stream())
    for _ in range(2 * CREDIT):  # at one and the same moment: time gives nothing back
        assert peer.server.send(peer.log.streams[1], b"")
        peer.feed(frame(DATA, 0, 1, framed(b"ack")) + frame(UPDATE, 0, 0, b"\0\0\0\5") + frame(PING, 0, 0, bytes(8)))
        peer.feed(frame(UPDATE, 0, 1, b"\0\0\0\5"))
    assert len(peer.log.messages[1]) == 2 * CREDIT
    assert not peer.server.ended


def test_trailers_end_a_request() -> None:
    peer = Raw()
    peer.feed(open_stream(1) + frame(DATA, 0, 1, framed(b"x")) + frame(HEADERS, 5, 1, literal([(b"x-sum", b"1")])))
    assert (peer.log.messages[1], peer.log.half) == ([b"x"], [1])


def test_padding_and_priority_are_no_part_of_a_request() -> None:
    peer = Raw()
    block = b"\x04" + bytes(5) + literal(REQUEST) + bytes(4)
    peer.feed(frame(HEADERS, 4 | 8 | 0x20, 1, block) + frame(DATA, 8, 1, b"\x03" + framed(b"x") + bytes(3)))
    assert peer.log.messages[1] == [b"x"]


def test_a_header_block_may_come_in_pieces() -> None:
    peer = Raw()
    block = literal(REQUEST)
    peer.feed(frame(HEADERS, 0, 1, block[:10]) + frame(CONTINUATION, 0, 1, block[10:20]))
    peer.feed(frame(CONTINUATION, 4, 1, block[20:]))
    assert list(peer.log.streams) == [1]


FRAMES = st.builds(
    frame,
    st.integers(0, 10),
    st.integers(0, 255),
    st.integers(0, 9),
    st.binary(max_size=20) | st.sampled_from([literal(REQUEST), framed(b"x"), bytes(8), bytes(4), b"\0\0\1\0"]),
)


@given(st.lists(FRAMES | st.binary(max_size=30), max_size=30), st.integers(1, 200))
def test_whatever_comes_the_connection_goes_on_or_ends_and_every_stream_ends_once(
    frames: list[bytes], step: int
) -> None:
    peer = Raw(H2Limits(streams=3, message=100, unfinished=200), GREETING + open_stream())
    data = b"".join(frames)
    for position in range(0, len(data), step):
        peer.feed(data[position : position + step])
    peer.server.cut()
    assert sorted(peer.log.over) == sorted(peer.log.streams)
    assert peer.budget.used == 0
