# SPDX-License-Identifier: Apache-2.0
"""What one client asked for of one type: the subscription rules of both protocol variants, as a value.

Wildcards (xDS protocol, "How the client specifies what resources to return"): `*` in the list, or the *legacy* one: no
name was ever sent for the type on this stream. After the first name the legacy rule is off for good. It holds for
listeners and clusters only; for other types an empty list asks for nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from sds.discovery_types import FULL_STATE, MAX_NAME_BYTES, MAX_NAMES, ProtocolError

WILDCARD = "*"
NO_NAMES: frozenset[str] = frozenset()
# `default`, `ROOTCA`, `outbound|db|5432`; a SPIFFE ID is longer and one client's alone.
_SHORT = 40


class Change(NamedTuple):
    """What a request did to a subscription."""

    added: AbstractSet[str] = NO_NAMES
    dropped: AbstractSet[str] = NO_NAMES
    wildcard: bool = False  # the wildcard came or went

    def __bool__(self) -> bool:
        return bool(self.added or self.dropped or self.wildcard)


NO_CHANGE = Change()


def check_count(names: Collection[str], limit: int) -> None:
    """Refuse a list that is too long before anything is made of it. Raises ProtocolError."""
    if len(names) > limit:
        raise ProtocolError("RESOURCE_EXHAUSTED", f"{len(names)} resource names in one request, limit is {limit}")


def check_names(names: Iterable[str]) -> None:
    """Bound every name. Raises ProtocolError."""
    for name in names:
        if not name:
            raise ProtocolError("INVALID_ARGUMENT", "empty resource name")
        if len(name) > MAX_NAME_BYTES or len(name.encode()) > MAX_NAME_BYTES:
            raise ProtocolError("INVALID_ARGUMENT", f"resource name of more than {MAX_NAME_BYTES} bytes")


class Subscription:
    """Names and wildcard of one type on one stream. `_ever_named` is what turns the legacy rule off."""

    __slots__ = ("_ever_named", "_type_url", "names", "wildcard")

    def __init__(self, type_url: str) -> None:
        self._type_url = type_url
        self._ever_named = False
        self.names: AbstractSet[str] = NO_NAMES
        self.wildcard = False

    def covers(self, name: str) -> bool:
        """Whether the client wants to know about this resource."""
        return self.wildcard or name in self.names

    def replace(self, names: Sequence[str], existing: int) -> Change:
        """State of the world: the full list. `existing`: how many there are to ask for. Raises ProtocolError."""
        check_count(names, MAX_NAMES + existing)
        wanted, before = set(names), self.names
        if not wanted and not self._ever_named:
            return self._set_wildcard(self._type_url in FULL_STATE)
        wildcard = WILDCARD in wanted
        wanted.discard(WILDCARD)
        self._ever_named = True
        change = self._set_wildcard(wildcard)
        if wanted == before:
            return change
        added = wanted - before
        check_names(added)
        self.names = {_shared(name) for name in wanted} or NO_NAMES
        return Change(added, before - wanted, change.wildcard)

    def change(self, subscribe: Sequence[str], unsubscribe: Sequence[str], existing: int, *, first: bool) -> Change:
        """Incremental: what is added, then what is dropped (a name in both is dropped). Raises ProtocolError."""
        limit = MAX_NAMES + existing
        for names in (subscribe, unsubscribe):
            check_count(names, limit)
            check_names(names)
        wildcard = self.wildcard or (first and not subscribe and self._type_url in FULL_STATE)
        wildcard = (wildcard or WILDCARD in subscribe) and WILDCARD not in unsubscribe
        # In place: one name more must not cost as much as all that were there before.
        held = self.names if isinstance(self.names, set) else set(self.names)
        added = {_shared(name) for name in subscribe if name not in held and name != WILDCARD}
        held |= added
        dropped = {name for name in unsubscribe if name in held}
        held -= dropped
        if len(held) > limit:
            raise ProtocolError("RESOURCE_EXHAUSTED", f"more than {limit} subscribed resource names of one type")
        self.names = held or NO_NAMES
        return Change(added - dropped, dropped, self._set_wildcard(wildcard).wildcard)

    def _set_wildcard(self, wildcard: bool) -> Change:
        if wildcard == self.wildcard:
            return NO_CHANGE
        self.wildcard = wildcard
        return Change(wildcard=True)


def _shared(name: str) -> str:
    """One object for a name that many clients ask for."""
    return sys.intern(name) if len(name) <= _SHORT else name
