# SPDX-License-Identifier: Apache-2.0
"""JSON values as YAML text: lines of block style, or one line of JSON for a place within brackets."""

from __future__ import annotations

import json
import re
from typing import Any

# What every YAML parser reads as this very text: no number, no date, no word with another meaning.
_PLAIN = re.compile(r"[A-Za-z/][-A-Za-z0-9_./]*")
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null", "none"})


def scalar(value: Any) -> str:
    """One value that is no list or object. Lists and objects, too, as JSON, which is YAML."""
    if not isinstance(value, str):
        return flow(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    if '"' in value and "'" not in value and value.isprintable():
        return f"'{value}'"
    return flow(value)


def flow(value: Any) -> str:
    """On one line, between brackets of others."""
    return json.dumps(value, ensure_ascii=False)


def entry(key: str | None, value: Any, column: int) -> list[str]:
    """The lines of a member (`key: …`) or of an item (`- …`, key None) whose first character is in `column`."""
    indent = " " * column
    head = f"{indent}-" if key is None else f"{indent}{scalar(key)}:"
    if not value or not isinstance(value, dict | list):
        return [f"{head} {scalar(value)}"]
    if key is None:
        lines = block(value, column + 2)
        return [f"{head} {lines[0].lstrip()}", *lines[1:]]
    return [head, *block(value, column if isinstance(value, list) else column + 2)]


def block(value: Any, column: int) -> list[str]:
    """The lines of a list or object that is not empty."""
    entries = value.items() if isinstance(value, dict) else ((None, item) for item in value)
    return [line for key, item in entries for line in entry(key, item, column)]
