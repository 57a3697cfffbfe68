# SPDX-License-Identifier: Apache-2.0
"""html, js and urlquery: Go's escapes."""

from __future__ import annotations

from urllib.parse import quote_from_bytes

from manifests.template.printing import Printer
from manifests.template.values import Value, encode

_HTML = str.maketrans({"\0": "\ufffd", '"': "&#34;", "'": "&#39;", "&": "&amp;", "<": "&lt;", ">": "&gt;"})
_JS = {"\\": "\\\\", "'": "\\'", '"': '\\"', "<": "\\u003C", ">": "\\u003E", "&": "\\u0026", "=": "\\u003D"}


def _joined(values: tuple[Value, ...]) -> str:
    """A single string as it is, anything else printed; like Go's `print`, where <no value> stands for none."""
    if len(values) == 1 and isinstance(values[0], str):
        return values[0]
    return Printer().print(*("<no value>" if value is None else value for value in values))


def html(*values: Value) -> str:
    """Escaped for HTML text and attributes."""
    return _joined(values).translate(_HTML)


def js(*values: Value) -> str:
    """Escaped for a string of JavaScript."""
    return "".join(_js(char) for char in _joined(values))


def _js(char: str) -> str:
    if char in _JS:
        return _JS[char]
    if char == " " or char.isprintable() or "\ud800" <= char <= "\udfff":
        return char
    return f"\\u{ord(char):04X}"


def urlquery(*values: Value) -> str:
    """Escaped for a value in a URL's query."""
    return quote_from_bytes(encode(_joined(values)), safe="").replace("%20", "+")
