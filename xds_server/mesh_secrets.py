# SPDX-License-Identifier: Apache-2.0
"""Which secrets each instance gets: its identity, what its ports present, and whom it is to believe; all of it checked.

    snapshot.trusted(type) ─┐
    identity, served ───────┴─► MeshSecrets.of(marble) ─► the SECRET part of its view

This outlives snapshots: a manifest update or another root makes no identity anew, and what was good before is there to
stay in force where its successor is not fit to leave. Bundles are made and checked once for all instances, certificates
of the manifest once for all that present them, identities once per instance.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

from sds.alias import Alias
from sds.identity import marble_spiffe_id
from sds.logs import get_logger
from sds.material import Identity
from sds.publish_gate import Owner, PublishGate, Withheld
from sds.resources import BUNDLE_NAME, IDENTITY_NAME, Resource, identity_secret
from sds.secret_checks import anchors_of, check_issued
from xds_server.mesh_clients import ActiveMarble, Instance, Served, Unusable
from xds_server.snapshot import Resources, Snapshot

# Certificates of the manifest that some port presents; each is 4 KB.
_MAX_SERVED = 1024
_MAX_TOLD = 1024

_NOTHING: Resources = MappingProxyType({})

_log = get_logger(__name__)


class _Kept(NamedTuple):
    """One instance's secrets: `proven` made of its identity, `presented` of what its ports present."""

    identity: Identity
    served: Served
    names: frozenset[str]
    trusted: Resources
    proven: Resources
    presented: Resources
    secrets: Resources

    def is_made_of(self, marble: ActiveMarble, trusted: Resources, proven: Resources, presented: Resources) -> bool:
        """By identity: nothing is compared."""
        same_marble = self.identity is marble.identity and self.served is marble.served
        return same_marble and self.trusted is trusted and self.proven is proven and self.presented is presented


