# SPDX-License-Identifier: Apache-2.0
"""XOR and Shamir shares: the published vector, and the properties that make them a secret sharing."""

from __future__ import annotations

import random
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xds_server import recovery_shares as shares

VECTOR = tuple(
    bytes.fromhex(text)
    for text in (
        "b7c85d0c61888e810f6f1b3f82f244cd4dcbd38589bf09458b99d5959ab30fbf55",
        "d48275401dbf74591ea1cf4907121b68b989c4e704f6fffd243ee0104259db77fc",
        "251aab478e033c752c97c6601e655b60a1de69a1d2ac92e2964329096e94d2ded1",
    )
)


@pytest.mark.parametrize("some", [*permutations(VECTOR, 2), *permutations(VECTOR)])
def test_the_published_shares_combine_to_their_secret(some: tuple[bytes, ...]) -> None:
    assert shares.combine(some) == bytes(range(32))


def test_a_share_is_the_y_bytes_and_then_x() -> None:
    ones = shares.split(b"secret", 255, 2, random.Random(1).randbytes)
    assert [one[-1] for one in ones] == list(range(1, 256))
    assert {len(one) for one in ones} == {7}


@st.composite
def splits(draw: st.DrawFn) -> tuple[bytes, list[bytes], int]:
    count = draw(st.integers(2, 9))
    threshold = draw(st.integers(2, count))
    secret = draw(st.binary(min_size=1, max_size=40))
    rng = draw(st.randoms(use_true_random=False))
    ones = shares.split(secret, count, threshold, rng.randbytes)
    rng.shuffle(ones)
    return secret, ones, threshold


@settings(deadline=None, max_examples=25)
@given(splits())
def test_any_shares_from_the_threshold_on_give_the_secret(split: tuple[bytes, list[bytes], int]) -> None:
    secret, ones, threshold = split
    for count in range(threshold, len(ones) + 1):
        assert shares.combine(ones[:count]) == secret


@settings(deadline=None, max_examples=25)
@given(splits())
def test_fewer_shares_fit_every_secret_equally(split: tuple[bytes, list[bytes], int]) -> None:
    """With one share missing, to each value of the first byte belongs one value of the missing share."""
    _, ones, threshold = split
    known, missing = ones[: threshold - 1], ones[threshold - 1]
    values = {shares.combine([*known, bytes([y]) + missing[1:]])[0] for y in range(256)}
    assert len(values) == 256


@pytest.mark.parametrize(
    "some",
    [[], [VECTOR[0]], [VECTOR[0], VECTOR[0]], [VECTOR[0], b"\0" * 33], [VECTOR[0], VECTOR[1][1:]], [b"\1", b"\2"]],
)
def test_shares_that_cannot_belong_together_are_refused(some: list[bytes]) -> None:
    with pytest.raises(ValueError, match="share"):
        shares.combine(some)


@pytest.mark.parametrize(("count", "threshold"), [(1, 1), (2, 1), (2, 3), (256, 2)])
def test_impossible_numbers_are_refused(count: int, threshold: int) -> None:
    with pytest.raises(ValueError, match="cannot split"):
        shares.split(b"x", count, threshold, random.Random(1).randbytes)


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=5), st.binary(min_size=32, max_size=32))
def test_xor_of_all_but_one_and_the_whole_gives_the_one(parts: list[bytes], one: bytes) -> None:
    whole = shares.xor([*parts, one])
    assert shares.xor([*parts, whole]) == one


def test_xor_wants_one_length() -> None:
    for parts in ([], [b"a", b"bc"]):
        with pytest.raises(ValueError, match="one length"):
            shares.xor(parts)
