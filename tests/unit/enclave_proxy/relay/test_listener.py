# SPDX-License-Identifier: Apache-2.0
"""Binding and accepting at their edges."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from enclave_proxy.listener import Listener, RelayError, Serving, bind
from enclave_proxy.relay_config import TcpAddress, UnixAddress
from enclave_proxy.task_set import TaskSet
from enclave_proxy.tls_context import dialling
from tests.kit.mesh_relay import outbound
from tests.kit.pki import shared_ca


async def test_a_failing_accept_is_reported_and_tried_again() -> None:
    """A socket that does not listen stands for a process without descriptors: both make accept() fail at once."""
    failures: asyncio.Queue[OSError] = asyncio.Queue()
    tasks = TaskSet(lambda bug: None)
    address = TcpAddress("127.0.0.1", 0)
    route = outbound(shared_ca(), address)
    deaf = socket.socket()
    deaf.setblocking(False)
    listener = Listener(deaf, address, Serving(route, dialling(route.identity, route.bundle, route.tls)))

    async def handle(connection: socket.socket, listener: Listener) -> None:
        connection.close()

    def spawn(body: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        async def run() -> None:
            await body()

        return tasks.spawn(run())

    listener.start(spawn, handle, lambda _, error: failures.put_nowait(error))
    for _ in range(2):
        assert isinstance(await asyncio.wait_for(failures.get(), 5), OSError)
    await listener.close()
    assert len(tasks) == 0
    assert deaf.fileno() == -1


@pytest.mark.parametrize("address", [TcpAddress("127.0.0.1", 70000), TcpAddress("256.0.0.1", 0), UnixAddress("a\0b")])
def test_an_address_that_makes_no_sense_is_named(address: TcpAddress | UnixAddress) -> None:
    with pytest.raises(RelayError, match="cannot listen on"):
        bind(address)


def test_a_path_that_no_socket_can_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(RelayError, match="at most 107 bytes"):
        bind(UnixAddress(str(tmp_path / ("x" * 108))))


def test_ipv6_listens_on_ipv6_only() -> None:
    with bind(TcpAddress("::1", 0)) as bound:
        assert bound.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


@pytest.mark.parametrize("option", [(socket.IPPROTO_TCP, socket.TCP_NODELAY), (socket.SOL_SOCKET, socket.SO_KEEPALIVE)])
def test_an_accepted_connection_sends_at_once_and_notices_who_vanished(option: tuple[int, int]) -> None:
    """The kernel hands a listener's options on; a system that does not would cost 40 ms for every second write."""
    with bind(TcpAddress("127.0.0.1", 0)) as bound:
        bound.setblocking(True)
        with socket.create_connection(bound.getsockname()):
            accepted, _ = bound.accept()
            with accepted:
                assert accepted.getsockopt(*option)
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
