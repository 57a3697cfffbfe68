# SPDX-License-Identifier: Apache-2.0
"""Which instances were turned out of the mesh, and why. Pure.

Their certificates stay good in themselves until their root leaves the bundle, and live connections were admitted long
ago; so every worker is told their names, refuses them and ends what they still have open. An instance that is activated
again (its new package is allowed) is taken off the list.
"""

from __future__ import annotations

from collections.abc import Iterable

from sds.discovery_types import REVOKED
from sds.identity import marble_spiffe_id

Instance = tuple[str, str]  # Marble type, UUID

# As many names as fit into the Secret that carries them; beyond it the one turned out longest ago is forgotten. Its
# root has left the bundle by then, unless 10 000 instances were turned out within one rotation.
MAX_REVOKED_INSTANCES = 10_000
# What is said after a restart, when the reason is no longer known.
RESTORED = f"{REVOKED}the manifest no longer allows this marble"


class Revocations:
    """The list. What is said of an instance is fit to be told to it: it speaks of itself only."""

    def __init__(self) -> None:
        self._reasons: dict[Instance, str] = {}
        self._restored: frozenset[Instance] = frozenset()

    def add(self, instance: Instance, why: str) -> None:
        """Turn an instance out; `why` completes "revoked: "."""
        self._reasons.pop(instance, None)
        self._reasons[instance] = f"{REVOKED}{why}"
        while len(self._reasons) > MAX_REVOKED_INSTANCES:
            del self._reasons[next(iter(self._reasons))]

    def discard(self, instance: Instance) -> bool:
        """The instance may come again; whether it was on the list."""
        return self._reasons.pop(instance, None) is not None

    def clear(self) -> None:
        self._reasons.clear()
        self._restored = frozenset()

    def restore(self, instances: Iterable[Instance]) -> None:
        """Those that an update had turned out before this Coordinator started, and no others."""
        self._restored = frozenset(instances)
        self._reasons = dict.fromkeys(self._restored, RESTORED)

    def is_restored(self, instance: Instance) -> bool:
        """Whether it may have been activated again since: then its identity is of a newer root than it was turned out
        with."""
        return instance in self._restored and instance in self._reasons

    def reason(self, instance: Instance) -> str | None:
        """What to tell an instance that was turned out; None if it was not."""
        return self._reasons.get(instance)

    def names(self, trust_domain: str) -> Iterable[str]:
        """SPIFFE IDs, the one turned out last first."""
        return (marble_spiffe_id(trust_domain, *instance) for instance in reversed(self._reasons))
