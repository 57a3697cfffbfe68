# SPDX-License-Identifier: Apache-2.0
"""One pod (or pod template) made a Marble: every concern in its turn, and the record of what was added."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from marblemesh.inject.admin_port import add_admin_port, admin_addresses
from marblemesh.inject.context import PodContext
from marblemesh.inject.draft import Draft
from marblemesh.inject.environment import add_environment, add_worker_environment
from marblemesh.inject.errors import Refused
from marblemesh.inject.linkerd import add_linkerd
from marblemesh.inject.linkerd_ports import UnknownMarble
from marblemesh.inject.names import DISABLED, MARBLE_CONTAINER, MARBLE_TYPE, SIDECARS, WORKER
from marblemesh.inject.record import write_record
from marblemesh.inject.report import Level, Note, added_notes
from marblemesh.inject.resources import add_resources
from marblemesh.inject.settings import Settings
from marblemesh.inject.simulation import add_simulation
from marblemesh.inject.volumes import add_run_volume, add_uuid_volume
from marblemesh.inject.wrap import wrap_command

# A label value of Kubernetes; it becomes part of paths and names.
_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_CONTAINER = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_NAMESPACE = _CONTAINER
# What the worker itself takes to end: its connections, then the app.
_GRACE = 20


@dataclass(frozen=True, slots=True)
class Injected:
    """`template` is a copy, and equal to the original if nothing was added."""

    template: dict[str, Any]
    notes: tuple[Note, ...]


def marble_type(template: dict[str, Any]) -> str | None:
    """The label's value; None without the label. Raises Refused if it is empty or none that Kubernetes takes."""
    value = Draft(template).get("metadata", "labels", MARBLE_TYPE) if isinstance(template, dict) else None
    if value is None:
        return None
    if value == "":
        raise Refused(f"Empty [{MARBLE_TYPE}] label, request denied")
    if not isinstance(value, str) or not _LABEL.fullmatch(value):
        raise Refused(f"metadata.labels: {MARBLE_TYPE} is {value!r}, which is no label value (put numbers in quotes)")
    return value


def inject_pod(
    template: dict[str, Any],
    settings: Settings,
    *,
    uuid_volume: str,
    namespace: str | None = None,
    marble: str | None = None,
) -> Injected:
    """Add what a Marble needs to an object with `metadata` and `spec`. Injecting the result again adds nothing.

    `marble`: the type for a template without the label. `namespace` None: that of `metadata`, else unknown. Raises
    Refused if there is no type, or the pod cannot be a Marble; nothing is half done then.
    """
    kind = marble_type(template) or marble
    if kind is None:
        raise Refused(f"Missing [{MARBLE_TYPE}] label, request denied")
    if not _LABEL.fullmatch(kind):
        raise Refused(f"{kind!r} is no Marble type: want a label value, at most 63 letters, digits, - _ .")
    draft = Draft(template)
    notes: list[Note] = []
    containers = _containers(draft, notes)
    context = PodContext(
        draft=draft,
        settings=settings,
        marble_type=kind,
        namespace=_namespace(draft, namespace),
        containers=containers,
        uuid_volume=uuid_volume,
        notes=notes,
    )
    draft.put(("metadata", "labels"), MARBLE_TYPE, kind)
    _add_all(context)
    added = added_notes(draft)
    write_record(draft)
    return Injected(draft.root, (*added, *context.notes))


def _add_all(context: PodContext) -> None:
    settings, draft = context.settings, context.draft
    worker = settings.worker and draft.get("metadata", "annotations", WORKER) != DISABLED
    admin = admin_addresses(context, settings.admin) if worker and settings.admin else {}
    if len(context.containers) > 1:
        context.note(
            Level.WARNING,
            f"{len(context.containers)} containers get the same identity: name the Marble's with the label "
            f"{MARBLE_CONTAINER}",
        )
    for container in context.containers:
        add_environment(context, container)
        if worker:
            add_worker_environment(context, container, admin.get(container))
            if settings.wrap:
                wrap_command(context, container)
    add_uuid_volume(context)
    if worker:
        add_run_volume(context)
        if settings.simulation:
            add_simulation(context)
    add_resources(context)
    if admin:
        add_admin_port(context, admin)
    try:
        add_linkerd(context)
    except UnknownMarble as error:
        raise Refused(str(error)) from None
    _warn(context, listens=bool(admin))


def _warn(context: PodContext, *, listens: bool) -> None:
    if listens and context.draft.get("spec", "hostNetwork") is True:
        context.note(Level.WARNING, "hostNetwork: the admin port is one of the node's, for everybody who reaches it")
    grace = context.draft.get("spec", "terminationGracePeriodSeconds")
    if isinstance(grace, int) and grace < _GRACE:
        context.note(
            Level.WARNING, f"terminationGracePeriodSeconds {grace}: the worker takes up to {_GRACE} s to end in order"
        )


def _containers(draft: Draft, notes: list[Note]) -> tuple[str, ...]:
    """Names of the containers that are Marbles, in the pod's order."""
    names = [container.get("name") for container in draft.items("spec", "containers")]
    if not names:
        raise Refused("spec.containers: the pod has no containers")
    for name in names:
        if not isinstance(name, str) or not _CONTAINER.fullmatch(name):
            raise Refused(f"spec.containers: {str(name)[:80]!r} is no container name")
        if names.count(name) > 1:
            raise Refused(f"spec.containers: two are named {name!r}")
    wanted = draft.get("metadata", "labels", MARBLE_CONTAINER)
    if wanted is not None and wanted != "":
        if wanted not in names:
            raise Refused(f"label {MARBLE_CONTAINER}: the pod has no container {str(wanted)[:80]!r}")
        return (str(wanted),)
    sidecars = [name for name in names if name in SIDECARS]
    notes += [Note(Level.LEFT, f"container {name}: a sidecar of another mesh") for name in sidecars]
    if len(sidecars) == len(names):
        raise Refused("spec.containers: the pod has only sidecars of another mesh")
    return tuple(str(name) for name in names if name not in SIDECARS)


def _namespace(draft: Draft, given: str | None) -> str | None:
    found = draft.get("metadata", "namespace") or given
    if found is None:
        return None
    if not isinstance(found, str) or not _NAMESPACE.fullmatch(found):
        raise Refused(f"metadata.namespace: {str(found)[:80]!r} is no namespace")
    return found
