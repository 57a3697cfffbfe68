# SPDX-License-Identifier: Apache-2.0
"""What is watched is told of, in one set for each event loop."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from enclave_proxy.readiness import Readiness, readiness

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        yield one, other


async def turns(number: int = 4) -> None:
    for _ in range(number):
        await asyncio.sleep(0.001)


async def test_it_calls_again_and_again_while_something_is_left_to_read_and_not_after_the_watch_has_ended(
    pair: Pair,
) -> None:
    told: list[str] = []
    ready = readiness()
    ready.watch_reading(pair[0].fileno(), lambda: told.append("read"))
    await turns()
    assert told == []
    pair[1].send(b"x")
    await turns()
    assert len(told) > 1
    ready.leave_reading(pair[0].fileno())
    told.clear()
    await turns()
    assert told == []


async def test_both_directions_of_one_descriptor_are_watched_and_left_apart(pair: Pair) -> None:
    told: set[str] = set()
    descriptor = pair[0].fileno()
    ready = readiness()
    ready.watch_reading(descriptor, lambda: told.add("read"))
    ready.watch_writing(descriptor, lambda: told.add("write"))
    await turns()
    assert told == {"write"}
    pair[1].send(b"x")
    await turns()
    assert told == {"read", "write"}
    ready.leave_writing(descriptor)
    told.clear()
    await turns()
    assert told == {"read"}
    ready.watch_writing(descriptor, lambda: told.add("write"))
    ready.leave_reading(descriptor)
    told.clear()
    await turns()
    assert told == {"write"}
    ready.leave_writing(descriptor)


async def test_whoever_only_reads_is_told_of_a_reset_until_it_leaves() -> None:
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = stack.enter_context(socket.create_connection(server.getsockname()))
        accepted = stack.enter_context(server.accept()[0])
        told: list[str] = []
        ready = readiness()
        ready.watch_reading(client.fileno(), lambda: told.append("read"))
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        accepted.close()
        await turns()
        assert len(told) > 1
        ready.leave_reading(client.fileno())


async def test_a_watch_that_another_one_has_ended_in_the_same_turn_is_not_told(pair: Pair) -> None:
    third, fourth = socket.socketpair()
    with third, fourth:
        told: list[int] = []
        ready = readiness()
        descriptors = pair[0].fileno(), third.fileno()

        def end_both(mine: int) -> None:
            told.append(mine)
            for descriptor in descriptors:
                ready.leave_reading(descriptor)

        for descriptor in descriptors:
            ready.watch_reading(descriptor, lambda d=descriptor: end_both(d))  # type: ignore[misc]
        pair[1].send(b"x")
        fourth.send(b"x")
        await turns()
        assert len(told) == 1


async def test_one_that_fails_is_told_to_the_loop_and_keeps_nobody_from_the_others(pair: Pair) -> None:
    third, fourth = socket.socketpair()
    with third, fourth:
        failures: list[object] = []
        told: list[str] = []
        ready = readiness()
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context["exception"]))

        def fail() -> None:
            ready.leave_reading(pair[0].fileno())
            raise ZeroDivisionError

        ready.watch_reading(pair[0].fileno(), fail)
        ready.watch_reading(third.fileno(), lambda: told.append("read"))
        pair[1].send(b"x")
        fourth.send(b"x")
        await turns()
        assert [type(failure) for failure in failures] == [ZeroDivisionError]
        assert told
        ready.leave_reading(third.fileno())


async def test_it_costs_one_descriptor_while_something_is_watched_and_none_else(pair: Pair) -> None:
    await asyncio.sleep(0)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    ready = readiness()
    ready.watch_writing(pair[0].fileno(), lambda: None)
    assert len(os.listdir("/proc/self/fd")) == before + 1  # noqa: PTH208
    ready.leave_writing(pair[0].fileno())
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_each_event_loop_has_its_own() -> None:
    async def own() -> Readiness:
        assert readiness() is readiness()
        return readiness()

    assert asyncio.run(own()) is not asyncio.run(own())
