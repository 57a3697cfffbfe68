# SPDX-License-Identifier: Apache-2.0
"""Which instances are away, and since when: the table of instances must not grow with every one that ever was. Pure.

An instance that is away for as long as a mesh certificate lives will find its own expired when it returns; so nothing
is lost by forgetting it: it either shows the certificate of its activation and is admitted again by what that says was
attested, or it activates anew. Beyond a limit those that are away longest go earlier.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

Instance = tuple[str, str]  # Marble type, UUID


class Absences:
    """Instances without a stream, longest away first."""

    def __init__(self) -> None:
        self._since: dict[Instance, datetime] = {}
        self._streams: dict[Instance, int] = {}

    def activated(self, instance: Instance, now: datetime) -> None:
        """It exists; a stream may follow."""
        if instance not in self._streams:
            self._since.pop(instance, None)
            self._since[instance] = now

    def connected(self, instance: Instance) -> None:
        """A stream begins."""
        self._streams[instance] = self._streams.get(instance, 0) + 1
        self._since.pop(instance, None)

    def disconnected(self, instance: Instance, now: datetime) -> None:
        """A stream ends."""
        left = self._streams.get(instance, 0) - 1
        if left > 0:
            self._streams[instance] = left
        elif self._streams.pop(instance, None) is not None:
            self._since[instance] = now

    def retain(self, instances: Iterable[Instance]) -> None:
        """Others are no part of the mesh any more; their streams, if they have any, still end by `disconnected`."""
        kept = set(instances)
        self._since = {instance: since for instance, since in self._since.items() if instance in kept}

    def overdue(self, before: datetime, surplus: int) -> list[Instance]:
        """Who is away since `before` or longer, and at least `surplus` instances if so many are away at all."""
        return [i for n, (i, since) in enumerate(self._since.items()) if since <= before or n < surplus]

    def forget(self, instance: Instance) -> None:
        self._since.pop(instance, None)
