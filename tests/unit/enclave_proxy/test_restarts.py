# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from enclave_proxy.restarts import FIRST_DELAY, LONGEST_DELAY, MAX_RESTARTS, STEADY, WINDOW, RestartPolicy, Restarts


def longest() -> float:
    return 1.0


@pytest.mark.parametrize(
    ("policy", "after_success", "after_failure"),
    [(RestartPolicy.NEVER, False, False), (RestartPolicy.ON_FAILURE, False, True), (RestartPolicy.ALWAYS, True, True)],
)
def test_the_policy_decides_by_the_status(policy: RestartPolicy, after_success: bool, after_failure: bool) -> None:
    again = [Restarts(policy, longest).after(status, ran=1, now=0) is not None for status in (0, 3)]
    assert again == [after_success, after_failure]


def test_delays_grow_and_are_bounded() -> None:
    restarts = Restarts(RestartPolicy.ALWAYS, longest)
    delays = [restarts.after(1, ran=0, now=n) for n in range(MAX_RESTARTS)]
    assert delays[:4] == [FIRST_DELAY, 2 * FIRST_DELAY, 4 * FIRST_DELAY, 8 * FIRST_DELAY]
    assert delays[-1] == LONGEST_DELAY


def test_no_delay_is_almost_none() -> None:
    assert Restarts(RestartPolicy.ALWAYS, lambda: 0.0).after(1, ran=0, now=0) == FIRST_DELAY / 2


def test_an_app_that_ran_well_is_started_again_soon() -> None:
    restarts = Restarts(RestartPolicy.ALWAYS, longest)
    for now in range(5):
        restarts.after(1, ran=0, now=now)
    assert restarts.after(1, ran=STEADY, now=STEADY + 5) == FIRST_DELAY


def test_an_app_that_fails_again_and_again_is_given_up() -> None:
    restarts = Restarts(RestartPolicy.ON_FAILURE, longest)
    assert all(restarts.after(1, ran=0, now=n) for n in range(MAX_RESTARTS))
    assert not restarts.exhausted
    assert restarts.after(1, ran=0, now=MAX_RESTARTS) is None
    assert restarts.exhausted


def test_old_restarts_are_forgotten() -> None:
    restarts = Restarts(RestartPolicy.ALWAYS, longest)
    for now in range(3 * MAX_RESTARTS):
        assert restarts.after(1, ran=0, now=now * WINDOW / (MAX_RESTARTS - 1)) is not None
