# SPDX-License-Identifier: Apache-2.0
"""The fuzz target over random bytes and damaged conversations."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.fuzz_discovery import fuzz_one, seeds


def test_the_seeds_themselves() -> None:
    for seed in seeds():
        fuzz_one(seed)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_random_bytes(data: bytes) -> None:
    fuzz_one(data)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(seeds()),
    st.lists(
        st.tuples(st.integers(0, 500), st.integers(0, 255), st.sampled_from(["flip", "cut", "insert"])), max_size=6
    ),
)
def test_damaged_conversations(seed: bytes, damage: list[tuple[int, int, str]]) -> None:
    data = bytearray(seed)
    for position, value, kind in damage:
        at = position % (len(data) + 1)
        if kind == "flip" and at < len(data):
            data[at] ^= value
        elif kind == "cut":
            del data[at : at + value % 8]
        elif kind == "insert":
            data[at:at] = bytes([value])
    fuzz_one(bytes(data))
