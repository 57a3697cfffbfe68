# SPDX-License-Identifier: Apache-2.0
"""What the chaos test takes for a violation, and what for an error that may be."""

from __future__ import annotations

import pytest

from tests.soak.chaos_verdict import Record, Verdict, judge

HASH, OTHER = "ab" * 32, "cd" * 32
UP = {
    "number": 1, "target": "api", "mode": "UP", "began": 100.0, "seconds": 1.0, "end": "UNKNOWN", "why": "",
    "sent": True, "wrong": "", "answer": HASH, "expected": HASH, "digest": "", "down_complete": False,
}  # fmt: skip
UP_APP = {
    "number": 1, "mode": "UP", "end": "CLEAN", "up_complete": True, "wrong": "", "digest": HASH, "sent": False,
    "answer": "",
}  # fmt: skip
DOWN = UP | {"mode": "DOWN", "end": "CLEAN", "digest": HASH, "down_complete": True, "answer": ""}
DOWN_APP = UP_APP | {"mode": "DOWN", "sent": True, "answer": HASH, "digest": ""}


def verdict(client: Record, app: Record | None, *deaths: float) -> Verdict:
    records = [{"begun": 1}] if app is None else [{"begun": 1}, app]
    return judge([client], {"api": records, "db": []}, {"api": deaths})


@pytest.mark.parametrize(("client", "app"), [(UP, UP_APP), (DOWN, DOWN_APP)], ids=["up", "down"])
def test_a_connection_on_which_both_sides_agree_is_clean(client: Record, app: Record) -> None:
    seen = verdict(client, app)
    assert (sum(seen.clean.values()), seen.violations) == (1, [])


def test_a_connection_that_broke_and_says_so_is_an_error_and_no_violation() -> None:
    broken = {"end": "BROKEN", "why": "hung up", "sent": False, "answer": "", "down_complete": False}
    seen = verdict(UP | broken, UP_APP | {"end": "BROKEN", "up_complete": False})
    assert (seen.broken, seen.violations) == ({"api: hung up": 1}, [])


@pytest.mark.parametrize(
    ("client", "app", "complaint"),
    [
        (UP, UP_APP | {"wrong": "another byte than was sent, after 7"}, "got wrong data"),
        (DOWN | {"wrong": "2 bytes more than were sent, after 7"}, DOWN_APP, "the client got wrong data"),
        (UP | {"answer": OTHER}, UP_APP, "has hashed something else"),
        (UP | {"answer": ""}, UP_APP | {"up_complete": False}, "looked like an end to the app"),
        (DOWN | {"down_complete": False}, DOWN_APP | {"sent": False}, "looked like an end to the client"),
        (DOWN, DOWN_APP | {"answer": OTHER}, "hash has changed on its way"),
        (DOWN | {"mode": "SILENT"}, None, "what the worker has ended looked like an end"),
        (UP | {"hung": "nothing moved for 40 s"}, UP_APP, "hung"),
        (DOWN, None, "has never heard of the end"),
        (UP, UP_APP | {"number": 0}, "an impostor reached"),
        (UP, {"end": "CLEAN", "foreign": "474554"}, "what no client has sent"),
    ],
)
def test_what_must_never_happen_is_named(client: Record, app: Record | None, complaint: str) -> None:
    assert any(complaint in text for text in verdict(client, app).violations)


def test_an_end_that_the_death_of_an_app_has_caused_is_forgiven_around_that_time_only() -> None:
    cut = DOWN | {"down_complete": False}
    assert verdict(cut, None, 100.5).violations == []
    assert verdict(cut, None, 50.0).violations != []


def test_who_is_served_by_somebody_else_or_by_nobody_is_named() -> None:
    served = judge([DOWN], {"api": [], "db": [{"begun": 1}]}, {"api": [], "db": []}).violations
    assert any("meant for api, and served by db" in text for text in served)
    assert any("an end without an app" in text for text in judge([DOWN], {"api": []}, {"api": [100.5]}).violations)
