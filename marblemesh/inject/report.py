# SPDX-License-Identifier: Apache-2.0
"""What was done to an object, and what was left alone and why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from marblemesh.inject.draft import Draft, Path, dotted


class Level(StrEnum):
    """ADDED and REMOVED: done. LEFT: not done, for a reason. WARNING: done, and yet it may not work."""

    ADDED = "added"
    REMOVED = "removed"
    LEFT = "left alone"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Note:
    level: Level
    text: str


def added_notes(draft: Draft) -> list[Note]:
    """What a draft has added, a line for each place: `spec.containers.web.env: EDG_MARBLE_TYPE, …`."""
    places: dict[Path, list[str]] = {}
    for path in draft.added:
        places.setdefault(path[:-1], []).append(path[-1])
    return [Note(Level.ADDED, f"{dotted(place)}: {', '.join(names)}") for place, names in places.items()]


class Outcome(StrEnum):
    """UNCHANGED: it has everything already. LEFT_ALONE: no Marble, the notes say why. COPIED: not of a kind that is."""

    INJECTED = "injected"
    UNINJECTED = "uninjected"
    UNCHANGED = "unchanged"
    LEFT_ALONE = "left alone"
    COPIED = "copied"


@dataclass(frozen=True, slots=True)
class ObjectReport:
    """One Kubernetes object. `document`: its place in the stream, from 1."""

    document: int
    kind: str
    name: str
    outcome: Outcome
    notes: tuple[Note, ...] = ()

    def as_json(self) -> dict[str, object]:
        return {
            "document": self.document,
            "kind": self.kind,
            "name": self.name,
            "outcome": self.outcome.value,
            "notes": [{"level": note.level.value, "text": note.text} for note in self.notes],
        }
