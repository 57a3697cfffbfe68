# SPDX-License-Identifier: Apache-2.0
"""Properties of the template engine over generated templates, and its limits."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.template import Budget, FunctionError, Struct, Table, TemplateError, Value, parse
from manifests.template.evaluator import MAX_WORK
from manifests.template.literals import string
from manifests.template.printing import Printer, quoted
from manifests.template.values import decode, encode
from tests.fuzz.fuzz_template import fuzz_one
from tests.kit.template_data import DATA, FUNCTIONS

SEEDS = [
    case["template"].encode()
    for case in json.loads((Path(__file__).parents[3] / "data" / "templates.json").read_text())["cases"]
]

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(), st.binary()
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(), inner, max_size=3).map(lambda entries: Table(entries)),
        st.dictionaries(st.from_regex(r"[A-Z][a-z]{0,3}", fullmatch=True), inner, max_size=3).map(
            lambda fields: Struct("main.T", fields)
        ),
    ),
    max_leaves=8,
)


@given(st.binary(max_size=200))
def test_any_bytes_end_in_an_answer(data: bytes) -> None:
    fuzz_one(data)


def test_mutated_templates_end_in_an_answer() -> None:
    chance = random.Random(5)
    for _ in range(1500):
        data = bytearray(chance.choice(SEEDS))
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(data) + 1)
            data[at : at + chance.randint(0, 3)] = chance.choice(
                [b"{{", b"}}", b"(", b")", b"|", b".", b"$x", b'"', b" -", b"- ", b"\xff", b"range ", b"end", b"\n"]
            )
        fuzz_one(bytes(data))


@given(st.text().filter(lambda text: "{{" not in text))
def test_text_without_actions_stays_as_it_is(text: str) -> None:
    data = encode(text) if not any("\ud800" <= c <= "\udfff" for c in text) else b""
    assert parse(data).render(None) == data


@given(st.binary())
def test_strings_hold_any_bytes(data: bytes) -> None:
    assert encode(decode(data)) == data


@given(st.binary())
def test_a_quoted_string_reads_back(data: bytes) -> None:
    assert string(quoted(decode(data))) == decode(data)


@given(values)
def test_every_value_can_be_printed_under_every_verb(value: Value) -> None:
    for verb in "vsqdxXtcboUefgT":
        try:
            parse(f'{{{{ printf "%{verb}" . }}}}').render(value)
        except TemplateError as error:
            assert "not supported" in str(error)  # noqa: PT017 - hexadecimal floats


@given(values)
def test_printing_a_value_in_an_action_is_printing_it_with_print(value: Value) -> None:
    if value is not None:
        assert parse("{{ . }}").render(value) == encode(Printer().print(value))


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5))
def test_range_visits_everything_in_order(numbers: list[int]) -> None:
    data = tuple(numbers)
    assert parse("{{ range . }}{{ . }},{{ end }}").render(data) == "".join(f"{n}," for n in numbers).encode()


# --- limits


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ range 1000000000 }}{{ end }}", "too much work"),
        ("{{ range 1000000000 }}{{ range $.Secrets }}{{ break }}{{ end }}{{ end }}", "too much work"),
        ("{{ range 1000000000 }}x{{ end }}", "too much work"),
        ("{{ range 100000 }}" + "a" * 1000 + "{{ end }}", "output is larger than 4194304 bytes"),
        ('{{ $x := "ab" }}{{ range 64 }}{{ $x = print $x $x }}{{ end }}', "output is larger than 4194304 bytes"),
        ("{{" + "(" * 100 + "1" + ")" * 100 + "}}", "nested more than 64 deep"),
        ("{{ if 1 }}" * 100 + "{{ end }}" * 100, "nested more than 64 deep"),
        ("{{ $x := 1 }}" * 101, "more than 100 variables at once"),
        ('{{ printf "%9999d" 1 }}', "at most 1000 characters"),
        ("{{ " + "1" * 1000 + " }}", "number syntax"),
        (" " * 300_000, "larger than 262144 bytes"),
    ],
    ids=lambda value: value[:30],
)
def test_work_output_and_nesting_are_bounded(template: str, expected: str) -> None:
    with pytest.raises(TemplateError, match=expected):
        parse(template).render(DATA)


def test_the_source_in_an_error_is_bounded() -> None:
    with pytest.raises(TemplateError) as caught:
        parse("{{ index 1 " + "1 " * 10_000 + "}}").render(None)
    assert len(str(caught.value)) < 400


def test_templates_can_share_a_budget() -> None:
    budget = Budget(MAX_WORK)
    template = parse("{{ range 100000 }}{{ end }}")
    template.render(None, None, budget)
    with pytest.raises(TemplateError, match="too much work"):
        template.render(None, None, budget)


def test_secret_values_do_not_stand_in_errors() -> None:
    """Go quotes what it cannot compare; we name its type."""
    for text in ("{{ eq .Secrets.a .Secrets.a }}", "{{ eq .Secrets.a.Public .Secrets.a.Public }}"):
        with pytest.raises(TemplateError) as caught:
            parse(text).render(DATA)
        assert str(caught.value).rpartition(": ")[2].startswith("non-comparable type ")


def test_a_function_of_the_caller_says_why() -> None:
    def refuse(_: Value) -> Value:
        raise FunctionError("no")

    with pytest.raises(TemplateError) as caught:
        parse("\n  {{ f 1 }}", functions={"f"}).render(None, {"f": refuse})
    assert str(caught.value) == 'template: data:2:5: executing "data" at <f 1>: error calling f: no'
    assert (caught.value.line, caught.value.column, caught.value.unsupported) == (2, 5, False)


def test_the_recorded_templates_are_parsed_the_same_way_twice() -> None:
    """What a node says of itself is a template again that means the same."""
    for seed in SEEDS[:200]:
        try:
            body = parse(seed, functions=FUNCTIONS).body
        except TemplateError:
            continue
        text = "".join(str(node) for node in body if type(node).__name__ == "Action")
        again = parse(text, functions=FUNCTIONS).body
        assert "".join(str(node) for node in again) == text
