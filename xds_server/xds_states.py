# SPDX-License-Identifier: Apache-2.0
"""What a stream's status means, resource by resource: has the client what there is? Pure; shared by CSDS and by what
operators see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from sds.discovery import TypeStatus


class State(StrEnum):
    """Worst last: the state of many is the last of theirs in this order."""

    SYNCED = "synced"  # acknowledged as it is now
    NOT_FOUND = "not found"  # asked for, does not exist (for this client)
    NOT_SENT = "not sent"
    STALE = "stale"  # on its way, or the client has an older one
    REJECTED = "rejected"


_ORDER = tuple(State)


@dataclass(frozen=True, slots=True)
class ResourceState:
    """One name on one stream. Versions are empty where there is none; `current` is what there is now."""

    name: str
    state: State
    current: str
    acked: str
    rejected: str = ""


def resource_states(status: TypeStatus) -> Iterator[ResourceState]:
    """Every name that the client asked for or still holds, sorted."""
    names = {*status.subscribed, *status.current, *status.acked}
    for name in sorted(names):
        current, acked = status.current.get(name, ""), status.acked.get(name, "")
        rejected = status.nacked.get(name, "")
        yield ResourceState(name, _state(current, acked, rejected, name in status.sent), current, acked, rejected)


def worst(states: Iterator[State]) -> State:
    """The one to show for all of them."""
    return max(states, key=_ORDER.index, default=State.SYNCED)


def _state(current: str, acked: str, rejected: str, sent: bool) -> State:
    if not current:
        return State.STALE if acked else State.NOT_FOUND  # what the client still holds is being taken away
    if rejected == current:
        return State.REJECTED
    if acked == current:
        return State.SYNCED
    return State.STALE if sent or acked else State.NOT_SENT
