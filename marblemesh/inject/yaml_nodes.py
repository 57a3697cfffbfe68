# SPDX-License-Identifier: Apache-2.0
"""YAML as a tree that knows where in the text each part stands, so that the text can be edited where it has to change.

Built from the parser's events, not by recursion in it: depth, size and aliases are bounded before anything is made of
them. Aliases are refused, not expanded: nine lines of them are a gigabyte.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from marblemesh.inject.errors import Refused

MAX_DEPTH = 64
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BOOL = re.compile(r"(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)")
_TRUE = frozenset({"yes", "true", "on"})
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
# More digits are no number of a Kubernetes object, and slow to convert.
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,18})")


@dataclass(slots=True)
class Node:
    """`kind`: map, list or scalar. `start` to `end`, in characters: the text, without comments and blank lines behind.
    `entries` of a map: key and value; of a list: None and item. `style` of a scalar: None is plain."""

    kind: str
    start: int
    end: int
    column: int
    flow: bool = False
    style: str | None = None
    text: str = ""
    tagged: bool = False
    entries: list[tuple[Node | None, Node]] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Nothing stands there: `key:` and then the next line."""
        return self.kind == "scalar" and self.start == self.end


def parse_document(text: str, line: int) -> Node | None:
    """The one document in `text`; None if there is nothing in it. `line`: of its first character in the whole stream.

    Raises Refused, with the line.
    """
    builder = _Builder(line)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {line + mark.line}" if mark else f"after line {line}"
        raise Refused(f"{place}: invalid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise Refused(f"after line {line}: invalid YAML: {error}") from None
    return builder.root


class _Builder:
    def __init__(self, line: int) -> None:
        self.root: Node | None = None
        self._line = line
        self._open: list[Node] = []
        self._keys: list[Node | None] = []  # of each open map: the key that waits for its value

    def take(self, event: Any) -> None:
        match event:
            case yaml.ScalarEvent():
                node = self._node("scalar", event)
                node.end, node.style, node.text = _index(event.end_mark), event.style or None, event.value
                node.tagged = event.tag is not None
                self._place(node)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                node = self._node("map" if isinstance(event, yaml.MappingStartEvent) else "list", event)
                node.flow = bool(event.flow_style)
                if len(self._open) >= MAX_DEPTH:
                    self._refuse(event, f"is nested deeper than {MAX_DEPTH}")
                self._open.append(node)
                self._keys.append(None)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                node = self._open.pop()
                self._keys.pop()
                # A block ends where its last entry does; the parser's mark is behind comments and blank lines.
                node.end = _index(event.end_mark) if node.flow or not node.entries else node.entries[-1][1].end
                self._place(node)
            case yaml.AliasEvent():
                self._refuse(event, f"alias *{event.anchor} is not supported: write out what it stands for")
            case yaml.DocumentStartEvent():
                if event.version or event.tags:
                    self._refuse(event, "YAML directives (%) are not supported: leave them out")
                if self.root is not None:
                    self._refuse(event, "a second document begins without '---'")

    def _node(self, kind: str, event: Any) -> Node:
        mark = event.start_mark
        return Node(kind, mark.index, mark.index, mark.column)

    def _place(self, node: Node) -> None:
        if not self._open:
            self.root = node
            return
        parent = self._open[-1]
        if parent.kind == "list":
            parent.entries.append((None, node))
        elif (key := self._keys[-1]) is None:
            self._keys[-1] = node
        else:
            parent.entries.append((key, node))
            self._keys[-1] = None

    def _refuse(self, event: Any, what: str) -> None:
        raise Refused(f"line {self._line + event.start_mark.line}: {what}")


def _index(mark: Any) -> int:
    return int(mark.index)


def value(node: Node | None) -> Any:
    """The JSON value, scalars as Kubernetes reads them (YAML 1.1). Raises Refused for what no object has."""
    if node is None:
        return None
    if node.kind == "list":
        return [value(item) for _, item in node.entries]
    if node.kind == "map":
        return dict(_members(node))
    return _scalar(node)


def _members(node: Node) -> Iterator[tuple[str, Any]]:
    seen = set()
    for key, item in node.entries:
        if key is None or key.kind != "scalar":
            raise Refused("a key is a list or an object")
        if key.text == "<<" and key.style is None:
            raise Refused("merge keys (<<) are not supported: write out what is merged")
        if key.text in seen:
            raise Refused(f"key {key.text[:80]!r} occurs twice in one object")
        seen.add(key.text)
        yield key.text, value(item)


def _scalar(node: Node) -> Any:
    text = node.text
    if node.style is not None or node.tagged:
        return text
    if text in _NULL:
        return None
    if _BOOL.fullmatch(text):
        return text.lower() in _TRUE
    return int(text) if _INT.fullmatch(text) else text
