# SPDX-License-Identifier: Apache-2.0
"""What a strict observer knows of one discovery stream, from the outside: it watches every request and response and
objects to what the protocol does not allow. It knows nothing of how the server comes to its answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sds.discovery import View
from sds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET
from tests.kit.discovery import Said

WHOLE = (LISTENER, CLUSTER)
CHILDREN = {CLUSTER: (ENDPOINT, SECRET), LISTENER: (SECRET, ROUTE)}
REFUSED = "refused"


@dataclass
class Watched:
    """One type on one stream."""

    names: set[str] = field(default_factory=set)
    wildcard: bool = False
    ever_named: bool = False
    begun: bool = False
    nonce: str = ""
    open: bool = False
    carried: dict[str, str] = field(default_factory=dict)  # new in the response that is open
    taken: set[str] = field(default_factory=set)  # removed by it
    sent: dict[str, str] = field(default_factory=dict)  # the version last sent, REFUSED after a NACK
    held: dict[str, str] = field(default_factory=dict)  # what the client acknowledged
    owed: set[str] = field(default_factory=set)  # asked for, and not answered yet
    again: set[str] = field(default_factory=set)  # may come again, for a reason other than a change
    whole_owed: bool = False
    refused: bool = False  # the last response that was answered
    whole: bool = False  # what is not in a response is gone

    def wants(self, name: str) -> bool:
        return self.wildcard or name in self.names


class Observer:
    """Of one stream; `state` says which of the two variants it is."""

    def __init__(self, *, state: bool) -> None:
        self.state = state
        self.types: dict[str, Watched] = {}
        self.seen_nonces: set[str] = set()
        self.views: dict[tuple[str, str], set[str]] = {}  # every version that the client was ever allowed to see

    def of(self, type_url: str) -> Watched:
        return self.types.setdefault(type_url, Watched(whole=self.state and type_url in WHOLE))

    def may_see(self, view: View) -> None:
        for type_url, named in view.items():
            for name, resource in named.items():
                self.views.setdefault((type_url, name), set()).add(resource.version)
            if type_url in self.types:
                # What was gone for a moment may be sent anew.
                watched = self.types[type_url]
                watched.again |= {name for name in watched.sent if name not in named}

    # ---- what the client says

    def asked(
        self,
        type_url: str,
        names: Iterable[str],
        drop: Iterable[str],
        nonce: str,
        *,
        error: bool,
        holds: Mapping[str, str] | None = None,
    ) -> None:
        watched, names, drop = self.of(type_url), list(names), list(drop)
        first = not watched.begun
        watched.begun = True
        answers = bool(nonce) and not first and nonce == watched.nonce and watched.open
        if answers:
            self._answered(watched, error=error)
        before = set(watched.names), watched.wildcard
        if self.state:
            self._replace(watched, type_url, names)
        else:
            self._change(watched, type_url, names, drop, first=first)
            watched.owed |= {n for n in names if n != "*"} & watched.names
            if holds is not None and first:
                watched.sent = {n: v for n, v in holds.items() if watched.wants(n)}
                watched.held = dict(watched.sent)
                if type_url in WHOLE:
                    watched.owed -= watched.sent.keys()
                    watched.again |= watched.sent.keys()
        changed = before != (watched.names, watched.wildcard)
        if self.state:
            added = watched.names - before[0]
            repeated = not changed and not answers and (not nonce or nonce == watched.nonce or first)
            watched.owed |= added
            watched.again |= added | (watched.names if repeated else set())
        watched.again |= watched.owed | (set(drop) if watched.wildcard else set())
        if first or changed or "*" in names:
            watched.whole_owed = True
            if "*" in names:
                watched.again |= watched.sent.keys()
        for known in (watched.sent, watched.held):
            for name in [name for name in known if not watched.wants(name)]:
                del known[name]
                watched.again.add(name)
        if self.state:
            watched.owed &= watched.names
        else:
            # A name that is dropped while everything is wanted is answered: it is still there, or it is not.
            watched.owed |= before[0] - watched.names if watched.wildcard else set()
            watched.owed = {name for name in watched.owed if watched.wants(name)}

    def _replace(self, watched: Watched, type_url: str, names: list[str]) -> None:
        if not names and not watched.ever_named:
            watched.wildcard = type_url in WHOLE
            return
        watched.ever_named = True
        watched.names, watched.wildcard = set(names) - {"*"}, "*" in names

    def _change(self, watched: Watched, type_url: str, names: list[str], drop: list[str], *, first: bool) -> None:
        if first and not names:
            watched.wildcard = type_url in WHOLE
        watched.wildcard = (watched.wildcard or "*" in names) and "*" not in drop
        watched.names = (watched.names | set(names)) - set(drop) - {"*"}

    def _answered(self, watched: Watched, *, error: bool) -> None:
        watched.open, watched.refused = False, error
        if error:
            watched.sent |= dict.fromkeys((n for n in watched.carried if watched.wants(n)), REFUSED)
            # One by one to find the bad one, and the removals once more; the observer does not count them.
            several = len(watched.carried) + len(watched.taken) > 1
            watched.again |= (watched.carried.keys() | watched.taken) if several and not self.state else set()
            return
        taken = {n: v for n, v in watched.carried.items() if watched.wants(n)}
        watched.held = taken if watched.whole else watched.held | taken
        for name in watched.taken:
            watched.held.pop(name, None)

    def retried(self) -> None:
        for watched in self.types.values():
            watched.again |= {name for name, version in watched.sent.items() if version == REFUSED}
            watched.whole_owed |= watched.refused

    # ---- what the server says

    def heard(self, type_url: str, said: Said, view: View) -> None:
        """Raises AssertionError for a response that must not be."""
        watched, now = self.of(type_url), view.get(type_url, {})
        content = dict(text.split("@") for text in said.content)
        assert watched.begun, "a type that nobody asked for"
        assert not watched.open, "a second response while one waits for its answer"
        assert said.nonce, "every response has a nonce"
        assert said.nonce not in self.seen_nonces, "a nonce is used once"
        assert len(content) == len(said.content), "no name twice"
        self._check_content(type_url, watched, content, view)
        whole = watched.whole
        gone = set(said.removed) if not whole else watched.sent.keys() - content.keys()
        errors = {name for name, _ in said.errors}
        assert not errors & content.keys(), "either there, or not"
        assert errors <= watched.names, "errors are for names that were asked for"
        assert not (gone | errors) & now.keys(), "what is there is not called gone"
        if not whole:
            for name, version in content.items():
                fresh = watched.sent.get(name) not in (version, REFUSED)
                mended = watched.sent.get(name) == REFUSED and watched.carried.get(name) != version
                assert fresh or mended or name in watched.again, f"{name}@{version} again, for no reason"
        elif content == {n: v for n, v in watched.sent.items() if n in content} and not gone and not errors:
            assert watched.whole_owed or watched.again, "the same state again, for no reason"
        self._book(type_url, watched, content, gone | errors, said)

    def _check_content(self, type_url: str, watched: Watched, content: dict[str, str], view: View) -> None:
        now = view.get(type_url, {})
        for name, version in content.items():
            assert version in self.views.get((type_url, name), ()), "something that this client may not see"
            assert watched.wants(name), "something that it did not ask for"
            if name in now:
                assert version == now[name].version, "the newest state, or none"
            else:
                assert self.state, "something that is gone"
                assert type_url in WHOLE, "something that is gone"
        if type_url == SECRET:
            assert len(content) <= 1, "a bad secret spoils its neighbours"
        if type_url == LISTENER and any(watched.sent.get(name) != version for name, version in content.items()):
            for earlier in (CLUSTER, ENDPOINT, SECRET):
                waits = self.types.get(earlier, Watched())
                for name, resource in view.get(earlier, {}).items():
                    known = waits.sent.get(name) in (resource.version, REFUSED)
                    assert known or not waits.wants(name), f"a listener before {earlier} {name}"

    def _book(self, type_url: str, watched: Watched, content: dict[str, str], gone: set[str], said: Said) -> None:
        self.seen_nonces.add(said.nonce)
        watched.nonce, watched.open = said.nonce, True
        watched.carried, watched.taken = dict(content), set(gone)
        watched.sent |= content
        for name in gone:
            watched.sent.pop(name, None)
        watched.owed -= content.keys() | gone
        watched.again -= content.keys() | gone
        watched.whole_owed = False
        if content:
            for child in CHILDREN.get(type_url, ()):
                if child in self.types:
                    self.types[child].again |= self.types[child].sent.keys()
