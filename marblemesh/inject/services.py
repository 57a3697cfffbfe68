# SPDX-License-Identifier: Apache-2.0
"""A Service in front of Marbles: its ports that carry the mesh's TLS are plain TCP to everybody who looks at it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from marblemesh.inject.draft import Draft
from marblemesh.inject.linkerd import annotate
from marblemesh.inject.linkerd_ports import mesh_ports, service_annotations
from marblemesh.inject.pod import Injected
from marblemesh.inject.record import write_record
from marblemesh.inject.report import Level, Note, added_notes
from marblemesh.inject.settings import Settings


@dataclass(frozen=True, slots=True)
class MarblePod:
    """What matters of a pod to a Service: labels, container ports by name, and where mTLS of the mesh arrives."""

    namespace: str | None
    labels: dict[str, Any]
    ports: dict[str, set[int]]
    inbound: frozenset[int]

    @classmethod
    def of(cls, template: dict[str, Any], namespace: str | None, marble_type: str, settings: Settings) -> MarblePod:
        """`template` as `inject_pod` gives it back. Raises UnknownMarble, and Refused for ports that are none."""
        draft = Draft(template)
        ports: dict[str, set[int]] = defaultdict(set)
        for container in draft.items("spec", "containers"):
            for port in draft.items("spec", "containers", str(container["name"]), "ports"):
                if isinstance(number := port.get("containerPort"), int):
                    ports[str(port.get("name"))].add(number)
        found = () if settings.manifest is None else mesh_ports(settings.manifest, marble_type).inbound
        return cls(namespace, template["metadata"]["labels"], ports, frozenset(found))


class MarblePods:
    """Pods, to be found by a Service's selector."""

    def __init__(self, pods: Iterable[MarblePod]) -> None:
        self._by_label: dict[tuple[str | None, str, str], list[MarblePod]] = defaultdict(list)
        for pod in pods:
            for name, value in pod.labels.items():
                self._by_label[pod.namespace, name, str(value)].append(pod)

    def selected(self, namespace: str | None, selector: Any) -> list[MarblePod]:
        """Those with all labels of the selector; none for an empty one."""
        if not isinstance(selector, dict) or not selector:
            return []
        name, value = next(iter(selector.items()))
        candidates = self._by_label.get((namespace, str(name), str(value)), ())
        return [pod for pod in candidates if all(pod.labels.get(key) == wanted for key, wanted in selector.items())]


def inject_service(
    service: dict[str, Any], namespace: str | None, pods: MarblePods, settings: Settings
) -> Injected | None:
    """Set `appProtocol: tcp` and Linkerd's annotation for ports that lead to where a worker terminates mTLS.

    None: it leads to no Marble. Raises Refused if the Service is not one.
    """
    draft = Draft(service)
    selected = pods.selected(namespace, draft.get("spec", "selector"))
    if not selected:
        return None
    if settings.manifest is None:
        note = Note(Level.LEFT, "which of its ports carry mTLS stands in the Marble manifest: give it with --manifest")
        return Injected(draft.root, (note,))
    notes: list[Note] = []
    ports = []
    for port in draft.items("spec", "ports"):
        number = port.get("port")
        if not isinstance(number, int) or not any(_targets(port, pod) & pod.inbound for pod in selected):
            continue
        ports.append(number)
        if not draft.put(("spec", "ports", str(number)), "appProtocol", "tcp") and port["appProtocol"] != "tcp":
            notes.append(
                Note(Level.WARNING, f"port {number} has appProtocol {port.get('appProtocol')}, and carries mTLS")
            )
    if settings.linkerd is not None:
        notes += annotate(draft, service_annotations(ports, settings.linkerd))
    added = added_notes(draft)
    write_record(draft)
    return Injected(draft.root, (*added, *notes))


def _targets(port: dict[str, Any], pod: MarblePod) -> set[int]:
    """The container ports that a Service's port leads to: a number, or whatever has that name."""
    target = port.get("targetPort", port.get("port"))
    return {target} if isinstance(target, int) else pod.ports.get(str(target), set())
