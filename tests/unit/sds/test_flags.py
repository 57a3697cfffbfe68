# SPDX-License-Identifier: Apache-2.0
"""Command lines whose flags stand for settings: what is read, what is refused, and what the help says."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sds.flags import Flag, Given, read

FLAGS = (
    Flag("--log", "LOG", "Where to. 100% of it.", "FILE|-"),
    Flag("--drain", "DRAIN", "For how long.", "SECONDS", "Times"),
    Flag("--try", "TRY", "No harm.", None, "Times"),
)


def given_by(*words: str, command: bool = True) -> Given:
    return read("prog run", "What it does.", FLAGS, words, command=command)


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ((), {}),
        (("--log", "f", "--try"), {"LOG": "f", "TRY": "1"}),
        (("--log=f=g",), {"LOG": "f=g"}),
        (("--log=",), {"LOG": ""}),
        (("--log", "-"), {"LOG": "-"}),
        (("--log", "--", "cmd"), None),
        (("--drain", "-5"), {"DRAIN": "-5"}),
        (("--log", '{"a": "-b"}'), {"LOG": '{"a": "-b"}'}),
        (("--drain", "1", "--drain", "2"), {"DRAIN": "2"}),
    ],
)
def test_flags_are_read_as_they_are_written_and_the_last_one_counts(
    words: tuple[str, ...], values: dict[str, str] | None
) -> None:
    if values is None:
        with pytest.raises(SystemExit):
            given_by(*words)
    else:
        assert given_by(*words) == Given(values, ())


@given(st.lists(st.sampled_from(["a", "-x", "--", "--try", "--drain", "--help", "-", "", "b c", "-5"]), max_size=6))
def test_everything_behind_the_program_s_name_is_its_own(words: list[str]) -> None:
    assert given_by("--try", "cmd", *words) == Given({"TRY": "1"}, ("cmd", *words))
    assert given_by("--drain", "1", "--", *words) == Given({"DRAIN": "1"}, tuple(words))
    assert given_by("cmd", *words) == Given({}, ("cmd", *words))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--dran", "5"), "prog run: no such option: --dran; did you mean --drain? (see prog run --help)"),
        (("--frob=5", "cmd"), "prog run: no such option: --frob (see prog run --help)"),
        (("-x",), "prog run: no such option: -x (see prog run --help)"),
        (("--dra", "5"), "prog run: no such option: --dra; did you mean --drain? (see prog run --help)"),
        (("--drain",), "prog run: --drain: expected one argument (see prog run --help)"),
        (("--drain", "--try"), "prog run: --drain: expected one argument (see prog run --help)"),
        (("--try=1",), "prog run: --try: ignored explicit argument '1' (see prog run --help)"),
    ],
)
def test_wrong_usage_is_one_line_with_the_way_out_and_status_2(
    words: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        given_by(*words)
    assert (ended.value.code, capsys.readouterr()) == (2, ("", line + "\n"))


def test_a_program_that_starts_no_other_takes_no_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        given_by("--try", "cmd", command=False)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "prog run: unexpected argument: cmd (see prog run --help)\n"


def test_the_help_says_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        given_by("--try", "--help")
    assert ended.value.code == 0
    text = " ".join(re.split(r"\s+", capsys.readouterr().out))
    assert text == (
        "usage: prog run [OPTIONS] [--] CMD... What it does. Options: --log FILE|- Where to. 100% of it. "
        "Times: --drain SECONDS For how long. --try No harm. -h, --help Show this and exit. "
    )
