# SPDX-License-Identifier: Apache-2.0
"""The fuzz target of the relay's TLS over its seeds and random scripts, and that it gets through to the app."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.fuzz_relay_tls import PLAYS, fuzz_one, seeds, world


@pytest.fixture(scope="module", autouse=True)
def ended() -> Iterator[None]:
    yield
    made = world()
    made.loop.run_until_complete(made.relay.close())
    made.loop.run_until_complete(made.app.__aexit__())
    made.loop.close()
    world.cache_clear()


def test_the_seeds_reach_the_app_as_the_allowed_peer_of_both_versions_and_of_an_odd_certificate() -> None:
    counters = world().relay.counters.of("in")
    before = counters.established
    for seed in seeds():
        fuzz_one(seed)
    assert counters.established - before == 3  # and one with CA:TRUE is not
    assert {"plaintext", "no_certificate", "untrusted", "aborted"} <= set(counters.refused)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(PLAYS) - 1), st.binary(max_size=200))
def test_random_scripts(play: int, data: bytes) -> None:
    fuzz_one(bytes([play]) + data)
