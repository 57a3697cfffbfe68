# SPDX-License-Identifier: Apache-2.0
"""The fuzz target of the Marble API's port over genuine input, mutations of it, and noise."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hpack import Decoder

from tests.fuzz import fuzz_activation
from tests.fuzz.fuzz_activation import OTHER_CERTIFICATE, World, conversation, seeds


def header_values(answer: bytes) -> list[bytes]:
    """Of every HEADERS frame in what a server has said."""
    decoder, found, rest = Decoder(), [], answer
    while rest:
        size, kind = int.from_bytes(rest[:3], "big"), rest[3]
        if kind == 1:
            found += [bytes(value) for _, value in decoder.decode(rest[9 : 9 + size], raw=True)]
        rest = rest[9 + size :]
    return found


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    found = fuzz_activation.world()
    yield found
    found.close()
    fuzz_activation.world.cache_clear()


def test_the_genuine_request_is_granted_to_who_has_the_quoted_certificate(world: World) -> None:
    """Else the target would be content with a door that never opens."""
    good, bad = world.message(world.genuine.SerializeToString())
    assert b"MARBLE_PREDEFINED_PRIVATE_KEY" in good.body
    assert (bad.status, bad.body) == (7, b"")
    assert "invalid quote" in bad.text


def test_so_are_the_bytes_of_a_whole_genuine_connection(world: World) -> None:
    data = conversation(world.genuine.SerializeToString())
    assert b"MARBLE_PREDEFINED_PRIVATE_KEY" in world.connection(1, data)
    refused = world.connection(1 + OTHER_CERTIFICATE, data)
    assert b"MARBLE_PREDEFINED" not in refused
    assert b"application/grpc" in header_values(refused)
    assert b"7" in header_values(refused)


@pytest.mark.parametrize("number", range(60))
def test_damaged_input_is_answered_or_hung_up_on_and_grants_nothing(world: World, number: int) -> None:
    chance = random.Random(number)
    data = bytearray(seeds()[number % len(seeds())])
    for _ in range(chance.randint(1, 4)):
        match chance.randrange(3):
            case 0:
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            case 1:
                del data[chance.randrange(len(data)) :][:1]
            case _:
                data[chance.randrange(len(data)) : 0] = chance.randbytes(3)
    world.fuzz(bytes(data))
    world.fuzz(chance.randbytes(number))


def test_after_all_of_it_a_genuine_marble_gets_in(world: World) -> None:
    world.genuine_gets_in()
