# SPDX-License-Identifier: Apache-2.0
"""Changes carried out in YAML text: everything that does not change keeps its bytes, comments and line ends included.

Added lines stand behind the last entry of the object or list they belong to, at its indentation. Within brackets, as in
JSON, they stand there in the same way. What comes out is parsed by the caller and held against what it should be.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from marblemesh.inject.changes import Change, Pointer
from marblemesh.inject.errors import Refused
from marblemesh.inject.yaml_nodes import Node
from marblemesh.inject.yaml_render import block, entry, flow


@dataclass(frozen=True, slots=True)
class _Edit:
    start: int
    end: int
    text: str
    depth: int  # of two insertions at one place, the deeper one belongs to what stands before


def edit(text: str, root: Node, changes: Sequence[Change]) -> str:
    """The text with all changes made. Raises Refused where one cannot be made in this text."""
    editor = _Editor(text)
    removed: dict[Pointer, list[str | int]] = defaultdict(list)
    edits: list[_Edit] = []
    for change in changes:
        parent = _find(root, change.path[:-1])
        if change.op == "remove":
            removed[change.path[:-1]].append(change.path[-1])
        elif change.op == "replace":
            edits.append(editor.fill(parent, change))
        elif change.path[-1] == 0 and parent.entries:
            edits.insert(0, editor.prepend(parent, change))  # the last one put first stands first
        else:
            edits.append(editor.add(parent, change))
    for place, keys in removed.items():
        edits += editor.remove(_find(root, place), keys)
    # sorted() is stable: what was asked for first stands first.
    edits.sort(key=lambda item: (item.start, -item.depth))
    return _apply(text, editor.without_last_break(edits))


def _apply(text: str, edits: Sequence[_Edit]) -> str:
    parts, position = [], 0
    for item in edits:
        if item.start < position:
            raise Refused("the changes overlap in the text: write the object in block style")
        parts += [text[position : item.start], item.text]
        position = item.end
    return "".join((*parts, text[position:]))


def _find(root: Node, place: Pointer) -> Node:
    for part in place:
        root = root.entries[_index(root, part)][1]
        if root.kind == "alias":
            raise Refused(f"what would change is alias *{root.text}: write out what it stands for")
    return root


def _index(node: Node, part: str | int) -> int:
    if isinstance(part, int):
        return part
    return next(number for number, (key, _) in enumerate(node.entries) if key is not None and key.text == part)


def _start(item: tuple[Node | None, Node]) -> int:
    return (item[0] or item[1]).start


class _Editor:
    def __init__(self, text: str) -> None:
        self._text = text
        first = text.find("\n")
        self._newline = "\r\n" if first > 0 and text[first - 1] == "\r" else "\n"
        self._filled: set[int] = set()  # starts of brackets that were empty

    def add(self, parent: Node, change: Change) -> _Edit:
        """A member or item more, at the end."""
        last = change.path[-1]
        key = last if isinstance(last, str) else None
        depth = len(change.path)
        if parent.flow:
            return self._add_in_brackets(parent, key, change.value, depth)
        column = parent.column if key is None else self._key_column(parent)
        return self._insert_lines(parent.end, entry(key, change.value, column), depth)

    def prepend(self, parent: Node, change: Change) -> _Edit:
        """An item more, at the beginning of a list that is not empty."""
        first, depth = _start(parent.entries[0]), len(change.path)
        if parent.flow:
            return _Edit(first, first, f"{flow(change.value)},{self._gap(first) or ' '}", depth)
        lines = entry(None, change.value, parent.column)
        position = self._line_start(first)
        return _Edit(position, position, "".join(f"{line}{self._newline}" for line in lines), depth)

    def fill(self, parent: Node, change: Change) -> _Edit:
        """A value instead of null: in the lines below `key:`, or where the word null stands."""
        node = parent.entries[_index(parent, change.path[-1])][1]
        key = parent.entries[_index(parent, change.path[-1])][0]
        if node.kind != "scalar":
            raise Refused(f"what would change is alias *{node.text}: write out what it stands for")
        if not node.is_empty or parent.flow or key is None:
            return _Edit(node.start, node.end, (" " if node.is_empty else "") + flow(change.value), 0)
        lines = block(change.value, key.column + (0 if isinstance(change.value, list) else 2))
        return self._insert_lines(node.end, lines, len(change.path) + 1)

    def remove(self, parent: Node, keys: Sequence[str | int]) -> list[_Edit]:
        """Entries taken out, with their lines."""
        gone = sorted(_index(parent, key) for key in keys)
        if parent.flow:
            return self._remove_in_brackets(parent, gone)
        return [self._remove_lines(parent.entries[number]) for number in gone]

    def _add_in_brackets(self, parent: Node, key: str | None, item: Any, depth: int) -> _Edit:
        text = flow(item) if key is None else f"{flow(key)}: {flow(item)}"
        if not parent.entries:
            comma = ", " if parent.start in self._filled else ""
            self._filled.add(parent.start)
            return _Edit(parent.end - 1, parent.end - 1, f"{comma}{text}", depth)
        gap, end = self._gap(_start(parent.entries[-1])) or " ", parent.entries[-1][1].end
        return _Edit(end, end, f",{gap}{text}", depth)

    def _key_column(self, parent: Node) -> int:
        """Where the keys of a block stand: as the first one, since the block itself may begin with an anchor."""
        first = parent.entries[0][0] or parent
        explicit = self._text[first.start - 2 : first.start] == "? "
        return first.column - 2 if explicit else first.column

    def _gap(self, position: int) -> str:
        """Line break and indentation before `position`, if it is the first on its line; else nothing."""
        before = self._text[self._line_start(position) : position]
        return "" if before.strip() or position == 0 else f"{self._newline}{before}"

    def _insert_lines(self, end: int, lines: list[str], depth: int) -> _Edit:
        """Behind the line in which `end` is."""
        position = self._line_end(end)
        if position == 0 or self._text[position - 1] == "\n":
            text = "".join(f"{line}{self._newline}" for line in lines)
        else:
            text = "".join(f"{self._newline}{line}" for line in lines)
        return _Edit(position, position, text, depth)

    def without_last_break(self, edits: list[_Edit]) -> list[_Edit]:
        """If the text ends without a line break, and its last lines go, the break before them goes with them."""
        start = len(self._text)
        for item in reversed(edits):
            if self._text.endswith("\n") or item.text or item.end != start:
                break
            start = item.start
        if start in (0, len(self._text)) or self._text[start - 1] != "\n":
            return edits
        kept = [item for item in edits if item.start < start]
        return [*kept, _Edit(start - len(self._newline), len(self._text), "", 0)]

    def _remove_lines(self, item: tuple[Node | None, Node]) -> _Edit:
        key, node = item
        start, end = self._line_start(_start(item)), self._line_end(node.end)
        head = self._text[start : _start(item)]
        if head.strip(" ") != ("" if key is not None else "-"):
            raise Refused("what is to be taken out stands on a line with something else")
        return _Edit(start, end, "", 0)

    def _remove_in_brackets(self, parent: Node, gone: list[int]) -> list[_Edit]:
        edits, entries = [], parent.entries
        while gone:
            first = last = gone.pop(0)
            while gone and gone[0] == last + 1:
                last = gone.pop(0)
            if last + 1 < len(entries):
                edits.append(_Edit(_start(entries[first]), _start(entries[last + 1]), "", 0))
            else:
                start = entries[first - 1][1].end if first > 0 else _start(entries[0])
                edits.append(_Edit(start, entries[last][1].end, "", 0))
        return edits

    def _line_start(self, position: int) -> int:
        return self._text.rfind("\n", 0, position) + 1

    def _line_end(self, position: int) -> int:
        """Behind the line break of the line in which something ends at `position`."""
        if position > 0 and self._text[position - 1] == "\n":
            return position  # a literal, which ends with its last line
        found = self._text.find("\n", position)
        return len(self._text) if found < 0 else found + 1
