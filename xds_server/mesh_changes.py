# SPDX-License-Identifier: Apache-2.0
"""Whom a change of the mesh concerns, so that one worker's change wakes one stream and not thousands. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from xds_server.mesh_clients import Instance

_NOBODY: frozenset[Instance] = frozenset()
_NO_TYPES: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Concerned:
    """`instances`: what they see of themselves has changed. `callers`: types whose instances see other endpoints than
    before, and with them every gateway. `everybody`: another manifest, other roots, somebody turned out."""

    instances: frozenset[Instance] = _NOBODY
    callers: frozenset[str] = _NO_TYPES
    gateways: bool = False
    everybody: bool = False

    def __or__(self, other: Concerned) -> Concerned:
        if self.everybody or other.everybody:
            return EVERYBODY
        return Concerned(
            self.instances | other.instances, self.callers | other.callers, self.gateways or other.gateways
        )

    def __bool__(self) -> bool:
        return bool(self.instances or self.callers or self.gateways or self.everybody)


EVERYBODY = Concerned(everybody=True)
NOBODY = Concerned()


def only(*instances: Instance) -> Concerned:
    """These instances."""
    return Concerned(frozenset(instances))
