# SPDX-License-Identifier: Apache-2.0
"""The fuzz targets of requests and secrets over genuine ones, mutations of them, and noise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import fuzz_csr, fuzz_secret

Target = Callable[[bytes], None]
SEEDS = [(fuzz_csr.fuzz_one, seed) for seed in fuzz_csr.SEEDS] + [
    (fuzz_secret.fuzz_one, seed) for seed in fuzz_secret.SEEDS
]


@st.composite
def mutated(draw: st.DrawFn) -> tuple[Target, bytes]:
    """A genuine seed with a few bytes changed, cut out or doubled."""
    target, seed = draw(st.sampled_from(SEEDS))
    data = bytearray(seed)
    for _ in range(draw(st.integers(0, 3))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    at, size = draw(st.integers(0, len(data))), draw(st.integers(0, 64))
    match draw(st.sampled_from(["keep", "cut", "double", "end"])):
        case "cut":
            del data[at : at + size]
        case "double":
            data[at:at] = data[at : at + size]
        case "end":
            del data[at:]
    return target, bytes(data)


@settings(max_examples=400, deadline=None)
@given(mutated())
def test_no_mutation_breaks_a_parser(case: tuple[Target, bytes]) -> None:
    target, data = case
    target(data)


@settings(deadline=None)
@given(st.binary(max_size=500))
def test_no_noise_breaks_a_parser(data: bytes) -> None:
    fuzz_csr.fuzz_one(data)
    fuzz_secret.fuzz_one(data)


@pytest.mark.parametrize(("target", "seed"), SEEDS)
def test_the_seeds_are_accepted(target: Target, seed: bytes) -> None:
    target(seed)
