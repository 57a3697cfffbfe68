# SPDX-License-Identifier: Apache-2.0
"""A pod template while things are added to it. Nothing that is there is changed, and what was added is remembered.

Places are named, not numbered, because others (`linkerd inject --manual`, say) put containers and volumes before ours:
`("spec", "containers", "web", "env", "EDG_MARBLE_TYPE")` is the variable of that name of the container of that name.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from marblemesh.inject.errors import Refused

Path = tuple[str, ...]
Mapping = dict[str, Any]

# By which member the items of a list are known.
_ITEM_KEYS = {
    "containers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "tolerations": "key",
    "ports": "name",
}
_SERVICE_PORTS: Path = ("spec", "ports")


def item_key(path: Path) -> str:
    """The member by which items of the list at `path` are known."""
    return "port" if path == _SERVICE_PORTS else _ITEM_KEYS[path[-1]]


class Draft:
    """`root` is a copy. `added`: the paths of what was added; `made`: of objects and lists that were not there."""

    def __init__(self, root: Mapping) -> None:
        self.root = copy.deepcopy(root)
        self.added: list[Path] = []
        self.made: list[Path] = []

    def get(self, *path: str) -> Any:
        """What is there, or None. Raises Refused where the way leads through something else than mappings and lists."""
        node: Any = self.root
        for depth, name in enumerate(path):
            if node is None:
                return None
            at = path[:depth]
            if isinstance(node, dict):
                node = node.get(name)
            elif isinstance(node, list) and at[-1] in _ITEM_KEYS:
                node = next((item for item in mappings(node, at) if str(item.get(item_key(at))) == name), None)
            else:
                raise Refused(f"{dotted(at)} is not {'a list' if at and at[-1] in _ITEM_KEYS else 'an object'}")
        return node

    def items(self, *path: str) -> list[Mapping]:
        """The list of objects there; empty if there is none. Raises Refused if it is something else."""
        found = self.get(*path)
        if found is None:
            return []
        if not isinstance(found, list):
            raise Refused(f"{dotted(path)} is not a list")
        return list(mappings(found, path))

    def put(self, path: Path, key: str, value: Any) -> bool:
        """Set a member unless it is there; False if it was. Null counts as not there."""
        parent = self._container(path, dict)
        if parent.get(key) is not None:
            return False
        parent[key] = value
        self.added.append((*path, key))
        return True

    def append(self, path: Path, item: Mapping) -> bool:
        """Append an item unless one of its name is there; False if it was."""
        key = item_key(path)
        if any(present.get(key) == item[key] for present in self.items(*path)):
            return False
        self._container(path, list).append(item)
        self.added.append((*path, item[key]))
        return True

    def prepend(self, path: Path, values: list[str]) -> None:
        """Put values before a list that is there."""
        self._container(path, list)[:0] = values
        self.added.append(path)

    def _container(self, path: Path, kind: type) -> Any:
        node: Any = self.root
        for depth in range(len(path)):
            parent, at = node, path[: depth + 1]
            node = self.get(*at)
            if node is None:
                if not isinstance(parent, dict):
                    raise Refused(f"{dotted(path[:depth])} has no {path[depth]!r}")
                if path[depth] not in parent:  # null was there, and may be empty again
                    self.made.append(at)
                node = parent[path[depth]] = kind() if depth == len(path) - 1 else {}
        if not isinstance(node, kind):
            raise Refused(f"{dotted(path)} is not {'an object' if kind is dict else 'a list'}")
        return node


def mappings(items: list[Any], path: Path) -> Iterator[Mapping]:
    """The items, each an object. Raises Refused."""
    for position, item in enumerate(items):
        if not isinstance(item, dict):
            raise Refused(f"{dotted(path)}[{position}] is not an object")
        yield item


def dotted(path: Path) -> str:
    """`spec.containers.web.env`, for messages."""
    return ".".join(part[:80] for part in path) or "the object"
