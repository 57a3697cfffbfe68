# SPDX-License-Identifier: Apache-2.0
"""JSON as Go clients of the client API expect it, in both directions, and the reply envelope around it.

Out: compact, `<`, `>`, `&`, U+2028 and U+2029 escaped, one newline at the end. In, as Go's `encoding/json` reads into a
structure: member names without regard to case, the last of several wins, unknown members ignored, null leaves the
default, unsigned integers in plain digits, invalid UTF-8 replaced, base64 of the standard alphabet with padding.

Bounds: `MAX_VALUES` values per body; an empty array takes 60 bytes here and two there, so that a body of 24 MiB could
become half a gigabyte. The body's size is bounded by who reads it.

Envelope (JSend with MarbleRun's habits): success and fail are `application/json`, error is `text/plain` with `nosniff`.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import NoReturn

JSON_TYPE = "application/json"
ERROR_TYPE = "text/plain; charset=utf-8"
# A thousand secrets are 4000.
MAX_VALUES = 100_000
_MAX_DEPTH = 64
MAX_UINT = 2**64 - 1

_GO_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})

_SURROGATE = re.compile("[\ud800-\udfff]")
# Go compares names by simple case folding, in which these two are letters of the Latin alphabet.
_FOLD = str.maketrans({"\u017f": "s", "\u212a": "k"} | {chr(c): chr(c + 32) for c in range(ord("A"), ord("Z") + 1)})


class BadRequest(Exception):
    """The body or the query is not what the endpoint takes; the text goes to the client."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer."""

    status: int
    content_type: str
    body: bytes
    location: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """What follows from the kind of answer; length and date are the protocol's business."""
        found = {}
        if self.content_type:
            found["Content-Type"] = self.content_type
        if self.content_type == ERROR_TYPE:
            found["X-Content-Type-Options"] = "nosniff"
        if self.location:
            found["Location"] = self.location
        return found


def success(data: object) -> Reply:
    """200 with `data`; None is `null`."""
    return Reply(HTTPStatus.OK, JSON_TYPE, encode({"status": "success", "data": data}))


def error(status: int, message: str = "") -> Reply:
    """Something went wrong here; an empty message is left out, as in the 405 for unknown paths."""
    return Reply(
        status, ERROR_TYPE, encode({"status": "error", "data": None, **({"message": message} if message else {})})
    )


def fail(status: int, message: str, data: dict[str, str] | None = None) -> Reply:
    """The client's mistake (v2 endpoints only)."""
    return Reply(status, JSON_TYPE, encode({"status": "fail", "data": data, "message": message}))


def redirect(location: str) -> Reply:
    """307: the same request, to `location`."""
    return Reply(HTTPStatus.TEMPORARY_REDIRECT, "", b"", location)


def encode(value: object) -> bytes:
    """Compact JSON with Go's escapes and a newline. `value` must be made of plain JSON types."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # All these characters can only occur inside strings, so the text can be translated as a whole.
    return _SURROGATE.sub(r"\\ufffd", text.translate(_GO_ESCAPES)).encode() + b"\n"


def b64(data: bytes | None) -> str | None:
    """Standard base64 with padding; None stays null."""
    return None if data is None else base64.b64encode(data).decode("ascii")


def decode_object(body: bytes) -> dict[str, object]:
    """The JSON object in `body`, its member names in lower case. A bare null is an empty object, as in Go.

    :raises BadRequest: naming line and column, for anything that is not exactly one JSON object.
    """
    value = _load(body)
    if value is None:
        return {}
    if not isinstance(value, _Object):
        raise BadRequest(f"bad request: body must be a JSON object, got {_kind(value)}")
    return {name.translate(_FOLD): member for name, member in value.pairs}


def decode_map(body: bytes) -> dict[str, object]:
    """The JSON object in `body` with its names as they are, for names that somebody chose. Raises BadRequest."""
    value = _load(body)
    if not isinstance(value, _Object):
        raise BadRequest(f"bad request: body must be a JSON object, got {_kind(value)}")
    return _plain_object(value)


class _Object:
    """An object's members in their order, before it is known how names are compared."""

    __slots__ = ("pairs",)

    def __init__(self, pairs: list[tuple[str, object]]) -> None:
        self.pairs = pairs


