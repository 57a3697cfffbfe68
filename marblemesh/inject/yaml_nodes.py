# SPDX-License-Identifier: Apache-2.0
"""YAML as a tree that knows where in the text each part stands, so that the text can be edited where it has to change.

Built from the parser's events, not by recursion in it: depth, size and aliases are bounded before anything is made of
them. What an alias stands for is read, within the same bounds (nine lines of them can be a gigabyte), not changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from marblemesh.inject.errors import Refused

MAX_DEPTH = 64
# An object of 5 MB has 300 000.
MAX_NODES = 1_000_000
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BOOL = re.compile(r"(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)")
_TRUE = frozenset({"yes", "true", "on"})
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_DIRECTIVE = re.compile(r"^%(YAML|TAG)", re.MULTILINE)
# More digits are no number of a Kubernetes object, and slow to convert.
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,18})")


@dataclass(slots=True)
class Node:
    """`kind`: map, list, scalar or alias (whose `text` is its name). `start` to `end`, in characters: the text, without
    comments and blank lines behind. `entries` of a map: key and value; of a list: None and item. `style` of a scalar:
    None is plain. `size` of a document's root: how many nodes it has."""

    kind: str
    start: int
    end: int
    column: int
    flow: bool = False
    style: str | None = None
    text: str = ""
    tagged: bool = False
    size: int = 1
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
        if _DIRECTIVE.search(text):
            raise Refused(f"{place}: YAML directives (%) are not supported: leave them out") from None
        raise Refused(f"{place}: invalid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise Refused(f"after line {line}: invalid YAML: {error}") from None
    if builder.root is not None:
        builder.root.size = builder.count
    return builder.root


class _Builder:
    def __init__(self, line: int) -> None:
        self.root: Node | None = None
        self._line = line
        self._open: list[Node] = []
        self._keys: list[Node | None] = []  # of each open map: the key that waits for its value
        self._anchors: list[str | None] = []  # of each open map and list
        self._anchored: dict[str, Node] = {}
        self.count = 0

    def take(self, event: Any) -> None:
        self.count += 1
        if self.count > MAX_NODES:
            self._refuse(event, f"the document has more than {MAX_NODES} values")
        match event:
            case yaml.ScalarEvent():
                node = self._node("scalar", event)
                node.end, node.style, node.text = _index(event.end_mark), event.style or None, event.value
                node.tagged = event.tag is not None
                self._place(node, event.anchor)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                node = self._node("map" if isinstance(event, yaml.MappingStartEvent) else "list", event)
                node.flow = bool(event.flow_style)
                if len(self._open) >= MAX_DEPTH:
                    self._refuse(event, f"is nested deeper than {MAX_DEPTH}")
                self._open.append(node)
                self._keys.append(None)
                self._anchors.append(event.anchor)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                node = self._open.pop()
                self._keys.pop()
                # A block ends where its last entry does; the parser's mark is behind comments and blank lines.
                node.end = _index(event.end_mark) if node.flow or not node.entries else node.entries[-1][1].end
                self._place(node, self._anchors.pop())
            case yaml.AliasEvent():
                name = str(event.anchor)
                if name not in self._anchored:
                    self._refuse(event, f"alias *{name} stands for nothing before it")
                node = self._node("alias", event)
                node.end, node.text = _index(event.end_mark), name
                node.entries = [(None, self._anchored[name])]
                self._place(node, None)

    def _node(self, kind: str, event: Any) -> Node:
        mark = event.start_mark
        return Node(kind, mark.index, mark.index, mark.column)

    def _place(self, node: Node, anchor: str | None) -> None:
        if anchor is not None:
            self._anchored[anchor] = node
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


def value(root: Node | None) -> Any:
    """The JSON value, scalars as Kubernetes reads them (YAML 1.1). Raises Refused for what no object has."""
    return None if root is None else _Reader().value(root, 0)


class _Reader:
    def __init__(self) -> None:
        self._left = MAX_NODES

    def value(self, node: Node, depth: int) -> Any:
        self._left -= 1
        # The builder has bounded both for the text; aliases multiply them.
        if depth > MAX_DEPTH or self._left < 0:
            raise Refused(f"its aliases stand for more than {MAX_NODES} values, or nest them deeper than {MAX_DEPTH}")
        match node.kind:
            case "alias":
                return self.value(node.entries[0][1], depth + 1)
            case "list":
                return [self.value(item, depth + 1) for _, item in node.entries]
            case "map":
                return dict(self._members(node, depth + 1))
        return _scalar(node)

    def _members(self, node: Node, depth: int) -> Iterator[tuple[str, Any]]:
        seen = set()
        for key, item in node.entries:
            if key is None or key.kind != "scalar":
                raise Refused("a key is a list, an object or an alias")
            if key.text == "<<" and key.style is None:
                raise Refused("merge keys (<<) are not supported: write out what is merged")
            if key.text in seen:
                raise Refused(f"key {key.text[:80]!r} occurs twice in one object")
            seen.add(key.text)
            yield key.text, self.value(item, depth)


def _scalar(node: Node) -> Any:
    text = node.text
    if node.style is not None or node.tagged:
        return text
    if text in _NULL:
        return None
    if _BOOL.fullmatch(text):
        return text.lower() in _TRUE
    return int(text) if _INT.fullmatch(text) else text
