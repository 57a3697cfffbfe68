# SPDX-License-Identifier: Apache-2.0
"""One resource type on one stream, seen from the server: what the client holds, what it is owed, what is under way.

Changes are never queued. The channel compares the view of now with what was sent, so that a slow client gets the newest
state once, however often it changed. At most one response is under way (sent, neither ACKed nor NACKed).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sds.discovery_subscription import Subscription
from sds.discovery_types import FULL_STATE, MAX_RESPONSE_BYTES, TypeStatus
from sds.resources import SECRET, Resource

_NOTHING: Mapping[str, Resource] = MappingProxyType({})
# A version that no content has: the client may hold something of that name, we do not know what.
UNKNOWN = ""


@dataclass(frozen=True, slots=True)
class InFlight:
    """A response that waits for its ACK: the versions that were new in it, and the names that it took away."""

    nonce: str
    versions: Mapping[str, str]
    removed: frozenset[str]


class Channel:
    """The state of one type. Whoever builds the responses decides their order; here is only what is due."""

    def __init__(self, type_url: str, *, isolate: bool) -> None:
        self.type_url = type_url
        self.subscription = Subscription(type_url)
        self.view = _NOTHING
        self.sent: dict[str, str] = {}
        self.bodies: dict[str, Resource] = {}  # state of the world: what a held-back removal still has to contain
        self.forced: set[str] = set()  # owed an answer whatever the client holds
        self.answer_owed = False  # a first answer is owed even if it is empty: the client waits for it
        self.inflight: InFlight | None = None
        self.nonce = ""  # of the newest response
        self._isolate = isolate
        self._alone: set[str] = set()
        self._acked: dict[str, str] = {}
        self._nacked: dict[str, str] = {}
        self._answered = False
        self._error = ""

    # ---- what is due

    def changes(self) -> list[str]:
        """Names to send, sorted: forced ones, and those whose content differs from what was sent.

        A version that the client refused is not sent again until the content changes or the client asks.
        """
        if self.subscription.wildcard:
            names: Iterable[str] = self.view
        else:
            names = (name for name in self.subscription.names if name in self.view)
        return sorted(name for name in names if self._is_due(name))

    def _is_due(self, name: str) -> bool:
        if name in self.forced:
            return True
        version = self.view[name].version
        return self.sent.get(name) != version and self._nacked.get(name) != version

    def missing(self) -> list[str]:
        """Names that the client waits for and that do not exist (or not for it)."""
        return sorted(name for name in self.forced if name not in self.view)

    def removals(self) -> list[str]:
        """Names that the client holds and that are gone."""
        return sorted(name for name in self.sent if name not in self.view)

    def is_settled(self) -> bool:
        """Nothing due, nothing under way, nothing refused: what this type used to point at may be taken away."""
        refused = any(name in self.view and self.view[name].version == v for name, v in self._nacked.items())
        return self.inflight is None and not refused and not self.changes() and not self.removals()

    def is_current(self) -> bool:
        """Whether the client has acknowledged the present content of everything that it asked for and that exists."""
        covers = self.subscription.covers
        return all(self._acked.get(name) == r.version for name, r in self.view.items() if covers(name))

    def batch(self, due: list[str]) -> list[str]:
        """The part of `due` that goes into one response: one secret (a bad one spoils its neighbours), one resource of
        a refused response (to find the bad one), otherwise as many as the size limit allows.

        `due` is sorted, so that `ROOTCA` goes before `default`: who comes back late has the new roots before the
        identity that they vouch for.
        """
        if self.type_url == SECRET:
            return due[:1]
        if self._alone:
            return [name for name in due if name in self._alone][:1] or due[:1]
        size = 0
        for count, name in enumerate(due):
            size += len(self.view[name].body)
            if count and size > MAX_RESPONSE_BYTES:
                return due[:count]
        return due

    @property
    def isolating(self) -> bool:
        """Whether a refused response is being taken apart, so that removals must not travel with anything else."""
        return bool(self._alone)

    # ---- what happens

    def written(self, nonce: str, names: Iterable[str], removed: Iterable[str]) -> None:
        """A response left with these names as new content and these as removals."""
        versions = {name: self.view[name].version for name in names}
        gone = frozenset(removed)
        self.sent.update(versions)
        for name in (*versions, *gone):
            self.forced.discard(name)
            self._nacked.pop(name, None)
            self._alone.discard(name)
        for name in gone:
            self.sent.pop(name, None)
        self.answer_owed = False
        self.nonce = nonce
        self.inflight = InFlight(nonce, versions, gone)

    def acked(self) -> None:
        """The client took the response that was under way."""
        if (done := self.inflight) is None:
            return
        self._acked.update({name: v for name, v in done.versions.items() if self.subscription.covers(name)})
        for name in done.removed:
            self._acked.pop(name, None)
        self.inflight = None
        self._answered = True
        if not self._nacked:
            self._error = ""

    def refused(self, error: str) -> None:
        """The client rejected the response that was under way, for the (redacted) reason `error`."""
        self._error = error
        if (bad := self.inflight) is None:
            return
        self.inflight = None
        apart = self._isolate and len(bad.versions) + len(bad.removed) > 1
        for name, version in bad.versions.items():
            if not self.subscription.covers(name):
                continue
            self.sent[name] = UNKNOWN
            if apart:
                self._alone.add(name)
            else:
                self._nacked[name] = version
        if apart and bad.versions:
            # The removals were not at fault or cannot be helped: tried once more without company, then given up.
            self.sent.update(dict.fromkeys(bad.removed & self._acked.keys(), UNKNOWN))

    def hold(self, versions: Mapping[str, str]) -> None:
        """What a reconnecting client says that it holds already."""
        for name, version in versions.items():
            if self.subscription.covers(name):
                self.sent[name] = self._acked[name] = version

    def forget_unwanted(self) -> None:
        """After names were dropped: what is not subscribed is sent anew when it is asked for again."""
        covers = self.subscription.covers
        tables: tuple[dict[str, str] | dict[str, Resource], ...] = (self.sent, self.bodies, self._acked, self._nacked)
        for known in tables:
            for name in [name for name in known if not covers(name)]:
                known.pop(name)
        self.forced = {name for name in self.forced if covers(name)}
        self._alone = {name for name in self._alone if covers(name)}

    def update(self, view: Mapping[str, Resource]) -> None:
        """A new view of this type."""
        if view is self.view:
            return
        self.view = view
        for name in [name for name in self._nacked if name not in view]:
            del self._nacked[name]
        self._alone.intersection_update(view)

    def force_known(self) -> None:
        """Send everything that is subscribed again, whatever the client has."""
        names = self.view if self.subscription.wildcard else self.subscription.names
        self.forced.update(name for name in names if name in self.view)

    @property
    def status(self) -> TypeStatus:
        names = self.subscription.names
        return TypeStatus(
            type_url=self.type_url,
            current=MappingProxyType({n: r.version for n, r in self.view.items() if self.subscription.covers(n)}),
            wildcard=self.subscription.wildcard,
            subscribed=tuple(sorted(names)),
            missing=tuple(sorted(name for name in names if name not in self.view)),
            sent=MappingProxyType(dict(self.sent)),
            acked=MappingProxyType(dict(self._acked)),
            nacked=MappingProxyType(dict(self._nacked)),
            awaiting_ack=self.inflight is not None,
            answered=self._answered,
            error=self._error,
        )

    @property
    def holds_full_state(self) -> bool:
        """Whether what is missing from a state-of-the-world response of this type counts as deleted."""
        return self.type_url in FULL_STATE
