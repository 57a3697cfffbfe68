# SPDX-License-Identifier: Apache-2.0
"""Go's durations."""

from __future__ import annotations

from datetime import timedelta

import pytest

from manifests.duration import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("24h", 86400),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("90s", 90),
        ("1m0.5s", 60.5),
        (".5s", 0.5),
        ("1.s", 1),
        ("5us", 5e-6),
    ],
)
def test_what_go_reads(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "24", "h", "1d", "-1h", "+1h", "1h ", " 1h", "1,5h", ".s", "1h\n", "٣h", "1" * 70 + "h"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="invalid duration"):
        parse_duration(text)


def test_no_more_than_go_can_hold() -> None:
    with pytest.raises(ValueError, match="292 years"):
        parse_duration("99999999999h")
