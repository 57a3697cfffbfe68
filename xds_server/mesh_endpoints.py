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


class Endpoints:
    """The instances of a mesh by (type, UUID). What happens to one costs the same however many others there are.

    Methods return whether the members changed, `expire` of which types.
    """

    def __init__(self, grace: timedelta = DEFAULT_GRACE) -> None:
        self._grace = grace
        self._states: dict[Instance, _State] = {}
        self._ready: dict[str, dict[Instance, _State]] = {}  # by type
        self._lost: dict[Instance, datetime] = {}  # within their grace, the one lost first first
        self._kept: dict[str, Instance] = {}  # by type: beyond its grace, and the last one
        self._not_last: set[str] = set()  # types of those that are the last one no longer
        # By type; asked for by every client at every change, so kept until an instance of the type changes.
        self._members: dict[str, tuple[tuple[str, int], ...]] = {}
        self.moment = 0  # another one whenever members have changed

    def connected(self, instance: Instance, address: str | None) -> bool:
        """A stream of the instance began; `address` is an IP address, or None if this stream says nothing about it."""
        state = self._states.get(instance)
        if state is None:
            self._states[instance] = _State(address, streams=1)
            return False
        address = address or state.address
        kept = self._kept.get(instance[0]) == instance
        if kept:
            del self._kept[instance[0]]
        self._lost.pop(instance, None)
        changed = state.ready and (state.address != address or kept)
        state.address = address
        state.streams += 1
        if changed:
            self._changed(instance[0])
        return changed

    def ready(self, instance: Instance) -> bool:
        """The instance has bound its listeners."""
        state = self._states.get(instance)
        if state is None or state.ready:
            return False
        state.ready = True
        self._ready.setdefault(instance[0], {})[instance] = state
        if instance[0] in self._kept:
            self._not_last.add(instance[0])
        self._changed(instance[0])
        return True

    def disconnected(self, instance: Instance, now: datetime) -> None:
        """A stream of the instance ended."""
        if (state := self._states.get(instance)) is not None and state.streams > 0:
            state.streams -= 1
            if state.streams == 0:
                self._lost[instance] = now

    def expire(self, now: datetime) -> frozenset[str]:
        """Apply the grace time; the types whose members changed."""
        changed = set()
        while self._lost:
            instance, since = next(iter(self._lost.items()))
            if since + self._grace > now:
                break
            del self._lost[instance]
            if not self._states[instance].ready or len(self._ready[instance[0]]) > 1:
                if self.forget(instance):
                    changed.add(instance[0])
            else:
                self._kept[instance[0]] = instance
                self._changed(instance[0])
                changed.add(instance[0])
        while self._not_last:
            marble_type = self._not_last.pop()
            if (kept := self._kept.get(marble_type)) is not None and len(self._ready[marble_type]) > 1:
                self.forget(kept)
                changed.add(marble_type)
        return frozenset(changed)

    def absent(self, now: datetime) -> bool:
        """Whether an instance is between two streams: gone, and within its grace."""
        latest = next(reversed(self._lost.values()), None)
        return latest is not None and latest + self._grace > now

    def next_expiry(self) -> datetime | None:
        """When `expire` has something to do next, as far as is known now."""
        first = next(iter(self._lost.values()), None)
        return None if first is None else first + self._grace

    def forget(self, instance: Instance) -> bool:
        """The instance is no longer part of the mesh: no grace, not even for the last one."""
        marble_type = instance[0]
        state = self._states.pop(instance, None)
        self._lost.pop(instance, None)
        if self._kept.get(marble_type) == instance:
            del self._kept[marble_type]
        if state is None or not state.ready:
            return False
        self._changed(marble_type)
        ready = self._ready[marble_type]
        del ready[instance]
        if not ready:
            del self._ready[marble_type]
        return True

    def retain(self, instances: Iterable[Instance]) -> None:
        """Forget all others."""
        kept = set(instances)
        for instance in self._states.keys() - kept:
            self.forget(instance)

    def address(self, instance: Instance) -> str | None:
        """The address that the instance advertises, whether or not it is ready."""
        state = self._states.get(instance)
        return None if state is None else state.address

    def members(self, marble_type: str) -> tuple[tuple[str, int], ...]:
        """(IP address, health status) of the instances of a type, sorted; each address once."""
        if (known := self._members.get(marble_type)) is not None:
            return known
        found: dict[str, int] = {}
        kept = self._kept.get(marble_type)
        for instance, state in self._ready.get(marble_type, {}).items():
            if state.address is not None:
                health = UNKNOWN if instance == kept else HEALTHY
                found[state.address] = max(found.get(state.address, UNKNOWN), health)
        members = self._members[marble_type] = tuple(sorted(found.items()))
        return members

    def _changed(self, marble_type: str) -> None:
        self._members.pop(marble_type, None)
        self.moment += 1
