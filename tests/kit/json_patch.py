# SPDX-License-Identifier: Apache-2.0
"""RFC 6902 as its text has it, written apart from what makes patches: an oracle."""

from __future__ import annotations

import copy
from typing import Any


def apply(document: Any, patch: list[dict[str, Any]]) -> Any:
    """The document after all operations. Raises AssertionError where the RFC says error."""
    document = copy.deepcopy(document)
    for operation in patch:
        document = _apply(document, operation)
    return document


def _apply(document: Any, operation: dict[str, Any]) -> Any:
    kind, pointer = operation["op"], operation["path"]
    assert set(operation) == ({"op", "path"} if kind == "remove" else {"op", "path", "value"})
    if pointer == "":
        assert kind == "replace"
        return copy.deepcopy(operation["value"])
    assert pointer.startswith("/")
    *way, last = (part.replace("~1", "/").replace("~0", "~") for part in pointer[1:].split("/"))
    parent = document
    for part in way:
        parent = parent[_index(parent, part, len(parent) - 1)] if isinstance(parent, list) else parent[part]
    if isinstance(parent, list):
        _change_list(parent, kind, last, operation)
        return document
    assert isinstance(parent, dict)
    assert kind == "add" or last in parent
    if kind == "remove":
        del parent[last]
    else:
        parent[last] = copy.deepcopy(operation["value"])
    return document


def _change_list(parent: list[Any], kind: str, last: str, operation: dict[str, Any]) -> None:
    number = _index(parent, last, len(parent) if kind == "add" else len(parent) - 1)
    match kind:
        case "add":
            parent.insert(number, copy.deepcopy(operation["value"]))
        case "replace":
            parent[number] = copy.deepcopy(operation["value"])
        case "remove":
            del parent[number]
        case _:
            raise AssertionError(f"unknown operation {kind}")


def _index(parent: list[Any], part: str, most: int) -> int:
    assert part.isdigit()
    assert part == str(int(part))
    assert int(part) <= most
    return int(part)
