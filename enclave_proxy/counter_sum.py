# SPDX-License-Identifier: Apache-2.0
"""Counters of several processes as those of one: whatever a counter is made of (numbers, counters by name, records of
them), like is added to like."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from enclave_proxy.counters import RelayCounters

# What a listener has now, as opposed to what it has counted: the dead have none of it.
GAUGES = frozenset({"active", "handshakes"})
# What all processes have alike, or each for itself: the greatest is told.
GREATEST = ("endpoints", "ejected")


def summed(parts: list[RelayCounters]) -> RelayCounters:
    """The sum of all, as a value of its own. `applied` and `rejected` are those of the first: all are told the same."""
    total = RelayCounters()
    for part in parts:
        greatest = {name: _greatest(getattr(total, name), getattr(part, name)) for name in GREATEST}
        total = dataclasses.replace(added(total, part), **greatest)
    total.applied, total.rejected = parts[0].applied, parts[0].rejected
    return total


def of_the_dead(counters: RelayCounters) -> RelayCounters:
    """What remains of a process's counters when it has ended."""
    remains = copy.deepcopy(counters)
    for listener in remains.listeners.values():
        for name in GAUGES:
            setattr(listener, name, 0)
    for name in GREATEST:
        getattr(remains, name).clear()
    return remains


def _greatest(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {name: max(one.get(name, 0), other.get(name, 0)) for name in one | other}


def added(one: Any, other: Any) -> Any:
    """Two values of one kind as one new value."""
    if dataclasses.is_dataclass(one):
        made = copy.copy(one)
        for field in dataclasses.fields(one):
            setattr(made, field.name, added(getattr(one, field.name), getattr(other, field.name)))
        return made
    if isinstance(one, dict):
        joined = type(one)()
        for key in (*one, *(key for key in other if key not in one)):
            if key in one and key in other:
                joined[key] = added(one[key], other[key])
            else:
                joined[key] = copy.deepcopy(one[key] if key in one else other[key])
        return joined
    if isinstance(one, list):
        return [added(left, right) for left, right in zip(one, other, strict=True)]
    return one + other
