# SPDX-License-Identifier: Apache-2.0
"""One resource type on one stream, seen from the server: what the client holds, what it is owed, what is under way.

Changes are never queued. The channel compares the view of now with what was sent, so that a slow client gets the newest
state once, however often it changed. At most one response is under way (sent, neither ACKed nor NACKed).

There are four of these for every worker, so what is rarely needed is made when it is needed (`None` until then), and
what is due is looked up once per change, not once per question.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from types import MappingProxyType
from typing import NamedTuple

from sds.discovery_subscription import NO_NAMES, Change, Subscription
from sds.discovery_types import FULL_STATE, MAX_NAMES, MAX_RESPONSE_BYTES, MAX_VERSION, ProtocolError, TypeStatus
from sds.resources import SECRET, Resource

NOTHING: Mapping[str, Resource] = MappingProxyType({})
# A version that no content has: the client may hold something of that name, we do not know what.
UNKNOWN = ""
_NO_VERSIONS: Mapping[str, str] = MappingProxyType({})


class InFlight(NamedTuple):
    """A response that waits for its answer: versions of what was in it, and names that it took away from the client."""

    versions: Mapping[str, str]
    removed: Sequence[str]


class Channel:
    """The state of one type. Whoever builds the responses decides their order; here is only what is due.

    `isolate`: a refused response is sent again in pieces, once, so that one bad resource does not hold back the others
    (incremental only: a whole state cannot be taken apart).
    """

    __slots__ = (
        "_acked_before",
        "_alone",
        "_answered",
        "_changes",
        "_error",
        "_forced",
        "_isolate",
        "_removals",
        "_stale",
        "_state_refused",
        "answer_owed",
        "bodies",
        "full_state",
        "inflight",
        "nacked",
        "nonce",
        "sent",
        "subscription",
        "type_url",
        "view",
    )

    def __init__(self, type_url: str, *, isolate: bool) -> None:
        self.type_url = type_url
        self.full_state = type_url in FULL_STATE
        self.subscription = Subscription(type_url)
        self.view = NOTHING
        self.sent: dict[str, str] = {}
        self.bodies: Mapping[str, Resource] = NOTHING  # of a whole state: what a held-back removal still has to contain
        self.answer_owed = False  # a first answer is owed even if it is empty: the client waits for it
        self.inflight: InFlight | None = None
        self.nonce = ""  # of the newest response
        self._isolate = isolate
        self._forced: set[str] | None = None  # owed an answer whatever the client holds
        self._alone: set[str] | None = None  # of a refused response: to be sent one by one
        self.nacked: dict[str, str] | None = None  # what the client refused and is therefore not sent again
        # What the client had acknowledged of names whose newest version it has not: under way, or refused.
        self._acked_before: dict[str, str] | None = None
        self._answered = False
        self._error = ""
        self._state_refused = False  # a whole state, maybe an empty one
        self._stale = True  # `_changes` and `_removals` have to be looked up
        self._changes: Sequence[str] = ()
        self._removals: Sequence[str] = ()

    # ---- what is due

    def changes(self) -> Sequence[str]:
        """Names to send, in order: forced ones, and those whose content differs from what was sent.

        A version that the client refused is not sent again until the content changes or the client asks.
        """
        if self._stale:
            self._look()
        return self._changes

    def removals(self) -> Sequence[str]:
        """Names that the client holds and that are gone, sorted."""
        if self._stale:
            self._look()
        return self._removals

    def _look(self) -> None:
        view, sent = self.view, self.sent
        forced, nacked = self._forced or NO_NAMES, self.nacked or _NO_VERSIONS
        due = []
        for name in self._names_in_view():
            version = view[name].version
            if (sent.get(name) != version and nacked.get(name) != version) or name in forced:
                due.append(name)
        if len(due) > 1:
            due.sort(key=lambda name: (view[name].rank, name))
        gone = [name for name in sent if name not in view]
        if gone and not (self._isolate or self.full_state):
            # State of the world has no words for this; forgotten, so that it is sent when it comes back.
            self._drop(gone)
            gone = []
        self._changes, self._removals, self._stale = due or (), sorted(gone) if gone else (), False

    def _names_in_view(self) -> Iterable[str]:
        """What is subscribed and exists. Costs as much as the shorter list: the other may be a flood."""
        view, names = self.view, self.subscription.names
        if self.subscription.wildcard:
            return view
        if len(names) <= len(view):
            return [name for name in names if name in view]
        return [name for name in view if name in names]

    def missing(self) -> Sequence[str]:
        """Names that the client waits for and that do not exist (or not for it), sorted."""
        if not self._forced:
            return ()
        return sorted(name for name in self._forced if name not in self.view)

    def is_idle(self) -> bool:
        """Nothing is due, whatever else happens on the stream."""
        if self._stale:
            self._look()
        return not (self._changes or self._removals or self._forced or self.answer_owed)

    def is_settled(self) -> bool:
        """Nothing due, nothing under way, nothing refused: what this type used to point at may be taken away."""
        if self.inflight is not None or self.changes() or self._removals:
            return False
        return not self.nacked or not any(self._is_present(n, v) for n, v in self.nacked.items())

    def _is_present(self, name: str, version: str) -> bool:
        resource = self.view.get(name)
        return resource is not None and resource.version == version

    def is_current(self) -> bool:
        """Whether the client has acknowledged the present content of everything that it asked for and that exists."""
        if self.inflight is None and not self.changes() and not self.nacked:
            return True
        return all(self._acked(name) == self.view[name].version for name in self._names_in_view())

    def holds_current(self, name: str) -> bool:
        """Whether a name exists and was sent (or is held) as it is now."""
        return self._is_present(name, self.sent.get(name, UNKNOWN))

    def _acked(self, name: str) -> str:
        before = self._acked_before
        return before[name] if before is not None and name in before else self.sent.get(name, UNKNOWN)

    def batch(self, due: Sequence[str]) -> Sequence[str]:
        """The part of `due` that goes into one response: one secret (a bad one spoils its neighbours), one resource of
        a refused response (to find the bad one), otherwise as many as the size limit allows."""
        if self.type_url == SECRET:
            return due[:1]
        if self._alone:
            alone = self._alone
            return [name for name in due if name in alone][:1] or due[:1]
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

    def written(self, nonce: str, names: Iterable[str], removed: Sequence[str]) -> None:
        """A response left with these names as new content and these as removals or as not found."""
        view, sent = self.view, self.sent
        before = self._acked_before
        versions = {}
        for name in names:
            versions[name] = version = view[name].version
            if before is None:
                before = self._acked_before = {}
            before.setdefault(name, sent.get(name, UNKNOWN))
            sent[name] = version
        held = [name for name in removed if name in sent]
        self._drop(held)
        self.answer_owed = False
        self.nonce = nonce
        self.inflight = InFlight(versions, held)
        self._said({*versions, *removed})

    def _said(self, names: AbstractSet[str]) -> None:
        """An answer went out: these are no longer due."""
        if self._forced is not None:
            self._forced -= names
            self._forced = self._forced or None
        if self._alone is not None:
            self._alone -= names
            self._alone = self._alone or None
        if self.nacked is not None:
            self.nacked = {n: v for n, v in self.nacked.items() if n not in names} or None
        if self._changes:
            self._changes = [name for name in self._changes if name not in names]
        if self._removals:
            self._removals = [name for name in self._removals if name not in names]

    def acked(self) -> None:
        """The client took the response that was under way."""
        if (done := self.inflight) is None:
            return
        self.inflight = None
        if (before := self._acked_before) is not None:
            for name in done.versions:
                before.pop(name, None)
            if not before:
                self._acked_before = None
        for name, version in done.versions.items():
            if name not in self.sent and self.subscription.covers(name):
                # Dropped and wanted again while this was under way: the client has it now, and may have to lose it.
                self.sent[name], self._stale = version, True
        self._answered = True
        self._state_refused = False
        if not self.nacked:
            self._error = ""

    def refused(self, error: str) -> None:
        """The client rejected the response that was under way, for the (redacted) reason `error`."""
        self._error = error
        if (bad := self.inflight) is None:
            return
        self.inflight = None
        self._stale = True
        self._state_refused = self.full_state and not self._isolate
        apart = self._isolate and bool(bad.versions) and len(bad.versions) + len(bad.removed) > 1
        for name, version in bad.versions.items():
            if not self.subscription.covers(name):
                continue
            self.sent[name] = UNKNOWN
            if apart:
                self._alone = self._alone or set()
                self._alone.add(name)
            else:
                self._refuse(name, version)
        for name in filter(self.subscription.covers, bad.removed):
            if apart:
                # It was not at fault or cannot be helped: tried once more without company.
                self.sent.setdefault(name, UNKNOWN)
            elif not self._state_refused:
                self._refuse(name, UNKNOWN)

    def _refuse(self, name: str, version: str) -> None:
        """Not again, until it changes or a long time has passed; UNKNOWN stands for a removal."""
        self.nacked = self.nacked or {}
        self.nacked[name] = version

    # ---- what is wanted

    def ask(self, names: Iterable[str]) -> None:
        """These must be answered, whatever the client holds."""
        forced = self._forced or set()
        forced.update(names)
        if forced:
            self._forced, self._stale = forced, True

    def ask_known(self) -> None:
        """Everything that is subscribed and exists must be sent again, whatever the client has."""
        self.ask(self._names_in_view())

    def check_asked(self) -> None:
        """Bound the answers that wait, also for a client that takes none and goes on asking for other names: names that
        exist, and twice as many as it may subscribe to. Raises ProtocolError."""
        if self._forced is not None and len(self._forced) > 2 * MAX_NAMES + len(self.view):
            raise ProtocolError("RESOURCE_EXHAUSTED", f"more than {2 * MAX_NAMES} names wait for an answer")

    def hold(self, versions: Mapping[str, str]) -> None:
        """What a reconnecting client says that it holds already."""
        covers = self.subscription.covers
        self.sent = {n: v if len(v) <= MAX_VERSION else UNKNOWN for n, v in versions.items() if covers(n)}
        self._stale = True

    def follow(self, change: Change) -> None:
        """The subscription changed: what is not wanted any more is sent anew when it is asked for again."""
        self._stale = True
        if change.wildcard and not self.subscription.wildcard:
            self._forget({*self.sent, *(self._forced or ()), *(self.nacked or ()), *self.bodies})
        elif change.dropped:
            self._forget(change.dropped)

    def _forget(self, dropped: Iterable[str]) -> None:
        names = {name for name in dropped if not self.subscription.covers(name)}
        self._drop(names)
        if self.bodies:
            self.bodies = {n: r for n, r in self.bodies.items() if self.subscription.covers(n)}
        self._said(names)

    def retry(self) -> None:
        """What the client refused is due once more."""
        gone = [name for name in self.nacked or () if name not in self.view]
        self.sent.update(dict.fromkeys(gone, UNKNOWN))
        self.answer_owed |= self._state_refused
        self.nacked, self._state_refused, self._stale = None, False, True

    @property
    def has_refused(self) -> bool:
        """Whether something is not sent again because the client refused it."""
        return self.nacked is not None or self._state_refused

    def update(self, view: Mapping[str, Resource]) -> None:
        """A new view of this type."""
        self.view = view
        self._stale = True
        if self.nacked is not None:
            # A refused removal of what is back: the client has it still, and must lose it if it goes again unsent.
            back = [n for n, v in self.nacked.items() if v == UNKNOWN and n in view]
            self.sent.update(dict.fromkeys(back, UNKNOWN))
            self.nacked = {n: v for n, v in self.nacked.items() if (n in view) == (v != UNKNOWN)} or None
        if self._alone is not None:
            self._alone = self._alone & view.keys() or None

    def _drop(self, names: Iterable[str]) -> None:
        before = self._acked_before
        for name in names:
            self.sent.pop(name, None)
            if before is not None:
                before.pop(name, None)

    @property
    def status(self) -> TypeStatus:
        names = self.subscription.names
        acked = {name: self._acked(name) for name in self.sent}
        return TypeStatus(
            type_url=self.type_url,
            current=MappingProxyType({name: self.view[name].version for name in self._names_in_view()}),
            wildcard=self.subscription.wildcard,
            subscribed=tuple(sorted(names)),
            missing=tuple(sorted(name for name in names if name not in self.view)),
            sent=MappingProxyType(dict(self.sent)),
            acked=MappingProxyType({name: version for name, version in acked.items() if version}),
            nacked=MappingProxyType({name: version for name, version in (self.nacked or {}).items() if version}),
            awaiting_ack=self.inflight is not None,
            answered=self._answered,
            error=self._error,
        )
