# SPDX-License-Identifier: Apache-2.0
"""Data for templates that shows every kind of value, and functions like the Coordinator's. The recorded answers of
Go's own text/template (tests/data/templates.json) were made with the same values in Go."""

from __future__ import annotations

import base64
from collections.abc import Callable

from manifests.template import FunctionError, Struct, Table, Uint, Value
from manifests.template.values import decode


def _secret(kind: str, size: int, shared: bool, data: bytes, private: bytes) -> Struct:
    fields: dict[str, Value] = {
        "Type": kind,
        "Size": Uint(size),
        "Shared": shared,
        "Public": data,
        "Private": private,
    }
    return Struct("main.Secret", fields)


DATA = Struct(
    "main.Data",
    {
        "MarbleRun": Struct("main.Mr", {"RootCA": _secret("plain", 1, True, b"A", b"B")}),
        "Secrets": Table(
            {"a": _secret("symmetric-key", 128, True, b"AB", b"AB"), "e": _secret("plain", 0, False, b"", b"")},
            _secret("", 0, False, b"", b""),
            "map[string]main.Secret",
        ),
        "List": (1, "two", 3.5, None, True, b"xy", (1, 2)),
        "M": Table({"z": 26, "a": 1}, 0, "map[string]int"),
        "S": 'h\u00e9llo <b>"q"\'&',
        "N": 7,
        "F": 2.5,
        "Nil": None,
    },
)


def _bytes(value: Value) -> bytes:
    if value is None:
        raise FunctionError("secret does not exist")
    data = value.fields["Public"] if isinstance(value, Struct) and "Public" in value.fields else value
    if not isinstance(data, bytes):
        raise FunctionError("invalid secret type")
    if not data:
        raise FunctionError("tried to parse secret with empty value")
    return data


FUNCTIONS: dict[str, Callable[[Value], Value]] = {
    "hex": lambda value: _bytes(value).hex(),
    "base64": lambda value: base64.b64encode(_bytes(value)).decode(),
    "raw": lambda value: decode(_bytes(value)),
}
