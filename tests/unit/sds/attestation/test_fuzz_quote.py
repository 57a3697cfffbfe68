# SPDX-License-Identifier: Apache-2.0
"""The fuzz target over genuine quotes, mutations of them, and noise."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.fuzz_quote import SEEDS, fuzz_one

# The cryptography library warns of odd certificates (a negative serial, a country of 21 letters), but reads them.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A genuine quote with a few bytes changed, a piece of another one in it, or its end missing."""
    quote = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 3))):
        quote[draw(st.integers(0, len(quote) - 1))] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        other, at = draw(st.sampled_from(SEEDS)), draw(st.integers(0, len(quote)))
        size = draw(st.integers(0, 700))
        quote[at : at + size] = other[at : at + size]
    return bytes(quote[: draw(st.sampled_from([len(quote), draw(st.integers(0, len(quote)))]))])


@settings(max_examples=500, deadline=None)
@given(mutated())
def test_no_mutation_verifies_as_something_else(data: bytes) -> None:
    fuzz_one(data)


@given(st.binary(max_size=2000))
def test_no_noise_breaks_the_verifier(data: bytes) -> None:
    fuzz_one(data)


def test_the_seeds_are_genuine() -> None:
    for seed in SEEDS:
        fuzz_one(seed)