def _load(body: bytes) -> object:
    if body.count(b",") + body.count(b"[") + body.count(b"{") > MAX_VALUES:
        raise BadRequest(f"bad request: body has more than {MAX_VALUES} values")
    try:
        return json.loads(body.decode("utf-8", "replace"), object_pairs_hook=_Object, parse_constant=_no_constant)
    except json.JSONDecodeError as e:
        raise BadRequest(f"bad request: malformed JSON at line {e.lineno} column {e.colno}: {e.msg.lower()}") from None
    except RecursionError:
        raise BadRequest("bad request: malformed JSON: nested too deeply") from None
    except ValueError as e:  # a number with more digits than Python converts
        raise BadRequest(f"bad request: malformed JSON: {e}") from None


def bytes_member(members: dict[str, object], name: str) -> bytes:
    """The base64 member `name`, empty if absent or null.

    :raises BadRequest: if it is no string or no padded standard base64.
    """
    value = members.get(name.lower())
    if value is None:
        return b""
    if not isinstance(value, str):
        raise BadRequest(f"bad request: member {name} must be a base64 string, got {_kind(value)}")
    # Go's decoder skips line breaks, so that output of the base64 command can be pasted.
    compact = value.replace("\r", "").replace("\n", "")
    try:
        return base64.b64decode(compact.encode("ascii", "replace"), validate=True)
    except binascii.Error:
        raise BadRequest(f"bad request: member {name} is not base64 with padding") from None


def string_member(members: dict[str, object], name: str) -> str:
    """The string member `name`, empty if absent or null. Raises BadRequest."""
    value = members.get(name.lower())
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRequest(f"bad request: member {name} must be a string, got {_kind(value)}")
    return _text(value)


def uint_member(members: dict[str, object], name: str) -> int:
    """The unsigned 64-bit member `name`, 0 if absent or null; `1.0` and `"1"` are none. Raises BadRequest."""
    value = members.get(name.lower())
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_UINT:
        raise BadRequest(f"bad request: member {name} must be an integer from 0 to {MAX_UINT}")
    return value


def map_member(members: dict[str, object], name: str) -> dict[str, object]:
    """The object member `name` with its names as they are, empty if absent or null. Raises BadRequest."""
    value = members.get(name.lower())
    if value is None:
        return {}
    if not isinstance(value, _Object):
        raise BadRequest(f"bad request: member {name} must be an object, got {_kind(value)}")
    return _plain_object(value)


def _plain_object(value: _Object, depth: int = 0) -> dict[str, object]:
    return {_text(name): _plain(member, depth + 1) for name, member in value.pairs}


def _plain(value: object, depth: int) -> object:
    if depth > _MAX_DEPTH:
        raise BadRequest("bad request: malformed JSON: nested too deeply")
    match value:
        case _Object():
            return _plain_object(value, depth)
        case list():
            return [_plain(item, depth + 1) for item in value]
        case str():
            return _text(value)
        case _:
            return value


def _text(value: str) -> str:
    """Escapes of half a character become U+FFFD, as in Go."""
    return _SURROGATE.sub("\ufffd", value)


def decode_nonce(text: str) -> bytes:
    """A nonce from the query: base64 of the URL alphabet, padded.

    :raises BadRequest: with Go's words, which say at which byte the text stops being base64.
    """
    wrong = _first_illegal(text)
    if wrong is not None:
        raise BadRequest(f"invalid query: bad nonce format: illegal base64 data at input byte {wrong}")
    return base64.urlsafe_b64decode(text.replace("\r", "").replace("\n", ""))


_URL_ALPHABET = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def _first_illegal(text: str) -> int | None:
    """The byte at which Go's decoder gives up, None if it does not.

    Its rules: quanta of four; `=` only as the third and fourth or as the fourth of a quantum, and then the end. An
    unexpected end is reported at the start of the quantum plus what was read of it, that is: at the end of the input.
    """
    data = text.encode("utf-8").decode("latin-1")  # positions are counted in bytes
    in_quantum = 0
    position = 0
    while position < len(data):
        char = data[position]
        if char in "\r\n":
            position += 1
            continue
        if char == "=":
            return _illegal_padding(data, position, in_quantum)
        if char not in _URL_ALPHABET:
            return position
        in_quantum = (in_quantum + 1) % 4
        position += 1
    return None if in_quantum == 0 else len(data) - in_quantum


def _illegal_padding(data: str, position: int, in_quantum: int) -> int | None:
    if in_quantum < 2:
        return position
    tail = position + 1
    if in_quantum == 2:
        while tail < len(data) and data[tail] in "\r\n":
            tail += 1
        if tail == len(data):
            return len(data)
        if data[tail] != "=":
            return tail - 1  # so says Go
        tail += 1
    while tail < len(data) and data[tail] in "\r\n":
        tail += 1
    return None if tail == len(data) else tail


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case str():
            return "a string"
        case int() | float():
            return "a number"
        case list():
            return "an array"
        case _:
            return "an object"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
