# SPDX-License-Identifier: Apache-2.0
"""Go-flavoured JSON: exact bytes out, lenient names and strict values in."""

from __future__ import annotations

import base64
import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds_server.http_json import (
    BadRequest,
    bytes_member,
    decode_map,
    decode_nonce,
    decode_object,
    encode,
    error,
    fail,
    map_member,
    redirect,
    string_member,
    success,
    uint_member,
)


def test_the_405_body_is_exact() -> None:
    reply = error(405)
    assert reply.body == b'{"status":"error","data":null}\n'
    assert reply.headers == {"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"}


def test_success_and_fail_are_json_and_errors_carry_their_message() -> None:
    assert success(None).body == b'{"status":"success","data":null}\n'
    assert success({"a": 1}).headers == {"Content-Type": "application/json"}
    assert fail(400, "no").body == b'{"status":"fail","data":null,"message":"no"}\n'
    assert error(500, "x").body == b'{"status":"error","data":null,"message":"x"}\n'


def test_a_redirect_has_a_place_and_no_body() -> None:
    assert redirect("/status").headers == {"Location": "/status"}
    assert redirect("/status").body == b""


def test_go_escapes_html_characters_and_line_separators() -> None:
    assert encode("<a>&\u2028\u2029é") == '"\\u003ca\\u003e\\u0026\\u2028\\u2029é"\n'.encode()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
    )
)
def test_what_is_encoded_reads_back(value: object) -> None:
    try:
        expected = json.loads(json.dumps(value).encode("utf-8", "surrogatepass"))
    except UnicodeError:
        return
    text = encode(value)
    if rb"\ufffd" not in text:  # lone surrogates
        assert json.loads(text) == expected


def test_member_names_are_read_without_regard_to_case() -> None:
    assert bytes_member(decode_object(b'{"MANIFEST":"YQ==","other":1}'), "manifest") == b"a"


@pytest.mark.parametrize(
    "body", [b"{}", b"null", b'{"manifest":null}', b'{"manifest":""}', b'{"manifest":"YQ==","Manifest":null}']
)
def test_absent_null_and_empty_are_empty(body: bytes) -> None:
    assert bytes_member(decode_object(body), "manifest") == b""


def test_the_last_of_several_members_wins_however_it_is_spelled() -> None:
    assert decode_object('{"key":1,"KEY":2,"key":3,"\u212aey":4}'.encode()) == {"key": 4}
    assert decode_object(b'{"key":1,"KEY":2,"key":3}') == {"key": 3}


def test_names_that_somebody_chose_keep_their_case() -> None:
    assert decode_map(b'{"A":{"Key":"YQ=="},"a":[null,{"B":1}]}') == {"A": {"Key": "YQ=="}, "a": [None, {"B": 1}]}
    assert map_member(decode_object(b'{"Secrets":{"A":1}}'), "secrets") == {"A": 1}
    assert map_member({}, "secrets") == {}
    with pytest.raises(BadRequest, match="member secrets must be an object, got an array"):
        map_member({"secrets": []}, "secrets")


def test_a_map_is_not_nested_deeper_than_anybody_needs() -> None:
    with pytest.raises(BadRequest, match="nested too deeply"):
        decode_map(b'{"a":' * 100 + b"1" + b"}" * 100)


@pytest.mark.parametrize(
    ("text", "value"),
    [(b"{}", 0), (b'{"value":null}', 0), (b'{"value":3}', 3), (b'{"VALUE":18446744073709551615}', 2**64 - 1)],
)
def test_unsigned_integers_are_plain_digits(text: bytes, value: int) -> None:
    assert uint_member(decode_object(text), "value") == value


@pytest.mark.parametrize("text", ["1.0", '"1"', "-1", "1e2", "true", "18446744073709551616", "[]"])
def test_what_go_does_not_read_as_unsigned_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="member value must be an integer"):
        uint_member(decode_object(f'{{"value":{text}}}'.encode()), "value")


def test_strings_are_whole_characters_in_both_directions() -> None:
    assert string_member(decode_object(b'{"name":"\\ud800x"}'), "name") == "\ufffdx"
    assert string_member(decode_object(b'{"name":"\xffx"}'), "name") == "\ufffdx"
    assert encode("\ud800") == b'"\\ufffd"\n'
    with pytest.raises(BadRequest, match="member name must be a string, got a number"):
        string_member({"name": 1}, "name")


def test_line_breaks_inside_base64_are_skipped_as_go_does() -> None:
    assert bytes_member({"m": "YW\r\nJj\n"}, "m") == b"abc"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "line 1 column 1"),
        (b'{"a":\n  }', "line 2 column 3"),
        (b"[]", "must be a JSON object, got an array"),
        (b"{} x", "line 1 column 4"),
        (b'{"a":NaN}', "NaN is not JSON"),
        (b"\xff", "line 1 column 1"),
        (b"\xef\xbb\xbf{}", "line 1 column 1"),
        (b"[" * 50_000, "nested too deeply"),
        (b'{"a":[' + b"[]," * 200_000 + b"0]}", "more than 100000 values"),
        (b'{"a":' + b"9" * 5000 + b"}", "malformed JSON"),
    ],
)
def test_bad_bodies_are_named(body: bytes, text: str) -> None:
    with pytest.raises(BadRequest, match=text):
        decode_object(body)


@pytest.mark.parametrize("value", [1, True, [], {}, "a", "YQ", "YQ==YQ==", "Y-==", "é"])
def test_members_that_are_no_base64_are_refused(value: object) -> None:
    with pytest.raises(BadRequest, match="member m"):
        bytes_member({"m": value}, "m")


@given(st.binary(max_size=80))
def test_a_padded_url_safe_nonce_is_read(nonce: bytes) -> None:
    assert decode_nonce(base64.urlsafe_b64encode(nonce).decode()) == nonce


# Positions computed with Go's encoding/base64.URLEncoding.
@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("YQ", 0),
        ("YWJjZA", 4),
        ("YQ=", 3),
        ("Y===", 1),
        ("=", 0),
        ("YQ==x", 4),
        ("Y+==", 1),
        ("YWI=YQ==", 4),
        ("YQ=x", 2),
    ],
)
def test_a_bad_nonce_is_refused_in_gos_words(text: str, at: int) -> None:
    with pytest.raises(BadRequest) as e:
        decode_nonce(text)
    assert str(e.value) == f"invalid query: bad nonce format: illegal base64 data at input byte {at}"


@given(st.text(alphabet="YQ=-+\n\ré", max_size=12))
def test_no_nonce_text_escapes_the_checks(text: str) -> None:
    try:
        decode_nonce(text)
    except BadRequest as e:
        assert "illegal base64 data" in str(e)  # noqa: PT017


@given(st.binary(max_size=64))
def test_no_body_raises_anything_but_bad_request(body: bytes) -> None:
    for read in (decode_object, decode_map):
        with suppress(BadRequest):
            bytes_member(read(body), "manifest")
