# SPDX-License-Identifier: Apache-2.0
"""What to do with one response of the Coordinator: take it, refuse it with a reason, or take it and wait for the rest.

The rule for the relay: it gets a configuration only when everything that it refers to is there; until then it keeps the
one that it has. The rule for the answer: a response is refused for what stands in it, never for a neighbour's fault.

    listeners, clusters   cannot be enforced, cannot be bound           NACK, nothing changes
    secrets               would not be accepted by our own verifier     NACK, the last good one stays
    secrets, endpoints    fine, but the relay cannot use the whole      ACK, kept, and tried again later

Who is in the mesh (which types, and not those that were turned out) comes as secrets too, and is in force at once,
whatever else is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from enclave_proxy.bootstrap import Credentials
from enclave_proxy.errors import MissingReference, ProxyError, RoutesError
from enclave_proxy.identity_store import IdentityStore
from enclave_proxy.relay_config import Membership, RelayConfig
from enclave_proxy.route_parts import Local
from enclave_proxy.routes import Pushed, build
from sds.discovery_client import DeltaClient, Update
from sds.discovery_subscription import WILDCARD
from sds.material import Identity, MaterialError, TrustBundle
from sds.resources import (
    BUNDLE_NAME,
    CLUSTER,
    ENDPOINT,
    IDENTITY_NAME,
    LISTENER,
    OFFLINE_NAME,
    REVOKED_NAME,
    SECRET,
    TYPES_NAME,
    MarbleTypes,
    OfflineStart,
    Resource,
    RevokedInstances,
    read_secret,
)
from sds.wire.discovery_pb2 import Node


class Relaying(Protocol):
    """The part of the relay that is needed here."""

    async def apply(self, config: RelayConfig) -> None:
        """Put the whole configuration in force, or raise a ProxyError and change nothing."""

    def update_membership(self, membership: Membership) -> None:
        """End what is open with whoever is not in the mesh, and admit them no more; others may talk again."""


@dataclass(frozen=True, slots=True)
class Nack:
    """When a push was refused, and why."""

    at: datetime
    reason: str


@dataclass(slots=True)
class XdsStatus:
    """Numbers for metrics and health; nothing here decides anything."""

    connected: bool = False
    attempts: int = 0
    updates: Counter[str] = field(default_factory=Counter)  # by short type name
    nacks: Counter[str] = field(default_factory=Counter)
    reactivations: int = 0
    last_nacks: dict[str, Nack] = field(default_factory=dict)  # by short type name; kept after a later ACK
    last_error: str = ""


class Session:
    """Subscriptions, accepted resources and the relay's configuration. Outlives any one stream."""

    def __init__(
        self,
        node: Node,
        store: IdentityStore,
        relay: Relaying | None,
        local: Local,
        now: Callable[[], datetime],
        log: FilteringBoundLogger,
    ) -> None:
        self.client = DeltaClient(node)
        self.status = XdsStatus()
        self.pushed = Pushed(local, secrets=_secrets(store.credentials))
        self.applied: RelayConfig | None = None
        self._store = store
        self._relay = relay
        self._now = now
        self._log = log
        self._answered: set[str] = set()
        self._unapplied = False
        self.obstacle = ""  # why what was pushed last is not in force
        self._membership = Membership()
        self._accepted: dict[str, dict[str, Resource]] = {}
        self.restored = False  # what is in force is of an earlier life, and the Coordinator was not heard in this one
        self.changes = 0  # counts what was accepted
        self.offline_start: timedelta | None = None  # how long the Coordinator lets us start without it, if at all
        if relay is not None:
            self.client.subscribe(CLUSTER, ["*"])
            self.client.subscribe(LISTENER, ["*"])
        self._resubscribe()

    @property
    def configured(self) -> bool:
        """Has a first complete configuration been put in force? Without a relay: has the Coordinator confirmed us?"""
        return self.applied is not None if self._relay is not None else SECRET in self._answered

    def waiting_listeners(self) -> list[str]:
        """Accepted listeners that the relay does not have: something that they refer to is missing, or a port."""
        if self._relay is None:
            return []
        return sorted(self.pushed.listeners.keys() - set(() if self.applied is None else _listeners(self.applied)))

    async def handle(self, update: Update) -> None:
        """Apply one response and queue its ACK or NACK. Raises nothing that a response could cause."""
        kind = short_name(update.type_url)
        self.restored = False
        try:
            waiting = await self._apply(update)
        except (ProxyError, MaterialError) as error:
            self.status.nacks[kind] += 1
            self.obstacle = str(error)
            self.status.last_nacks[kind] = Nack(self._now(), str(error))
            self._log.error("push refused", type=kind, reason=str(error), names=[r.name for r in update.resources][:20])
            self.client.nack(update, str(error))
            return
        self.status.updates[kind] += 1
        self._keep(update)
        self.client.ack(update)
        self._resubscribe()
        self._log.debug("push accepted", type=kind, resources=len(update.resources), waiting=waiting)

    def accepted(self) -> tuple[Resource, ...]:
        """Everything in force that came from the Coordinator, except our own identity and bundle, which the store has:
        what `restore` takes in another life of this worker."""
        kept = (resource for kind in self._accepted.values() for resource in kind.values())
        return tuple(r for r in kept if r.name not in (IDENTITY_NAME, BUNDLE_NAME) and not r.name.startswith("spiffe:"))

    async def restore(self, resources: Iterable[Resource]) -> None:
        """Put in force what was accepted in an earlier life, with the same checks, before any stream. Raises ProxyError
        or MaterialError if it is not good (any more): then nothing of it must be used."""
        found = list(resources)
        for kind in (SECRET, CLUSTER, ENDPOINT, LISTENER):  # who is turned out comes before who may connect
            update = Update(kind, "", tuple(resource for resource in found if resource.type_url == kind), ())
            if waiting := await self._apply(update):
                self._log.debug("restoring", type=short_name(kind), waiting=waiting)
            self._keep(update)
        if not self.configured:
            raise RoutesError("", "", f"what was kept is no complete configuration: {self.obstacle}")
        self._resubscribe()
        self.client.hold(found)
        self.restored = True

    def _keep(self, update: Update) -> None:
        self._answered.add(update.type_url)
        kept = self._accepted.setdefault(update.type_url, {})
        kept.update((resource.name, resource) for resource in update.resources)
        for name in update.removed:
            kept.pop(name, None)
        self.changes += 1

    async def adopt(self, credentials: Credentials) -> None:
        """Use a new activation's credentials at once, for new connections."""
        self.pushed = self.pushed.with_secrets(_secrets(credentials))
        self.changes += 1
        await self._store.adopt(credentials)
        await self._try(self.pushed)

    async def retry(self) -> None:
        """Try once more what the relay could not do the last time."""
        if self._unapplied:
            await self._try(self.pushed)

    async def _apply(self, update: Update) -> str:
        if update.type_url == SECRET:
            return await self._apply_secrets(update)
        bodies = {resource.name: resource.body for resource in update.resources}
        candidate = self.pushed.with_resources(update.type_url, bodies, update.removed)
        if update.type_url == ENDPOINT:
            self.pushed = candidate
            return await self._try(candidate)
        try:
            config = build(candidate)
        except MissingReference as missing:
            # A listener must not name a cluster that was never pushed, but a cluster may go (or come) before its
            # listener's own push arrives: make before break, and break after.
            if update.type_url == LISTENER and CLUSTER in self._answered and _lacks_cluster(candidate, set(bodies)):
                raise
            self.pushed = candidate
            self.obstacle = str(missing)
            return self.obstacle
        await self._put_in_force(config, {*self._answered, update.type_url})
        self.pushed = candidate
        return ""

    async def _apply_secrets(self, update: Update) -> str:
        secrets: dict[str, Identity | TrustBundle] = {}
        membership, offline_start = self._membership, self.offline_start
        for resource in update.resources:
            name, secret = read_secret(resource.body)
            if name != resource.name:
                raise MaterialError(f"secret {resource.name!r} calls itself {name!r}")
            match secret:
                case RevokedInstances():
                    membership = replace(membership, revoked=secret.names)
                case MarbleTypes():
                    membership = replace(membership, types=secret)
                case OfflineStart():
                    offline_start = secret.allowed
                case _:
                    self._check_kind(name, secret)
                    self._store.check(name, secret, self._now())
                    secrets[name] = secret
        if OFFLINE_NAME in update.removed:
            offline_start = None
        for name in set(update.removed) - {OFFLINE_NAME}:
            code, text = update.errors.get(name, (0, "no longer there"))
            self._log.warning("secret not given, the last good one stays", secret=name, code=code, reason=text)
        await self._store.forget(update.removed)
        self._membership, self.offline_start = membership, offline_start
        if self._relay is not None:
            self._relay.update_membership(membership)
        self.pushed = self.pushed.with_secrets(secrets)
        for name, material in secrets.items():
            await self._store.accept(name, material)
            if isinstance(material, Identity) and not name.startswith("spiffe://"):  # `default` once more
                self._log.info("new identity", secret=name, expires=material.not_after.isoformat())
        return await self._try(self.pushed)

    def _check_kind(self, name: str, secret: Identity | TrustBundle) -> None:
        expected = {IDENTITY_NAME: Identity, BUNDLE_NAME: TrustBundle}.get(name)
        if expected is not None and not isinstance(secret, expected):
            raise MaterialError(f"secret {name!r} is a {type(secret).__name__}, expected a {expected.__name__}")

    async def _try(self, pushed: Pushed) -> str:
        try:
            await self._put_in_force(build(pushed), self._answered)
        except MissingReference as missing:
            self.obstacle = str(missing)
            return self.obstacle
        except ProxyError as error:
            self._unapplied = True
            self.status.last_error = self.obstacle = str(error)
            self._log.error("configuration cannot be put in force, the last one stays", reason=str(error))
            return str(error)
        return ""

    async def _put_in_force(self, config: RelayConfig, answered: set[str]) -> None:
        # Before the first answers an empty configuration would only mean "nothing known yet".
        if self._relay is None or not {CLUSTER, LISTENER} <= answered:
            return
        if config != self.applied:
            await self._relay.apply(config)
            # Which listeners there are is news; endpoints of a large mesh change by the minute.
            news = self.applied is None or _listeners(config) != _listeners(self.applied)
            (self._log.info if news else self._log.debug)("configuration in force", listeners=_listeners(config))
            self.applied = config
        self._unapplied, self.obstacle = False, ""

    def _resubscribe(self) -> None:
        # Without listeners of our own nothing says which certificates of the manifest an Envoy here may ask for: all.
        more = {WILDCARD} if self._relay is None else {REVOKED_NAME, TYPES_NAME, OFFLINE_NAME}
        self.client.want(SECRET, self.pushed.wanted_secrets() | more)
        self.client.want(ENDPOINT, self.pushed.wanted_endpoints())


def short_name(type_url: str) -> str:
    """`...v3.Listener` is `Listener`: for labels and logs."""
    return type_url.rpartition(".")[2]


def _listeners(config: RelayConfig) -> list[str]:
    return [inbound.name for inbound in config.inbound] + [outbound.name for outbound in config.outbound]


def _secrets(credentials: Credentials) -> dict[str, Identity | TrustBundle]:
    return {IDENTITY_NAME: credentials.identity, BUNDLE_NAME: credentials.bundle}


def _lacks_cluster(pushed: Pushed, names: set[str]) -> bool:
    return any(pushed.listeners[name].cluster not in pushed.clusters for name in names)
