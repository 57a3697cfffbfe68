# SPDX-License-Identifier: Apache-2.0
"""Which endpoint gets the next connection, whatever happened before."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from enclave_proxy.endpoints import Balancer, is_ipv6
from enclave_proxy.relay_config import TcpAddress
from tests.unit.enclave_proxy.test_outliers import Clock

ALL = [TcpAddress(host, 1) for host in ("10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2", "fd00::3")]
A, B, C = ALL[:3]


def balancer(*addresses: TcpAddress, seed: int = 1) -> Balancer:
    made = Balancer(Clock(), random.Random(seed).random)
    made.update(addresses)
    return made


def loads(made: Balancer) -> dict[TcpAddress, int]:
    return {status.address: status.in_flight for status in made.status()}


def test_two_idle_endpoints_take_turns() -> None:
    made = balancer(A, B)
    chosen = []
    for _ in range(6):
        address = made.choose()
        assert address is not None
        chosen.append(address)
        made.release(address)
    assert chosen in ([A, B] * 3, [B, A] * 3)


def test_connections_that_stay_are_spread_almost_evenly() -> None:
    """Two choices keep the fullest endpoint within a few of the mean, where one random choice would be 30 apart."""
    made = balancer(*(TcpAddress("10.0.0.1", port) for port in range(1, 51)))
    for _ in range(5000):
        assert made.choose() is not None
    counts = loads(made).values()
    assert max(counts) - min(counts) <= 8


def test_a_full_endpoint_gets_nothing_while_another_has_less() -> None:
    made = balancer(A, B)
    made.update([A])
    for _ in range(10):
        assert made.choose() == A
    made.update([A, B])
    assert [made.choose() for _ in range(10)] == [B] * 10


def test_an_ejected_endpoint_is_chosen_only_when_all_others_were_tried() -> None:
    made = balancer(A, B, C)
    while not made.failed(A):
        pass
    assert {made.choose() for _ in range(50)} == {B, C}
    assert made.choose(tried={B}) == C
    assert made.choose(tried={B, C}) == A


def test_the_same_address_twice_is_one_endpoint() -> None:
    assert loads(balancer(A, A, B)) == {A: 0, B: 0}


def test_thousands_of_endpoints_are_chosen_from_without_looking_at_all() -> None:
    looked_at = 0

    def counted() -> float:
        nonlocal looked_at
        looked_at += 1
        return source.random()

    source = random.Random(3)
    made = Balancer(Clock(), counted)
    made.update(TcpAddress(f"10.0.{n >> 8}.{n & 255}", 1) for n in range(10_000))
    chosen = Counter(made.choose() for _ in range(1000))
    assert looked_at <= 2100
    assert max(chosen.values()) <= 2


class Machine(RuleBasedStateMachine):
    """Endpoints come and go, dials end in every way, time passes. The model is what is held."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.balancer = Balancer(self.clock, random.Random(7).random)
        self.current: set[TcpAddress] = set()
        self.held: list[TcpAddress] = []

    @rule(addresses=st.lists(st.sampled_from(ALL)))
    def update(self, addresses: list[TcpAddress]) -> None:
        before = {s.address: s for s in self.balancer.status()}
        stayed = self.current & set(addresses)
        self.balancer.update(addresses)
        self.current = set(addresses)
        after = {s.address: s for s in self.balancer.status()}
        for address in stayed:
            assert (after[address].in_flight, after[address].failures) == (
                before[address].in_flight,
                before[address].failures,
            )

    @rule(tried=st.frozensets(st.sampled_from(ALL)), ipv6=st.sampled_from([None, True, False]))
    def choose(self, tried: frozenset[TcpAddress], ipv6: bool | None) -> None:
        out = {s.address for s in self.balancer.status() if s.ejected_for}
        chosen = self.balancer.choose(tried, ipv6)
        possible = self.current - tried
        assert (chosen is None) == (not possible)
        if chosen is None:
            return
        self.held.append(chosen)
        best = {a for a in possible - out if ipv6 is None or is_ipv6(a) == ipv6} or possible - out or possible
        assert chosen in best
        if len(best) <= 2:  # then both have been looked at
            assert self.held.count(chosen) - 1 == min((self.held[:-1]).count(a) for a in best)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), times=st.integers(1, 6))
    def fail(self, data: st.DataObject, times: int) -> None:
        address = data.draw(st.sampled_from(self.held))
        for _ in range(times):
            self.balancer.failed(address)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        address = data.draw(st.sampled_from(self.held))
        self.balancer.succeeded(address)
        assert all(s.ejected_for == s.failures == 0 for s in self.balancer.status() if s.address == address)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        address = data.draw(st.sampled_from(self.held))
        self.held.remove(address)
        self.balancer.release(address)

    @rule(seconds=st.sampled_from([0.1, 5.0, 31.0, 400.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def loads_are_what_is_held(self) -> None:
        held = Counter(self.held)
        assert loads(self.balancer) == {a: held[a] for a in self.current | set(held)}

    @invariant()
    def at_most_half_are_ejected(self) -> None:
        assert self.balancer.ejected <= len(self.current) // 2

    def teardown(self) -> None:
        for address in self.held:
            self.balancer.release(address)
        self.balancer.update(())
        assert self.balancer.status() == ()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
