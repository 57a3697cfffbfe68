# SPDX-License-Identifier: Apache-2.0
"""Which instances can be reached, and where. Pure: events and times in, members out.

An instance is a member once it has acknowledged its listeners (before, nobody would answer there). What ends it is not
the loss of its stream: the Coordinator restarting, or a cut control connection, says nothing about the data path. So

- a lost stream changes nothing for a grace time (default 30 s), in which a worker normally is back;
- then the instance goes, unless it is the last one of its type: that one stays, as `UNKNOWN` instead of `HEALTHY`
  (which Envoy and our worker still use), until another one is there or it comes back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

UNKNOWN, HEALTHY = 0, 1
DEFAULT_GRACE = timedelta(seconds=30)

Instance = tuple[str, str]  # Marble type, UUID


@dataclass(slots=True)
class _State:
    address: str | None  # None: did not say where it can be reached
    streams: int = 0
    ready: bool = False
    lost_at: datetime | None = None
    kept: bool = False


class Endpoints:
    """The instances of a mesh by (type, UUID). Methods return whether the members changed."""

    def __init__(self, grace: timedelta = DEFAULT_GRACE) -> None:
        self._grace = grace
        self._states: dict[Instance, _State] = {}
        # By type; asked for by every client at every change, so kept until an instance changes.
        self._members: dict[str, tuple[tuple[str, int], ...]] = {}

    def connected(self, instance: Instance, address: str | None) -> bool:
        """A stream of the instance began; `address` is an IP address, or None if this stream says nothing about it."""
        state = self._states.get(instance)
        if state is None:
            self._states[instance] = _State(address, streams=1)
            return False
        address = address or state.address
        changed = state.ready and (state.address != address or state.kept)
        self._members.pop(instance[0], None)
        state.address, state.lost_at, state.kept = address, None, False
        state.streams += 1
        return changed

    def ready(self, instance: Instance) -> bool:
        """The instance has bound its listeners."""
        state = self._states.get(instance)
        if state is None or state.ready:
            return False
        state.ready = True
        self._members.pop(instance[0], None)
        return True

    def disconnected(self, instance: Instance, now: datetime) -> None:
        """A stream of the instance ended."""
        if (state := self._states.get(instance)) is not None and state.streams > 0:
            state.streams -= 1
            if state.streams == 0:
                state.lost_at = now

    def expire(self, now: datetime) -> bool:
        """Apply the grace time."""
        changed = False
        self._members.clear()
        overdue = [i for i, s in self._states.items() if s.lost_at is not None and s.lost_at + self._grace <= now]
        for instance in sorted(overdue, key=lambda i: self._states[i].lost_at or now):
            state = self._states[instance]
            others = any(s.ready for i, s in self._states.items() if i[0] == instance[0] and i != instance)
            if others or not state.ready:
                del self._states[instance]
                changed |= state.ready
            elif not state.kept:
                state.kept = changed = True
        return changed

    def absent(self, now: datetime) -> bool:
        """Whether an instance is between two streams: gone, and within its grace."""
        return any(s.lost_at is not None and s.lost_at + self._grace > now for s in self._states.values())

    def next_expiry(self) -> datetime | None:
        """When `expire` has something to do next, as far as is known now."""
        due = [s.lost_at + self._grace for s in self._states.values() if s.lost_at is not None and not s.kept]
        return min(due, default=None)

    def forget(self, instance: Instance) -> bool:
        """The instance is no longer part of the mesh: no grace, not even for the last one."""
        state = self._states.pop(instance, None)
        self._members.pop(instance[0], None)
        return state is not None and state.ready

    def retain(self, instances: Iterable[Instance]) -> None:
        """Forget all others."""
        kept = set(instances)
        self._members.clear()
        self._states = {instance: state for instance, state in self._states.items() if instance in kept}

    def address(self, instance: Instance) -> str | None:
        """The address that the instance advertises, whether or not it is ready."""
        state = self._states.get(instance)
        return None if state is None else state.address

    def members(self, marble_type: str) -> tuple[tuple[str, int], ...]:
        """(IP address, health status) of the instances of a type, sorted; each address once."""
        if (known := self._members.get(marble_type)) is not None:
            return known
        found: dict[str, int] = {}
        for (kind, _), state in self._states.items():
            if kind == marble_type and state.ready and state.address is not None:
                found[state.address] = max(found.get(state.address, UNKNOWN), UNKNOWN if state.kept else HEALTHY)
        members = self._members[marble_type] = tuple(sorted(found.items()))
        return members
