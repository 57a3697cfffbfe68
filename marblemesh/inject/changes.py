# SPDX-License-Identifier: Apache-2.0
"""The difference between two JSON values as RFC 6902 operations (add, remove, replace) with absolute places."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Pointer = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """One operation. A number at the end of `path` of an `add` is where the item will be."""

    op: Literal["add", "remove", "replace"]
    path: Pointer
    value: Any = None

    def as_json(self) -> dict[str, Any]:
        """RFC 6902 section 4; the path as RFC 6901 writes it."""
        pointer = "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in self.path)
        return (
            {"op": self.op, "path": pointer}
            if self.op == "remove"
            else {
                "op": self.op,
                "path": pointer,
                "value": self.value,
            }
        )


def difference(before: Any, after: Any, at: Pointer = ()) -> Iterator[Change]:
    """Operations that make `after` of `before` when they are carried out in this order.

    Both are what JSON can say, nested no deeper than a parser of ours lets through.
    """
    if isinstance(before, dict) and isinstance(after, dict):
        yield from (Change("remove", (*at, name)) for name in before if name not in after)
        for name, value in after.items():
            if name in before:
                yield from difference(before[name], value, (*at, name))
            else:
                yield Change("add", (*at, name), value)
    elif isinstance(before, list) and isinstance(after, list):
        yield from _lists(before, after, at)
    elif not _same(before, after):
        yield Change("replace", at, after)


def _lists(before: list[Any], after: list[Any], at: Pointer) -> Iterator[Change]:
    more = len(after) - len(before)
    if before and more > 0 and after[more:] == before:
        yield from (Change("add", (*at, 0), after[number]) for number in reversed(range(more)))
        return
    for number, (old, new) in enumerate(zip(before, after, strict=False)):
        yield from difference(old, new, (*at, number))
    yield from (Change("remove", (*at, number)) for number in range(len(before) - 1, len(after) - 1, -1))
    yield from (Change("add", (*at, number), after[number]) for number in range(len(before), len(after)))


def _same(before: Any, after: Any) -> bool:
    # Python holds True equal to 1.
    return type(before) is type(after) and bool(before == after)
