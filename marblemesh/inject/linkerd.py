# SPDX-License-Identifier: Apache-2.0
"""Linkerd's annotations on a pod, from the manifest's ports. The user's own wins, and is held against ours."""

from __future__ import annotations

from collections.abc import Mapping

from marblemesh.inject.context import PodContext
from marblemesh.inject.draft import Draft
from marblemesh.inject.linkerd_ports import mesh_ports, pod_annotations
from marblemesh.inject.report import Level, Note


def add_linkerd(context: PodContext) -> None:
    """Raises UnknownMarble."""
    settings = context.settings
    if settings.linkerd is None or settings.manifest is None:
        return
    if context.draft.get("spec", "hostNetwork") is True:
        context.note(Level.LEFT, "Linkerd's annotations: it injects no pod with hostNetwork")
        return
    wanted = pod_annotations(mesh_ports(settings.manifest, context.marble_type), settings.linkerd)
    context.notes.extend(annotate(context.draft, wanted))


def annotate(draft: Draft, wanted: Mapping[str, str]) -> list[Note]:
    """Add annotations of port lists, unless they are there; then say which ports they lack."""
    notes = []
    for name, ports in wanted.items():
        if draft.put(("metadata", "annotations"), name, ports):
            continue
        if missing := _missing(str(draft.get("metadata", "annotations", name)), ports):
            notes.append(Note(Level.WARNING, f"annotation {name} is there, and lacks {missing}"))
    return notes


def _missing(present: str, wanted: str) -> str:
    """The ports of `wanted` that no number or range `a-b` of `present` covers."""
    ranges = []
    for part in present.split(","):
        first, _, last = (piece.strip() for piece in part.partition("-"))
        if first.isdecimal() and len(first) < 6 and len(last) < 6:
            ranges.append(range(int(first), int(last if last.isdecimal() else first) + 1))
    return ",".join(port for port in wanted.split(",") if not any(int(port) in known for known in ranges))
