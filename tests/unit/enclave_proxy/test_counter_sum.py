# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from enclave_proxy.counter_sum import of_the_dead, summed
from enclave_proxy.counters import Refusal, RelayCounters


def counted(accepted: int, active: int, applied: int = 1) -> RelayCounters:
    counters = RelayCounters(applied=applied, bugs=1)
    one = counters.of("in")
    one.accepted, one.active, one.refused[Refusal.LIMIT] = accepted, active, accepted
    return counters


def test_like_is_added_to_like_and_configurations_are_counted_once() -> None:
    other = counted(3, 1)
    other.of("out").received = 9
    other.of("in").refused[Refusal.TIMEOUT] = 1
    total = summed([counted(4, 2), other])
    assert (total.of("in").accepted, total.of("in").active, total.of("out").received) == (7, 3, 9)
    assert total.of("in").refused == {Refusal.LIMIT: 7, Refusal.TIMEOUT: 1}
    assert (total.applied, total.bugs) == (1, 2)


def test_a_sum_is_nobodys_own() -> None:
    own = counted(4, 2)
    summed([own, counted(1, 1)]).of("in").refused[Refusal.LIMIT] = 99
    summed([own]).of("in").accepted = 99
    assert own == counted(4, 2)


def test_the_dead_have_counted_but_have_nothing_open() -> None:
    remains = of_the_dead(counted(4, 2))
    assert (remains.of("in").accepted, remains.of("in").active) == (4, 0)
