# SPDX-License-Identifier: Apache-2.0
"""What the concerns of one pod share: the draft, who it is, and the notes for the report."""

from __future__ import annotations

from dataclasses import dataclass, field

from marblemesh.inject.draft import Draft
from marblemesh.inject.report import Level, Note
from marblemesh.inject.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class PodContext:
    """`namespace` None: not known here, the pod finds out by itself. `containers`: names of those that are Marbles."""

    draft: Draft
    settings: Settings
    marble_type: str
    namespace: str | None
    containers: tuple[str, ...]
    uuid_volume: str
    notes: list[Note] = field(default_factory=list)

    def note(self, level: Level, text: str) -> None:
        self.notes.append(Note(level, text))
