# SPDX-License-Identifier: Apache-2.0
"""Whatever the schedule of changes, ACKs, NACKs, subscriptions and reconnects: in the end the client holds the view."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from sds.discovery import DeltaStream, SotwStream, View
from sds.discovery_client import DeltaClient
from sds.resources import CLUSTER, ENDPOINT, LISTENER, SECRET
from sds.wire import discovery_pb2
from tests.kit.discovery import resource

FULL = (CLUSTER, LISTENER)
NAMED = (ENDPOINT, SECRET)
NAMES = ("a", "b", "c")

contents = st.fixed_dictionaries(
    {t: st.dictionaries(st.sampled_from(NAMES), st.sampled_from("123"), max_size=3) for t in (*FULL, *NAMED)}
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("view"), contents),
        st.tuples(st.just("answer"), st.booleans()),
        st.tuples(st.just("names"), st.tuples(st.sampled_from(NAMED), st.sets(st.sampled_from(NAMES)))),
        st.tuples(st.just("send"), st.none()),
        st.tuples(st.just("reconnect"), st.none()),
    ),
    max_size=25,
)


def make_view(content: dict[str, dict[str, str]]) -> View:
    mentions = " ".join(NAMES)
    return {t: {n: resource(t, n, v, mentions) for n, v in named.items()} for t, named in content.items()}


def final_view(content: dict[str, dict[str, str]]) -> View:
    """Versions that no client has seen or refused."""
    return make_view({t: dict.fromkeys(named, "final") for t, named in content.items()})


class Incremental:
    """The real client against the real server; `answer(False)` refuses."""

    def __init__(self) -> None:
        self.client = DeltaClient(discovery_pb2.Node(id="x"))
        for type_url in FULL:
            self.client.subscribe(type_url, ["*"])
        for type_url in NAMED:
            self.client.subscribe(type_url, ["a"])
        self.view: View = {}
        self.streams = 0
        self.reconnect()

    def reconnect(self) -> None:
        self.streams += 1
        self.stream = DeltaStream(identifier="t", nonce_prefix=f"{self.streams}-")
        self.stream.update(self.view)
        self.client.connected()

    def names(self, type_url: str, names: set[str]) -> None:
        self.client.want(type_url, names)

    def send(self) -> bool:
        if (body := self.client.take()) is None:
            return False
        self.stream.receive_bytes(body)
        return True

    def answer(self, good: bool) -> bool:
        if (body := self.stream.take()) is None:
            return False
        update = self.client.receive_bytes(body)
        if good:
            self.client.ack(update)
        else:
            self.client.nack(update, "no")
        return True

    def holds(self, type_url: str) -> dict[str, str]:
        return dict(self.client.held(type_url))

    def wants(self, type_url: str, name: str) -> bool:
        return type_url in FULL or name in self.client.wanted(type_url)


class StateOfTheWorld:
    """A client as simple as the protocol allows."""

    def __init__(self) -> None:
        self.wanted: dict[str, set[str]] = {t: set() if t in FULL else {"a"} for t in (*FULL, *NAMED)}
        self.held: dict[str, dict[str, str]] = {t: {} for t in self.wanted}
        self.view: View = {}
        self.streams = 0
        self.reconnect()

    def reconnect(self) -> None:
        self.streams += 1
        self.stream = SotwStream(identifier="t", nonce_prefix=f"{self.streams}-")
        self.stream.update(self.view)
        self.nonces: dict[str, str] = {}
        self.out: list[discovery_pb2.DiscoveryRequest] = []
        for type_url in self.wanted:
            self.ask(type_url)

    def ask(self, type_url: str, error: bool = False) -> None:
        names = sorted(self.wanted[type_url])
        request = discovery_pb2.DiscoveryRequest(
            type_url=type_url, resource_names=names, response_nonce=self.nonces.get(type_url, "")
        )
        if error:
            request.error_detail.code = 13
        self.out.append(request)

    def names(self, type_url: str, names: set[str]) -> None:
        self.wanted[type_url] = names
        self.held[type_url] = {n: v for n, v in self.held[type_url].items() if n in names}
        self.ask(type_url)

    def send(self) -> bool:
        if not self.out:
            return False
        self.stream.receive(self.out.pop(0))
        return True

    def answer(self, good: bool) -> bool:
        if (body := self.stream.take()) is None:
            return False
        response = discovery_pb2.DiscoveryResponse.FromString(body)
        self.nonces[response.type_url] = response.nonce
        if good:
            found = dict(r.value.decode().partition("<")[0].split("@") for r in response.resources)
            if response.type_url in FULL:
                self.held[response.type_url] = found
            else:
                wanted = self.wanted[response.type_url]
                self.held[response.type_url].update({n: v for n, v in found.items() if n in wanted})
        self.ask(response.type_url, error=not good)
        return True

    def holds(self, type_url: str) -> dict[str, str]:
        return self.held[type_url]

    def wants(self, type_url: str, name: str) -> bool:
        return type_url in FULL or name in self.wanted[type_url]


Machine = Incremental | StateOfTheWorld


def run(machine: Machine, script: list[tuple[str, object]]) -> None:
    for what, argument in script:
        match what, argument:
            case "view", dict():
                machine.view = make_view(argument)
                machine.stream.update(machine.view)
            case "answer", bool():
                machine.answer(argument)
            case "names", (str() as type_url, set() as names):
                machine.names(type_url, names)
            case "send", _:
                machine.send()
            case "reconnect", _:
                machine.reconnect()


def drain(machine: Machine) -> int:
    """Deliver until nobody has anything to say; the number of pushes. A loop without end fails here."""
    pushes = 0
    for _ in range(500):
        if not machine.send():
            if not machine.answer(True):
                return pushes
            pushes += 1
    raise AssertionError("server and client never come to rest")


@settings(max_examples=150, deadline=None)
@given(steps, contents)
def test_incremental_clients_converge(script: list[tuple[str, object]], last: dict[str, dict[str, str]]) -> None:
    converges(Incremental(), script, last, removals=True)


@settings(max_examples=150, deadline=None)
@given(steps, contents)
def test_state_of_the_world_clients_converge(script: list[tuple[str, object]], last: dict[str, dict[str, str]]) -> None:
    converges(StateOfTheWorld(), script, last, removals=False)


@settings(max_examples=200, deadline=None)
@given(steps, st.randoms(use_true_random=False), contents, st.sets(st.sampled_from(NAMES)))
def test_both_variants_end_alike_whatever_the_order_of_what_happened(
    script: list[tuple[str, object]], random: Random, last: dict[str, dict[str, str]], wanted: set[str]
) -> None:
    """The same changes, subscriptions, answers and reconnects, in two orders: one wish at the end, one outcome."""
    other = list(script)
    random.shuffle(other)
    end: list[tuple[str, object]] = [("names", (type_url, wanted)) for type_url in NAMED]
    outcomes = []
    for kind in (Incremental, StateOfTheWorld):
        for order in (script, other):
            machine = kind()
            converges(machine, [*order, *end], last, removals=kind is Incremental)
            view = machine.view
            outcomes.append({t: {n: v for n, v in machine.holds(t).items() if n in view[t]} for t in (*FULL, *NAMED)})
    assert all(outcome == outcomes[0] for outcome in outcomes)


def converges(
    machine: Machine, script: list[tuple[str, object]], last: dict[str, dict[str, str]], *, removals: bool
) -> None:
    run(machine, script)
    machine.view = final_view(last)
    machine.stream.update(machine.view)
    drain(machine)
    machine.stream.retry_refused()  # after a long time
    drain(machine)
    for type_url in (*FULL, *NAMED):
        expected = {n: r.version for n, r in machine.view[type_url].items() if machine.wants(type_url, n)}
        held = machine.holds(type_url)
        if type_url in NAMED and not removals:
            # State of the world cannot take a secret or endpoints back: that goes with the listener or cluster.
            held = {n: v for n, v in held.items() if n in machine.view[type_url]}
        assert held == expected, type_url
    assert not machine.stream.pending()
    assert drain(machine) == 0, "nothing is pushed when nothing changed"
