# SPDX-License-Identifier: Apache-2.0
"""JSON from outside, within bounds: bytes → tree of dict, list, str, int, float, bool, None; or a precise refusal.

Stricter than Python's `json` where that is lenient (NaN, Infinity, UTF-16 input, lone surrogates) and than Go's
`encoding/json` in one point: a member that occurs twice in one object is refused. Go lets the later one win (and merges
maps), other readers let the first win; a document that says who may run must not mean two things.

Bounds: 16 MiB of text, depth 64, 250 000 values: 10 000 Marbles with a package, ports and parameters of their own. A
Marble takes two at least, and 40 µs until it is checked (measured), so a manifest costs 5 s of CPU at worst; a
set-manifest request is anybody's to send.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import NoReturn

from manifests.errors import ManifestError, ManifestSyntaxError, Problem

MAX_BYTES = 16 * 1024 * 1024
# The deepest member that means something lies at 8 (Secrets.x.Cert.Subject.Names[0].Type[0]).
MAX_DEPTH = 64
MAX_VALUES = 250_000
# uint64 has 20 digits; the float of a longer integer is refused later with the member's name.
_MAX_INTEGER_DIGITS = 20

_SURROGATE = re.compile("[\ud800-\udfff]")

Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None


class _DuplicateError(Exception):
    """Raised inside json's decoder, where the place in the text is not known."""


def load(raw: bytes) -> Json:
    """The JSON value in `raw`, which must be one UTF-8 text without BOM.

    Raises ManifestSyntaxError (with line and column) for what is no JSON, ManifestError for what exceeds the bounds.
    """
    if len(raw) > MAX_BYTES:
        _refuse(f"manifest has {len(raw)} bytes, at most {MAX_BYTES} are allowed")
    if not raw.strip():
        raise ManifestSyntaxError("the manifest is empty, want a JSON object", 1, 1)
    # Every value but the first follows one of these bytes, so this is an upper bound that costs no parsing.
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") >= MAX_VALUES:
        _refuse(f"manifest has too many values, at most {MAX_VALUES} are allowed (encode large files in base64)")
    text = _decode(raw)
    try:
        tree: Json = json.loads(
            text,
            object_pairs_hook=_members,
            parse_constant=_constant,
            parse_int=_integer,
        )
    except json.JSONDecodeError as error:
        raise ManifestSyntaxError(_lower(error.msg), error.lineno, error.colno) from None
    except _DuplicateError as duplicate:
        _refuse(f"member {str(duplicate)[:80]!r} occurs twice in one object")
    except RecursionError:
        _refuse(f"manifest is nested deeper than {MAX_DEPTH} levels")
    _check_tree(tree)
    return tree


def _decode(raw: bytes) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        raise ManifestSyntaxError("not UTF-8 text", line, column) from None
    if text.startswith("\ufeff"):
        raise ManifestSyntaxError("unexpected byte order mark, save the file as UTF-8 without BOM", 1, 1)
    return text


def _members(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    members = dict(pairs)
    if len(members) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise _DuplicateError(counts.most_common(1)[0][0])
    return members


def _constant(name: str) -> NoReturn:
    _refuse(f"{name} is not a JSON value")


def _integer(digits: str) -> int | float:
    # Go's unsigned integers refuse "-0" as they refuse "1.0"; a float is refused by the member's own check.
    return float(digits) if digits == "-0" or len(digits) > _MAX_INTEGER_DIGITS else int(digits)


def _check_tree(tree: Json) -> None:
    """Depth and well-formed strings; iterative, since the input decides the depth."""
    pending: list[tuple[Json, int]] = [(tree, 1)]
    while pending:
        value, depth = pending.pop()
        children: list[Json] = []
        if isinstance(value, dict):
            children = [*value, *value.values()]
        elif isinstance(value, list):
            children = value
        elif isinstance(value, str) and _SURROGATE.search(value):
            _refuse(r"a string holds half a surrogate pair (\ud800 to \udfff), which is no character")
        if children and depth > MAX_DEPTH:
            _refuse(f"manifest is nested deeper than {MAX_DEPTH} levels")
        pending.extend((child, depth + 1) for child in children)


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _refuse(message: str) -> NoReturn:
    raise ManifestError((Problem("", message),))
