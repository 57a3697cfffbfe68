# SPDX-License-Identifier: Apache-2.0
"""What counts as a good run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from marblemesh.demo.errors import CheckFailedError
from marblemesh.demo.progress import last_line
from marblemesh.demo.result import Result, parse_vote_report
from marblemesh.demo.scrape import parse_metrics

REPLY = {
    "votes": 3,
    "failures": 0,
    "errors": [],
    "leaderboard": {
        "total": 3,
        "leaders": [
            {"shortcode": ":a:", "unicode": "a", "votes": 2},
            {"shortcode": ":b:", "unicode": "b", "votes": 1},
        ],
    },
    "seconds": 1.5,
    "result": True,
}


def test_a_run_is_good_when_every_vote_was_answered_and_counted() -> None:
    parse_vote_report(REPLY).check(3)


def test_a_lost_vote_a_double_vote_and_a_failure_are_each_named() -> None:
    report = parse_vote_report(REPLY)
    with pytest.raises(CheckFailedError, match="cast 3 votes, expected 4"):
        report.check(4)
    with pytest.raises(CheckFailedError, match="counted 4 votes, the leaderboard adds up to 3, expected 3"):
        replace(report, total=4).check(3)
    with pytest.raises(CheckFailedError, match="1 requests of vote-bot failed: reset"):
        replace(report, failures=1, errors=("reset",)).check(3)


@pytest.mark.parametrize("reply", [{}, {"votes": 1, "failures": 0}, REPLY | {"leaderboard": 7}, REPLY | {"votes": "3"}])
def test_what_is_no_report_is_not_taken_for_one(reply: dict[str, object]) -> None:
    with pytest.raises(CheckFailedError):
        parse_vote_report(reply)


def test_a_bot_that_saw_no_board_reports_why() -> None:
    failed = REPLY | {"leaderboard": None, "failures": 1, "errors": ["503 no upstream"]}
    with pytest.raises(CheckFailedError, match="no upstream"):
        parse_vote_report(failed).check(3)


def test_a_result_is_json() -> None:
    result = Result(ok=True)
    result.add_votes(parse_vote_report(REPLY))
    assert json.loads(json.dumps(result.to_json()))["leaderboard"][0] == {
        "shortcode": ":a:",
        "unicode": "a",
        "votes": 2,
    }


def test_only_complete_lines_of_json_count(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert last_line(out) == {}
    out.write_text('{"votes": 1}\n{"votes": 2}\nnot json\n{"votes": 3')
    assert last_line(out) == {"votes": 2}


def test_samples_are_summed_by_name_and_labels() -> None:
    metrics = parse_metrics('# TYPE c counter\nc_total{a="1",b="x"} 2\nc_total{a="1",b="y"} 3\nc_total{a="2"} 7\n')
    assert metrics.total("c_total", a="1") == 5
    assert metrics.total("c_total") == 12
    assert metrics.total("d_total") == 0
