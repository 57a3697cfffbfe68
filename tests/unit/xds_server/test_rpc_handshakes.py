# SPDX-License-Identifier: Apache-2.0
"""Whose handshake goes on next: in order, within limits, and no source can keep the others out."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Callable
from contextlib import ExitStack

from hypothesis import given
from hypothesis import strategies as st

from tests.kit.rpc_handlers import ECHO, HANDLERS
from tests.kit.rpc_peer import framed
from tests.kit.rpc_port import Client, opened
from xds_server.rpc_handshakes import Handshakes


class One:
    """A handshake of so many steps; a step comes when the client has said something."""

    def __init__(self, host: str, steps: int, log: list[One]) -> None:
        self.host = host
        self.steps = steps
        self.log = log

    def shake(self) -> bool:
        self.log.append(self)
        self.steps -= 1
        return self.steps > 0


class Loop:
    """Calls back when told to."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def run(self) -> None:
        while self.soon:
            self.soon.pop(0)()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3)), max_size=30), st.integers(1, 6))
def test_every_handshake_has_its_turns_and_never_too_many_are_under_way(
    wanted: list[tuple[str, int]], limit: int
) -> None:
    loop, log = Loop(), list[One]()
    handshakes = Handshakes(limit, loop.call_soon)
    every = [One(host, steps, log) for host, steps in wanted]
    for one in every:
        handshakes.add(one)
    loop.run()
    while speaking := [one for one in every if one in log and one.steps > 0]:
        assert len(speaking) <= limit
        for host in "abc":
            assert sum(one.host == host for one in speaking) <= (limit + 1) // 2
        for one in speaking:
            handshakes.add(one)
        loop.run()
    assert all(one.steps == 0 for one in every)
    assert handshakes.waiting == 0
    for host in "abc":  # first turns, in the order of arrival
        turns = list(dict.fromkeys(one for one in log if one.host == host))
        assert turns == [one for one in every if one.host == host]


def test_sources_take_turns() -> None:
    loop, log = Loop(), list[One]()
    handshakes = Handshakes(100, loop.call_soon)
    for host in ("a", "a", "a", "b", "c"):
        handshakes.add(One(host, 1, log))
    loop.run()
    assert [one.host for one in log] == ["a", "b", "c", "a", "a"]


def test_who_is_gone_makes_room() -> None:
    loop, log = Loop(), list[One]()
    handshakes = Handshakes(1, loop.call_soon)
    first, second = One("a", 9, log), One("a", 1, log)
    for one in (first, second):
        handshakes.add(one)
    loop.run()
    assert log == [first]
    handshakes.ended(first)
    handshakes.ended(first)
    loop.run()
    assert log == [first, second]


async def test_without_a_descriptor_left_clients_wait_until_there_is_one() -> None:
    async with opened(HANDLERS) as port:
        context = port.context(port.town.activate("web").identity)
        with ExitStack() as stack:
            clients = [stack.enter_context(socket.socket()) for _ in range(3)]
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (clients[-1].fileno() + 1, hard))
            try:
                for sock in clients:
                    sock.setblocking(False)
                    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port.number))
                while port.port._accepting:
                    await asyncio.sleep(0.001)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for sock in clients:
                reader, writer = await asyncio.open_connection(
                    sock=sock.dup(), ssl=context, server_hostname="", limit=1 << 20
                )
                async with Client(reader, writer) as client:
                    assert await client.body(await client.call(ECHO, b"x"), 6) == framed(b"x")
