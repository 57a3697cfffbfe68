# SPDX-License-Identifier: Apache-2.0
"""Every state and every input: a client that may say anything in any order, a view that changes under it, and an
observer that objects to whatever the protocol does not allow. In the end the client answers, and holds the view."""

from __future__ import annotations

from typing import ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sds.discovery import View
from sds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET
from tests.kit.discovery import LONG, SHORT, IncrementalClient, Said, SotwClient, resource
from tests.kit.discovery_model import REFUSED, WHOLE, Observer

TYPES = (CLUSTER, ENDPOINT, SECRET, LISTENER, ROUTE)
NAMES = ("a", "b", "c")
types = st.sampled_from(TYPES)
names = st.sets(st.sampled_from(NAMES))
asked = st.lists(st.sampled_from((*NAMES, "missing", "*")), max_size=3)
content = st.dictionaries(st.sampled_from(NAMES), st.sampled_from("123"), max_size=3)


class AnyClient(RuleBasedStateMachine):
    """Of one variant; see the two classes at the end."""

    client_class: ClassVar[type[SotwClient | IncrementalClient]]
    state: ClassVar[bool]

    @initialize(
        wanted=st.dictionaries(types, st.sampled_from([[], ["*"], ["a"], ["a", "b", "missing"]]), min_size=2),
        content=st.dictionaries(st.sampled_from(NAMES), st.sampled_from("12"), min_size=1),
        settled=st.booleans(),
    )
    def begin(self, wanted: dict[str, list[str]], content: dict[str, str], settled: bool) -> None:
        """A client that has asked for something that is there, and maybe has it."""
        self.view: View = {t: {n: resource(t, n, v, "a b") for n, v in content.items()} for t in TYPES}
        self.streams = 0
        self.open_stream()
        for type_url, names in wanted.items():
            self.say(type_url, names, [], "", error=False)
        while settled and self.take():
            self.answer_everything(good=True)

    def open_stream(self) -> None:
        self.streams += 1
        self.client = self.client_class(self.view)
        self.client.stream._nonce_prefix = f"{self.streams}-"
        self.observer = Observer(state=self.state)
        self.observer.may_see(self.view)
        self.waiting: list[Said] = []
        self.old_nonces = ["", "nonsense"]

    # ---- the mesh

    @rule(type_url=types, content=content, mentions=names)
    def change(self, type_url: str, content: dict[str, str], mentions: set[str]) -> None:
        text = " ".join(sorted(mentions))
        self.view = {**self.view, type_url: {n: resource(type_url, n, v, text) for n, v in content.items()}}
        self.observer.may_see(self.view)
        self.client.stream.update(self.view)

    @rule()
    def rebuild(self) -> None:
        """The same content in other objects."""
        self.view = {t: dict(named) for t, named in self.view.items()}
        self.client.stream.update(self.view)

    @rule()
    def retry(self) -> None:
        self.observer.retried()
        self.client.stream.retry_refused()

    # ---- the client

    @rule(type_url=types, names=asked, drop=asked, old=st.integers(0, 5), error=st.booleans())
    def say_anything(self, type_url: str, names: list[str], drop: list[str], old: int, error: bool) -> None:
        """Any request: names, and an answer to something or nothing."""
        self.say(type_url, names, drop, self.old_nonces[old % len(self.old_nonces)], error=error)

    @rule(good=st.booleans(), number=st.integers(0, 4), more=asked)
    @precondition(lambda self: self.waiting)
    def answer(self, good: bool, number: int, more: list[str]) -> None:
        """An answer in time, of any type that waits for one, maybe with other names."""
        said = self.waiting[number % len(self.waiting)]
        self.reply(said, error=not good, more=more)

    @rule(good=st.booleans())
    @precondition(lambda self: self.waiting)
    def answer_everything(self, good: bool) -> None:
        """Whatever waits for an answer is taken, or all of it refused."""
        for said in list(self.waiting):
            self.reply(said, error=not good, more=[])

    @rule(count=st.integers(1, 4))
    def hear(self, count: int) -> None:
        for _ in range(count):
            self.take()

    @rule(hold=st.booleans())
    def reconnect(self, hold: bool) -> None:
        """What was acknowledged is still held; the server knows nothing of the stream before."""
        held = {t: dict(watched.held) for t, watched in self.observer.types.items()}
        wanted = {t: (set(w.names), w.wildcard) for t, w in self.observer.types.items()}
        self.open_stream()
        for type_url, (names, wildcard) in wanted.items():
            everything = sorted(names) + ["*"] * wildcard
            if everything:
                self.say(type_url, everything, [], "", error=False, holds=held[type_url] if hold else None)

    # ---- how it is said

    def say(
        self,
        type_url: str,
        names: list[str],
        drop: list[str],
        nonce: str,
        *,
        error: bool,
        holds: dict[str, str] | None = None,
    ) -> None:
        text = "no" if error else None
        self.observer.asked(type_url, names, drop, nonce, error=error, holds=None if self.state else holds)
        if isinstance(self.client, SotwClient):
            self.client.ask(LONG[type_url], *names, nonce=nonce, error=text)
        else:
            self.client.ask(LONG[type_url], *names, drop=drop, nonce=nonce, error=text, holds=holds)
        self.waiting = [said for said in self.waiting if (SHORT[said.type], said.nonce) != (type_url, nonce)]

    def reply(self, said: Said, *, error: bool, more: list[str]) -> None:
        self.waiting.remove(said)
        type_url = SHORT[said.type]
        watched = self.observer.of(type_url)
        names = more or (sorted(watched.names) + ["*"] * watched.wildcard if self.state and watched.ever_named else [])
        self.say(type_url, names, [], said.nonce, error=error)

    def take(self) -> bool:
        if (said := self.client.hear()) is None:
            return False
        self.observer.heard(SHORT[said.type], said, self.view)
        self.waiting.append(said)
        self.old_nonces.append(said.nonce)
        return True

    # ---- always

    @invariant()
    def what_was_looked_up_before_is_still_so(self) -> None:
        for channel in self.client.stream._order:
            known = list(channel.changes()), list(channel.removals())
            channel._stale = True
            assert (list(channel.changes()), list(channel.removals())) == known

    @invariant()
    def the_status_agrees_with_what_was_seen(self) -> None:
        for type_url, status in self.client.stream.status.items():
            watched = self.observer.of(type_url)
            assert status.awaiting_ack == watched.open
            assert (set(status.subscribed), status.wildcard) == (watched.names, watched.wildcard)
            assert set(status.acked) <= set(watched.held), "nothing counts as taken that was not"

    def teardown(self) -> None:
        """Time passes, there is one last change, and from now on the client answers everything with an ACK."""
        self.view = {t: {n: resource(t, n, "final", "") for n in named} for t, named in self.view.items()}
        self.observer.may_see(self.view)
        self.client.stream.update(self.view)
        self.retry()
        for _ in range(300):
            if self.waiting:
                self.reply(self.waiting[0], error=False, more=[])
            elif not self.take():
                break
        else:
            raise AssertionError("client and server never come to rest")
        for type_url, watched in self.observer.types.items():
            expected = {n: r.version for n, r in self.view[type_url].items() if watched.wants(n)}
            # State of the world cannot take back what is no listener and no cluster.
            told = not self.state or type_url in WHOLE
            held = {n: v for n, v in watched.held.items() if told or n in self.view[type_url]}
            assert held == expected, type_url
            assert REFUSED not in {watched.sent.get(name) for name in expected}
            assert not watched.owed, "every name that was asked for was answered"


class AnyIncrementalClient(AnyClient):
    client_class = IncrementalClient
    state = False


class AnyStateOfTheWorldClient(AnyClient):
    client_class = SotwClient
    state = True


TestIncremental = AnyIncrementalClient.TestCase
TestStateOfTheWorld = AnyStateOfTheWorldClient.TestCase
TestIncremental.settings = TestStateOfTheWorld.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None
)
