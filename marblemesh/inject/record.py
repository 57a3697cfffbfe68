# SPDX-License-Identifier: Apache-2.0
"""The annotation that says what was added to an object, and taking exactly that out again.

Its value is `parent:name,name,… parent:…`; parts of a place are percent-encoded and separated by slashes. A final slash
marks an object or list that was made for the rest and goes when it is empty. Whoever reads it does not trust it: a
place that we never add to is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote

from marblemesh.inject.changes import Change, Pointer
from marblemesh.inject.draft import Draft, Path, item_key
from marblemesh.inject.errors import Refused
from marblemesh.inject.names import RECORD
from marblemesh.inject.wrap import WRAPPER

_MAX_RECORD = 64 * 1024
_CONTAINER = r"spec/containers/[^/]+/"
_OURS = re.compile(
    r"metadata/((labels|annotations)/([^/]+)?)?|spec/(volumes|tolerations)/([^/]+)?|spec/ports/[^/]+/appProtocol|"
    rf"{_CONTAINER}(env|volumeMounts|ports)/([^/]+)?|{_CONTAINER}resources/(limits/([^/]+)?)?|"
    rf"{_CONTAINER}(readinessProbe|livenessProbe|command)"
)
_COMMAND_DEPTH = len(("spec", "containers", "", "command"))


def write_record(draft: Draft) -> None:
    """Say in the object itself what the draft has added; nothing if that is nothing."""
    if not draft.added:
        return
    earlier = draft.get("metadata", "annotations", RECORD)
    draft.put(("metadata", "annotations"), RECORD, "")
    own = ("metadata", "annotations", RECORD)
    added, made = _read(earlier) if isinstance(earlier, str) else ([], [])
    added += [path for path in draft.added if path != own]
    draft.root["metadata"]["annotations"][RECORD] = _written(added, [*made, *draft.made])


def removals(root: dict[str, Any]) -> list[Change]:
    """What to remove from an object, as it is now, to take the injection out. Empty if it was not injected.

    Raises Refused if the record is not one of ours.
    """
    draft = Draft(root)
    record = draft.get("metadata", "annotations", RECORD)
    if record is None:
        return []
    added, made = _read(record)
    gone: set[Pointer] = {("metadata", "annotations", RECORD)}
    for path in added:
        gone.update(_places(draft, path))
    for path in sorted(made, key=len, reverse=True):
        place = _pointer(draft, path)
        if place is not None and _is_empty_without(draft.get(*path), place, gone):
            gone = {other for other in gone if other[: len(place)] != place} | {place}
    return [Change("remove", place) for place in sorted(gone, key=_order, reverse=True)]


def _order(place: Pointer) -> tuple[tuple[int, str], ...]:
    return tuple((part, "") if isinstance(part, int) else (-1, part) for part in place)


def _written(added: list[Path], made: list[Path]) -> str:
    groups: dict[str, dict[str, None]] = {}
    for paths, final in ((added, ""), (made, "/")):
        for path in paths:
            *parents, name = (quote(part, safe="") for part in path)
            groups.setdefault("/".join(parents), {})[f"{name}{final}"] = None
    return " ".join(f"{parent}:{','.join(names)}" for parent, names in groups.items())


def _read(record: object) -> tuple[list[Path], list[Path]]:
    if not isinstance(record, str) or len(record) > _MAX_RECORD:
        raise Refused(f"annotation {RECORD} is not a record of what was injected")
    added: list[Path] = []
    made: list[Path] = []
    for group in record.split():
        parent, _, names = group.partition(":")
        for name in names.split(","):
            token = f"{parent}/{name}" if parent else name
            if not _OURS.fullmatch(token):
                raise Refused(f"annotation {RECORD} names {token[:80]!r}, which is never injected: was it edited?")
            path = tuple(unquote(part) for part in token.rstrip("/").split("/"))
            (made if token.endswith("/") else added).append(path)
    return added, made


def _places(draft: Draft, path: Path) -> Iterator[Pointer]:
    place = _pointer(draft, path)
    if place is None:
        return  # somebody has taken it out by hand
    if path[-1] == "command" and len(path) == _COMMAND_DEPTH:
        if draft.get(*path)[: len(WRAPPER)] == list(WRAPPER):
            yield from ((*place, number) for number in range(len(WRAPPER)))
    else:
        yield place


def _pointer(draft: Draft, path: Path) -> Pointer | None:
    """The numbered place of a named one; None if there is nothing."""
    node: Any = draft.root
    place: list[str | int] = []
    for depth, name in enumerate(path):
        if isinstance(node, dict) and node.get(name) is not None:
            place.append(name)
            node = node[name]
        elif isinstance(node, list):
            key = item_key(path[:depth])
            found = (n for n, item in enumerate(node) if isinstance(item, dict) and str(item.get(key)) == name)
            position = next(found, None)
            if position is None:
                return None
            place.append(position)
            node = node[position]
        else:
            return None
    return tuple(place)


def _is_empty_without(node: Any, place: Pointer, gone: set[Pointer]) -> bool:
    keys = range(len(node)) if isinstance(node, list) else node if isinstance(node, dict) else ()
    return isinstance(node, list | dict) and all((*place, key) in gone for key in keys)