class MeshSecrets:
    """One per Mesh. `serialised` counts, for tests and curiosity."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._gate = PublishGate(now, self._tell)
        self._told: OrderedDict[tuple[str, str, str], None] = OrderedDict()
        self._kept: dict[Instance, _Kept] = {}
        self._trusted: dict[str, tuple[Resources, Resources]] = {}
        self._served: OrderedDict[tuple[str, Identity], Resource] = OrderedDict()
        self._anchors: tuple[Resource, frozenset[bytes]] | None = None
        self.serialised = 0

    def of(self, marble: ActiveMarble, snapshot: Snapshot) -> Resources:
        """Everything for one instance; the same object until something in it changes."""
        key = marble.marble_type, marble.uuid
        allowed = self._allowed(marble.marble_type, snapshot.trusted(marble.marble_type))
        names = snapshot.presented(marble.marble_type)
        known = self._kept.get(key)
        proven = self._proven(marble, allowed, known)
        presented = self._presented(marble, names, known)
        if known is not None and known.is_made_of(marble, allowed, proven, presented):
            return known.secrets
        secrets: Resources = MappingProxyType({**allowed, **proven, **presented})
        if known is not None and known.secrets == secrets:
            secrets = known.secrets
        self._kept[key] = _Kept(marble.identity, marble.served, names, allowed, proven, presented, secrets)
        return secrets

    def _allowed(self, marble_type: str, trusted: Resources) -> Resources:
        known = self._trusted.get(marble_type)
        if known is None or known[0] is not trusted:
            known = self._trusted[marble_type] = trusted, self._gate.let_out((marble_type,), trusted)
        return known[1]

    def _proven(self, marble: ActiveMarble, allowed: Resources, known: _Kept | None) -> Resources:
        owner = marble.marble_type, marble.uuid, "identity"
        identity = marble.identity
        if known is not None and known.identity is identity:
            # One that is withheld is looked at again with other roots.
            withheld = known.trusted is not allowed and self._gate.withheld_from(owner)
            if not withheld:
                return known.proven
        looked_at = identity.in_use()
        spiffe_id = marble_spiffe_id(looked_at.spiffe_id.trust_domain, marble.marble_type, marble.uuid)
        own = identity_secret(IDENTITY_NAME, identity)
        made = {IDENTITY_NAME: own, spiffe_id: Alias(spiffe_id, own)}
        self.serialised += 1
        return self._gate.let_out(owner, made, partial(self._check_issued, looked_at, spiffe_id, allowed))

    def _presented(self, marble: ActiveMarble, names: frozenset[str], known: _Kept | None) -> Resources:
        if known is not None and known.served is marble.served and known.names == names:
            return known.presented
        # Only what a port of this manifest presents: the store may hold more by the same names.
        served, unusable = {}, {}
        for name in names & marble.served.keys():
            what = marble.served[name]
            if isinstance(what, Unusable):
                unusable[name] = what.reason
            if (identity := what.last if isinstance(what, Unusable) else what) is not None:
                served[name] = self._serve(name, identity)
        owner = marble.marble_type, marble.uuid, "served"
        if not served and not unusable:
            self._gate.forget(owner)
            return _NOTHING
        return self._gate.let_out(owner, served, unusable=unusable)

    def _check_issued(
        self, identity: Identity, spiffe_id: str, allowed: Resources, _resource: Resource, now: datetime
    ) -> None:
        bundle, anchors = allowed.get(BUNDLE_NAME), frozenset[bytes]()
        if bundle is not None:
            if self._anchors is None or self._anchors[0] is not bundle:
                self._anchors = bundle, anchors_of(bundle)
            anchors = self._anchors[1]
        check_issued(spiffe_id, identity, anchors, now)

    def _serve(self, name: str, identity: Identity) -> Resource:
        key = name, identity
        if (known := self._served.get(key)) is not None:
            self._served.move_to_end(key)
            return known
        made = self._served[key] = identity_secret(name, identity)
        self.serialised += 1
        if len(self._served) > _MAX_SERVED:
            self._served.popitem(last=False)
        return made

    def ripen(self) -> bool:
        """Look again at what is withheld, as time has passed. Whether something may leave now."""
        ripe = self._gate.ripe()
        for owner in ripe:
            self._trusted.pop(owner[0], None)
            if len(owner) > 1:
                self._kept.pop((owner[0], owner[1]), None)
        return bool(ripe)

    @property
    def withheld(self) -> Iterator[tuple[Owner, Withheld]]:
        """What does not leave, for whom (type; or type, UUID and kind) and why."""
        return self._gate.withheld()

    def withheld_from(self, marble_type: str, uuid: str) -> tuple[Withheld, ...]:
        """What one instance would have and does not get."""
        owners = (marble_type,), (marble_type, uuid, "identity"), (marble_type, uuid, "served")
        return tuple(entry for owner in owners for entry in self._gate.withheld_from(owner))

    def forget(self, instance: Instance) -> None:
        """This instance is no more."""
        self._kept.pop(instance, None)
        for kind in ("identity", "served"):
            self._gate.forget((*instance, kind))

    def retain(self, instances: Iterable[Instance]) -> None:
        """Forget all other instances, and types without any."""
        kept = set(instances)
        for instance in self._kept.keys() - kept:
            self.forget(instance)
        for marble_type in self._trusted.keys() - {marble_type for marble_type, _ in kept}:
            del self._trusted[marble_type]
            self._gate.forget((marble_type,))

    def _tell(self, owner: Owner, withheld: Withheld) -> None:
        """Once for all instances of a type that miss the same content."""
        news = owner[0], withheld.name, withheld.version or withheld.reason
        if news in self._told:
            return
        self._told[news] = None
        if len(self._told) > _MAX_TOLD:
            self._told.popitem(last=False)
        _log.warning(
            "secret withheld from workers",
            MarbleType=owner[0],
            secret=withheld.name,
            part=withheld.part,
            error=withheld.reason,
            last_good_stays=withheld.kept,
        )
