# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

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
    process = counted(4, 2)
    process.cpu["2"], process.endpoints["out"], process.ejected["out"] = 1.5, 3, 1
    remains = of_the_dead(process)
    assert (remains.of("in").accepted, remains.of("in").active) == (4, 0)
    assert (remains.cpu, remains.endpoints, remains.ejected) == ({"2": 1.5}, {}, {})


def test_a_process_that_was_started_again_goes_on_counting_its_cpu_time() -> None:
    own, dead, again = (RelayCounters(cpu=cpu) for cpu in ({"1": 9.0}, {"2": 1.5}, {"2": 0.5}))
    assert summed([own, dead, again]).cpu == {"1": 9.0, "2": 2.0}


def test_endpoints_that_all_processes_know_are_told_once() -> None:
    own = RelayCounters(endpoints={"a": 3, "b": 1}, ejected={"a": 1})
    other = RelayCounters(endpoints={"a": 3}, ejected={"a": 2})
    total = summed([own, other])
    assert (total.endpoints, total.ejected) == ({"a": 3, "b": 1}, {"a": 2})


def test_handshake_times_are_added_edge_by_edge() -> None:
    one, other = RelayCounters(), RelayCounters()
    for seconds in (0.0005, 0.001, 0.3):
        one.of("in").handshake_times.add(seconds)
    other.of("in").handshake_times.add(11)
    times = summed([one, other]).of("in").handshake_times
    assert times.seconds == pytest.approx(11.3015)
    buckets = dict(times.buckets())
    assert [buckets[edge] for edge in ("0.001", "0.0025", "0.25", "0.5", "10.0", "+Inf")] == [2, 2, 2, 3, 3, 4]
