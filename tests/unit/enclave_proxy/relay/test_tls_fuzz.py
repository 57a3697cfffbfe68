# SPDX-License-Identifier: Apache-2.0
"""The fuzz target of the relay's TLS over its seeds and random scripts, and that it gets through to the app."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import fuzz_relay_tls
from tests.fuzz.fuzz_relay_tls import PLAYS, fuzz_one, seeds


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> Iterator[fuzz_relay_tls.World]:
    """A world in which no honest peer is cut off because the machine is busy."""
    made = fuzz_relay_tls.make_world(20.0)
    monkeypatch.setattr(fuzz_relay_tls, "world", lambda: made)
    yield made
    fuzz_relay_tls.end_world(made)


@pytest.fixture(scope="module", autouse=True)
def ended() -> Iterator[None]:
    yield
    fuzz_relay_tls.end_world(fuzz_relay_tls.world())
    fuzz_relay_tls.world.cache_clear()


def test_the_seeds_reach_the_app_as_the_allowed_peer_of_both_versions_and_of_an_odd_certificate(
    patient: fuzz_relay_tls.World,
) -> None:
    for seed in seeds():
        fuzz_one(seed)
    counters = patient.relay.counters.of("in")
    assert counters.established == 3  # and one with CA:TRUE is not
    assert {"plaintext", "no_certificate", "untrusted", "aborted"} <= set(counters.refused)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(PLAYS) - 1), st.binary(max_size=200))
def test_random_scripts(play: int, data: bytes) -> None:
    fuzz_one(bytes([play]) + data)
