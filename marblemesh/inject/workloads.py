# SPDX-License-Identifier: Apache-2.0
"""Where pods are in Kubernetes objects: the kinds that have a pod template, Pods themselves, and lists of all these."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from marblemesh.inject.changes import Pointer

_TEMPLATE: Pointer = ("spec", "template")
_PLACES: dict[str, tuple[str, Pointer]] = {
    "Deployment": ("apps", _TEMPLATE),
    "StatefulSet": ("apps", _TEMPLATE),
    "DaemonSet": ("apps", _TEMPLATE),
    "ReplicaSet": ("apps", _TEMPLATE),
    "ReplicationController": ("", _TEMPLATE),
    "Job": ("batch", _TEMPLATE),
    "CronJob": ("batch", ("spec", "jobTemplate", "spec", "template")),
    "Pod": ("", ()),
}
# Before apps/v1, long ago.
_OLD_GROUP = "extensions"


@dataclass(frozen=True, slots=True)
class KubernetesObject:
    """`place`: where it lies in its document. `template`: where its pod is, from the document's root; None if it has
    none."""

    value: dict[str, Any]
    place: Pointer
    template: Pointer | None

    @property
    def kind(self) -> str:
        return str(self.value.get("kind"))

    @property
    def name(self) -> str:
        metadata = self.value.get("metadata")
        found = metadata.get("name") or metadata.get("generateName") if isinstance(metadata, dict) else None
        return found if isinstance(found, str) else "(unnamed)"

    @property
    def namespace(self) -> str | None:
        metadata = self.value.get("metadata")
        found = metadata.get("namespace") if isinstance(metadata, dict) else None
        return found if isinstance(found, str) else None

    @property
    def is_service(self) -> bool:
        return self.kind == "Service" and self.value.get("apiVersion") == "v1"


def objects(document: Any, place: Pointer = ()) -> Iterator[KubernetesObject]:
    """The objects of a document: itself, or the items of a list (in lists, to any depth that the document has)."""
    if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
        return
    items = document.get("items")
    if document["kind"].endswith("List") and isinstance(items, list):
        for number, item in enumerate(items):
            yield from objects(item, (*place, "items", number))
        return
    template = _template(document)
    yield KubernetesObject(document, place, None if template is None else (*place, *template))


def at(root: Any, place: Pointer) -> Any:
    """What lies there; None if the way is not there."""
    for part in place:
        if isinstance(root, dict):
            root = root.get(part)
        elif isinstance(root, list) and isinstance(part, int) and part < len(root):
            root = root[part]
        else:
            return None
    return root


def _template(value: dict[str, Any]) -> Pointer | None:
    found = _PLACES.get(value["kind"])
    if found is None:
        return None
    group, _, _ = str(value.get("apiVersion")).rpartition("/")
    return found[1] if group == found[0] or (group == _OLD_GROUP and found[0] == "apps") else None
