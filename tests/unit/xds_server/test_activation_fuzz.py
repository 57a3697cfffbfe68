# SPDX-License-Identifier: Apache-2.0
"""The fuzz target of the Marble API over its genuine request, mutations of it, and noise."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.fuzz_activation import SEEDS, WORLD, fuzz_one


def test_the_genuine_request_is_granted() -> None:
    """Else the target would be content with a door that never opens."""
    assert b"MARBLE_PREDEFINED_PRIVATE_KEY" in WORLD.send(SEEDS[0], WORLD.credentials.certificate_der)


@pytest.mark.parametrize("number", range(60))
def test_a_damaged_request_is_answered_and_grants_nothing(number: int) -> None:
    chance = random.Random(number)
    data = bytearray(SEEDS[number % len(SEEDS)])
    for _ in range(chance.randint(1, 4)):
        match chance.randrange(3):
            case 0:
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            case 1:
                del data[chance.randrange(len(data)) :][:1]
            case _:
                data[chance.randrange(len(data)) : 0] = chance.randbytes(3)
    fuzz_one(bytes(data))
    fuzz_one(chance.randbytes(number))
