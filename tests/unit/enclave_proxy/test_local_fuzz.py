# SPDX-License-Identifier: Apache-2.0
"""The fuzz target of the local sockets over random scripts, and that it gets where the secrets are."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.fuzz_local_sockets import PREFACE, SEEDS, SETTINGS, frame, fuzz_one, into_connection, key, loop, script


@pytest.mark.parametrize("header", [True, False])
def test_the_first_seed_gets_an_identity_with_the_security_header_only(header: bool) -> None:
    data = PREFACE + frame(SETTINGS, 0, 0) + script(SEEDS[0], header=header)
    assert (key() in loop().run_until_complete(into_connection(data))) is header


@pytest.mark.parametrize("seed", SEEDS)
def test_the_seeds_themselves(seed: bytes) -> None:
    fuzz_one(seed)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_random_scripts(data: bytes) -> None:
    fuzz_one(data)
