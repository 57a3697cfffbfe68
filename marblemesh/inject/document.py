# SPDX-License-Identifier: Apache-2.0
"""One document of a YAML stream: its text, its value, and how changes get into the text without touching the rest."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from marblemesh.inject.changes import Change
from marblemesh.inject.errors import Refused
from marblemesh.inject.record import removals
from marblemesh.inject.workloads import KubernetesObject, at, objects
from marblemesh.inject.yaml_edit import edit
from marblemesh.inject.yaml_nodes import Node, parse_document, value

# `---` at the beginning of a line begins a document wherever it stands, in a literal too.
_BEGIN = re.compile(r"^---(?=[ \t\r\n]|\Z)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Document:
    """`number` from 1. `line`: of its first character in the stream, from 1. `root` None: comments alone."""

    number: int
    line: int
    text: str
    root: Node | None
    value: Any

    @classmethod
    def parse(cls, number: int, line: int, text: str) -> Document:
        """Raises Refused, with the line of a syntax error or else the document."""
        root = parse_document(text, line)
        try:
            return cls(number, line, text, root, value(root))
        except Refused as error:
            raise Refused(f"document {number}, from line {line}: {error}") from None

    def objects(self) -> list[KubernetesObject]:
        return list(objects(self.value))

    def with_text(self, text: str) -> Document:
        return Document.parse(self.number, self.line, text)

    def changed(self, changes: Sequence[Change], expected: Any) -> Document:
        """The document with changes made in its text. Raises Refused if that does not give the expected value."""
        if not changes or self.root is None:
            return self
        try:
            done = self.with_text(edit(self.text, self.root, changes))
        except Refused as error:
            raise Refused(f"document {self.number}, from line {self.line}: {error}") from None
        if not _alike(done.value, expected):
            raise Refused(
                f"document {self.number}, from line {self.line}: cannot be edited as it is written: "
                f"use plain block style (kubectl's -o yaml) or JSON, and a final line break"
            )
        return done

    def uninjected(self) -> Document:
        """The document as it was before it was injected; itself if it was not. Raises Refused."""
        changes: list[Change] = []
        for item in self.objects():
            place = item.place if item.is_service else item.template
            template = None if place is None else at(self.value, place)
            if place is None or not isinstance(template, dict):
                continue
            try:
                changes += [Change("remove", (*place, *change.path)) for change in removals(template)]
            except Refused as error:
                raise Refused(f"{describe(self, item)}: {error}") from None
        if not changes:
            return self
        return self.changed(changes, _without(self.value, changes))


def split(text: str) -> Iterator[Document]:
    """The documents of a stream; their texts together are the stream. Raises Refused."""
    begins = [match.start() for match in _BEGIN.finditer(text)]
    bounds = [0, *begins, len(text)]
    number, line = 0, 1
    for start, end in itertools.pairwise(bounds):
        part = text[start:end]
        document = Document.parse(number + 1, line, part)
        number += document.root is not None
        line += part.count("\n")
        yield document


def describe(document: Document, item: KubernetesObject) -> str:
    """`deployment/web (document 2, from line 14)`."""
    return f"{item.kind.lower()}/{item.name} (document {document.number}, from line {document.line})"


def _without(root: Any, changes: Sequence[Change]) -> Any:
    """A copy of the value with places removed; the changes of each object are in an order that allows for that."""
    gone = {change.path for change in changes}

    def keep(node: Any, place: tuple[str | int, ...]) -> Any:
        if isinstance(node, dict):
            return {key: keep(item, (*place, key)) for key, item in node.items() if (*place, key) not in gone}
        if isinstance(node, list):
            return [keep(item, (*place, number)) for number, item in enumerate(node) if (*place, number) not in gone]
        return node

    return keep(root, ())


def _alike(found: Any, expected: Any) -> bool:
    """Equal, where null, {} and [] are one: an object that is emptied in the text leaves `key:` behind."""
    if isinstance(found, dict) and isinstance(expected, dict) and found and expected:
        return found.keys() == expected.keys() and all(_alike(item, expected[key]) for key, item in found.items())
    if isinstance(found, list) and isinstance(expected, list) and found and expected:
        return len(found) == len(expected) and all(map(_alike, found, expected))
    empty: tuple[Any, ...] = (None, {}, [])
    return (found in empty and expected in empty) or (type(found) is type(expected) and bool(found == expected))
