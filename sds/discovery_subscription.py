# SPDX-License-Identifier: Apache-2.0
"""What one client asked for of one type: the subscription rules of both protocol variants, as a value.

Wildcards (xDS protocol, "How the client specifies what resources to return"): `*` in the list, or the *legacy* one: no
name was ever sent for the type on this stream. After the first name the legacy rule is off for good. It holds for
listeners and clusters only; for other types an empty list asks for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sds.discovery_types import FULL_STATE, MAX_NAME_BYTES, MAX_NAMES, ProtocolError

WILDCARD = "*"


def check_names(names: Sequence[str]) -> None:
    """Bound one list of names. Raises ProtocolError."""
    if len(names) > MAX_NAMES:
        raise ProtocolError("RESOURCE_EXHAUSTED", f"{len(names)} resource names in one request, limit is {MAX_NAMES}")
    for name in names:
        if not name:
            raise ProtocolError("INVALID_ARGUMENT", "empty resource name")
        if len(name) > MAX_NAME_BYTES or len(name.encode()) > MAX_NAME_BYTES:
            raise ProtocolError("INVALID_ARGUMENT", f"resource name of more than {MAX_NAME_BYTES} bytes")


@dataclass(slots=True)
class Subscription:
    """Names and wildcard of one type on one stream. `ever_named` is what turns the legacy rule off."""

    type_url: str
    names: set[str] = field(default_factory=set)
    wildcard: bool = False
    ever_named: bool = False

    def covers(self, name: str) -> bool:
        """Whether the client wants to know about this resource."""
        return self.wildcard or name in self.names

    def replace(self, names: Sequence[str]) -> frozenset[str]:
        """State of the world: the full list. Returns the names that were not wanted before."""
        check_names(names)
        if not names and not self.ever_named:
            self.wildcard = self.type_url in FULL_STATE
            return frozenset()
        self.ever_named = True
        wanted = set(names)
        self.wildcard = WILDCARD in wanted
        wanted.discard(WILDCARD)
        added = frozenset(wanted - self.names)
        self.names = wanted
        return added

    def change(self, subscribe: Sequence[str], unsubscribe: Sequence[str], *, first: bool) -> None:
        """Incremental: what is added, then what is dropped (a name in both is dropped)."""
        check_names(subscribe)
        check_names(unsubscribe)
        if len(self.names) + len(subscribe) > MAX_NAMES and len(self.names.union(subscribe)) > MAX_NAMES:
            raise ProtocolError("RESOURCE_EXHAUSTED", f"more than {MAX_NAMES} subscribed resource names of one type")
        if first and not subscribe:
            self.wildcard = self.type_url in FULL_STATE
        if WILDCARD in subscribe:
            self.wildcard = True
        self.names.update(name for name in subscribe if name != WILDCARD)
        self._drop(unsubscribe)

    def _drop(self, unsubscribe: Iterable[str]) -> None:
        for name in unsubscribe:
            if name == WILDCARD:
                self.wildcard = False
            else:
                self.names.discard(name)
