# SPDX-License-Identifier: Apache-2.0
"""The live view."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from marblemesh.demo.observe import Certificate, MarbleNow, Now
from marblemesh.demo.view import line, render, span

AT = datetime(2026, 1, 1, 12, tzinfo=UTC)
HELD = Certificate(
    "2a",
    "6ba7b810-9dad",
    "spiffe://td/marble/web/x",
    "ab" * 32,
    True,
    AT - timedelta(minutes=1),
    AT + timedelta(minutes=4),
)
NOW = Now(
    at=AT,
    marbles=(MarbleNow("web", HELD, 2, 7, 3, True), MarbleNow("emoji")),
    coordinator="accepts Marbles",
    renewals=4,
    votes=120,
    failures=0,
    edge_active=2,
    prometheus="http://127.0.0.1:9090",
)


def drawn(now: Now) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(render(now, AT - timedelta(seconds=30)))
    return capture.get()


def test_who_is_attested_and_for_how_long_is_seen() -> None:
    text = drawn(NOW)
    for seen in ("6ba7b810", "abababab", "1m00s", "4m00s", "2/7", "connected", "120 in 30s", "9090"):
        assert seen in text
    assert "not yet" in text


def test_no_name_is_cut_off_in_a_terminal_of_80_columns() -> None:
    bot = replace(NOW.marbles[0], type="vote-bot", active=12, established=12345, refused=1234)
    assert "…" not in drawn(replace(NOW, marbles=(bot,)))


def test_it_always_says_that_it_is_a_simulation() -> None:
    assert "simulated" in drawn(NOW)
    assert "proves nothing" in drawn(NOW)


def test_without_a_terminal_it_is_one_line() -> None:
    assert "\n" not in line(NOW)
    assert "1 of 2 Marbles attested, 120 votes, 0 failed" in line(replace(NOW))


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "over"), (0, "0s"), (59, "59s"), (61, "1m01s"), (3600, "1h00m"), (90_061, "25h01m")]
)
def test_durations_have_their_two_largest_units(seconds: int, text: str) -> None:
    assert span(timedelta(seconds=seconds)) == text
