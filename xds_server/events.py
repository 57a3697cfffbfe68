# SPDX-License-Identifier: Apache-2.0
"""What `/events` tells: the latest activations, in memory, oldest first.

MarbleRun's list grows without end; here a ring of the newest 1000 stays. With a quote of 5 KiB each, base64 in the
answer, that is 5 MiB held and 7 MiB sent at most. The names come from the manifest and the UUID, as the Marble sent it,
was one: only successful activations are listed.
"""

from __future__ import annotations

import base64
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime

MAX_EVENTS = 1000


@dataclass(frozen=True, slots=True)
class ActivationEvent:
    """A Marble was verified and got its identity at `time` (UTC)."""

    time: datetime
    marble_type: str
    uuid: str
    quote: bytes = field(repr=False)

    def to_json(self) -> dict[str, object]:
        """MarbleRun's object; Go writes an empty quote as null."""
        quote = base64.b64encode(self.quote).decode("ascii") if self.quote else None
        return {
            "time": self.time.astimezone(UTC).isoformat().replace("+00:00", "Z"),
            "activation": {"marbleType": self.marble_type, "uuid": self.uuid, "quote": quote},
        }


class EventLog:
    """The ring."""

    def __init__(self, limit: int = MAX_EVENTS) -> None:
        self._events: deque[ActivationEvent] = deque(maxlen=limit)

    def add(self, event: ActivationEvent) -> None:
        self._events.append(event)

    def to_json(self) -> list[dict[str, object]] | None:
        """A JSON array, null while nothing has happened (as MarbleRun answers)."""
        return [event.to_json() for event in self._events] or None
