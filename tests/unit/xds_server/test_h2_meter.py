# SPDX-License-Identifier: Apache-2.0
"""The frame meter: follows boundaries however the bytes are cut, and knows who only spends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.fuzz_http2 import DATA, HEADERS, PING, RST, frame
from xds_server.h2_meter import ANSWER, CREDIT, PREFACE, FrameMeter


def fed(data: bytes, credit: int = CREDIT) -> FrameMeter:
    meter = FrameMeter(credit)
    meter.feed(PREFACE + data)
    return meter


@pytest.mark.parametrize(
    ("frames", "cost"),
    [
        (b"", 0),
        (frame(PING, 0, 0, bytes(8)), 1),
        (frame(0xEE, 0, 5, bytes(3)), 1),
        (frame(HEADERS, 4, 1, bytes(10)) + frame(RST, 0, 1, bytes(4)), 10),
        (frame(DATA, 0, 1, b"x") * 3, 3),
        (frame(DATA, 0, 1), 1),
    ],
)
def test_every_frame_costs(frames: bytes, cost: int) -> None:
    assert fed(frames).credit == CREDIT - cost


def test_data_and_answers_earn_but_nobody_saves_more_than_he_began_with() -> None:
    meter = fed(frame(PING, 0, 0, bytes(8)) * 100)
    meter.feed(frame(DATA, 0, 1, bytes(16384)))
    assert meter.credit == CREDIT - 100 - 1 + 64
    for _ in range(100):
        meter.earn(ANSWER)
    assert meter.credit == CREDIT


def test_who_only_spends_is_told_so() -> None:
    meter = fed(b"")
    assert meter.feed(frame(PING, 0, 0, bytes(8)) * (CREDIT - 1))
    assert not meter.feed(frame(PING, 0, 0, bytes(8)))


def test_usual_traffic_never_runs_out() -> None:
    meter = fed(b"")
    for _ in range(10_000):
        assert meter.feed(frame(HEADERS, 5, 1, bytes(50)) + frame(8, 0, 0, bytes(4)) * 2)
        meter.earn(ANSWER)


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=40))), st.lists(st.integers(1, 30)))
def test_boundaries_do_not_depend_on_how_bytes_arrive(frames: list[tuple[int, bytes]], cuts: list[int]) -> None:
    data = PREFACE + b"".join(frame(kind, 0, 1, payload) for kind, payload in frames)
    whole, pieces = FrameMeter(), FrameMeter()
    whole.feed(data)
    position = 0
    for cut in [*cuts, len(data)]:
        pieces.feed(data[position : position + cut])
        position += cut
    assert whole.credit == pieces.credit
