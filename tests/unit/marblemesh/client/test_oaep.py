# SPDX-License-Identifier: Apache-2.0
"""Undoing OAEP by hand agrees with a library that does it, for every message and every damage."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marblemesh.client.oaep import unpad
from tests.kit.fake_features import OAEP
from tests.kit.users import recovery_key

SIZE = 256


def block_of(message: bytes) -> bytes:
    """The padded block, as a token's raw RSA gives it back."""
    numbers = recovery_key().private_numbers()
    ciphertext = int.from_bytes(recovery_key().public_key().encrypt(message, OAEP))
    return pow(ciphertext, numbers.d, numbers.public_numbers.n).to_bytes(SIZE)


@settings(max_examples=20, deadline=None)
@given(st.binary(max_size=SIZE - 66))
def test_what_a_library_padded_is_unpadded(message: bytes) -> None:
    assert unpad(block_of(message)) == message


@settings(max_examples=20, deadline=None)
@given(st.integers(0, SIZE - 1), st.integers(1, 255))
def test_every_changed_byte_is_noticed(at: int, change: int) -> None:
    block = bytearray(block_of(b"secret"))
    block[at] ^= change
    with pytest.raises(ValueError, match="not padded"):
        unpad(bytes(block))


@given(st.binary(max_size=2 * SIZE))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(ValueError, match=r"too short|not padded"):
        unpad(noise)
