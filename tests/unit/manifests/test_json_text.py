# SPDX-License-Identifier: Apache-2.0
"""JSON from outside: precise about what is wrong, and bounded."""

from __future__ import annotations

import pytest

from manifests import json_text
from manifests.errors import ManifestError, ManifestSyntaxError


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        (b'{\n  "a": 1,\n  "b" 2\n}', 3, 7, "expecting ':' delimiter"),
        (b'{"a": tru}', 1, 7, "expecting value"),
        (b'{"a": 1}\n{}', 2, 1, "extra data"),
        (b"", 1, 1, "the manifest is empty"),
        (b" \n\t", 1, 1, "the manifest is empty"),
        (b'\xef\xbb\xbf{"a": 1}', 1, 1, "byte order mark"),
        (b'{"a":\n "\xff"}', 2, 3, "not UTF-8"),
        (b"\x7fELF\x02\x01", 1, 1, "expecting value"),
        ('{"a": 1}'.encode("utf-16"), 1, 1, "not UTF-8"),
    ],
)
def test_a_syntax_error_has_line_and_column(text: bytes, line: int, column: int, message: str) -> None:
    with pytest.raises(ManifestSyntaxError, match=message) as caught:
        json_text.load(text)
    assert (caught.value.line, caught.value.column) == (line, column)
    assert str(caught.value).startswith(f"line {line} column {column}: ")


@pytest.mark.parametrize("text", [b'{"a": NaN}', b"[Infinity]", b"-Infinity"])
def test_python_s_extra_constants_are_no_json(text: bytes) -> None:
    with pytest.raises(ManifestError, match="not a JSON value"):
        json_text.load(text)


def test_a_member_twice_is_refused_however_deep() -> None:
    with pytest.raises(ManifestError, match="'web' occurs twice"):
        json_text.load(b'{"Marbles": {"web": {}, "db": {}, "web": {}}}')


@pytest.mark.parametrize("depth", [json_text.MAX_DEPTH + 1, 5_000, 90_000])
def test_deep_nesting_is_refused_before_it_exhausts_the_stack(depth: int) -> None:
    with pytest.raises(ManifestError, match="nested deeper than 64"):
        json_text.load(b"[" * depth + b"1" + b"]" * depth)


def test_the_deepest_allowed_nesting_is_read() -> None:
    assert json_text.load(b"[" * json_text.MAX_DEPTH + b"1" + b"]" * json_text.MAX_DEPTH)


def test_size_and_number_of_values_are_bounded() -> None:
    with pytest.raises(ManifestError, match="at most 16777216 are allowed"):
        json_text.load(b" " * (json_text.MAX_BYTES + 1))
    with pytest.raises(ManifestError, match="too many values"):
        json_text.load(b"[" + b"[]," * json_text.MAX_VALUES + b"1]")


def test_half_a_surrogate_pair_is_refused_in_names_and_values() -> None:
    for text in (rb'{"a": "\ud800"}', rb'{"\udc00": 1}'):
        with pytest.raises(ManifestError, match="surrogate"):
            json_text.load(text)
    assert json_text.load(rb'"\ud83d\ude00"') == "😀"


def test_an_endless_integer_is_no_integer() -> None:
    assert isinstance(json_text.load(b"9" * 100_000), float)
    assert isinstance(json_text.load(b"-0"), float)
    assert json_text.load(b"18446744073709551615") == 2**64 - 1
