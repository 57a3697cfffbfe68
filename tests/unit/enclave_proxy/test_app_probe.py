# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from pathlib import Path

from enclave_proxy.app_probe import until_it_listens
from enclave_proxy.app_state import AppState
from enclave_proxy.relay_config import Address, RelayConfig, TcpAddress, UnixAddress
from tests.kit.mesh_relay import App, inbound
from tests.kit.pki import shared_ca

NEVER = 3600.0


def serving(*upstreams: Address) -> RelayConfig:
    ca = shared_ca()
    app = App(Path("/unused"))
    routes = tuple(inbound(ca, app, name=f"in|{n}") for n, _ in enumerate(upstreams))
    for route, upstream in zip(routes, upstreams, strict=True):
        object.__setattr__(route, "upstream", upstream)
    return RelayConfig(inbound=routes)


async def test_readiness_waits_for_every_socket_of_the_app(tmp_path: Path) -> None:
    state = AppState(running=True)
    config = serving(UnixAddress(str(tmp_path / "a.sock")), UnixAddress(str(tmp_path / "b.sock")))
    waiting = asyncio.create_task(until_it_listens(state, lambda: config, NEVER))  # noqa: TID251 - awaited below
    while not state.silent:
        await asyncio.sleep(0)
    assert state.not_ready() == f"the app does not listen yet: unix:{tmp_path}/a.sock, unix:{tmp_path}/b.sock"
    async with App(tmp_path / "a.sock"):
        while len(state.silent) == 2:
            await asyncio.sleep(0.001)
        assert state.silent == (f"unix:{tmp_path}/b.sock",)
        async with App(tmp_path / "b.sock"):
            assert await waiting
    assert state.not_ready() is None


async def test_a_socket_file_that_nobody_serves_is_no_answer(tmp_path: Path) -> None:
    async with App(tmp_path / "a.sock"):
        pass
    (tmp_path / "a.sock").touch()
    state = AppState(running=True)
    assert not await until_it_listens(state, lambda: serving(UnixAddress(str(tmp_path / "a.sock"))), 0)
    assert state.silent == ()  # waited for long enough: not the whole Marble's fault


async def test_an_app_on_tcp_is_asked_too() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        address = TcpAddress(*server.sockets[0].getsockname())
        assert await until_it_listens(AppState(), lambda: serving(address), NEVER)


async def test_an_app_without_inbound_connections_has_nothing_to_listen_on() -> None:
    assert await until_it_listens(AppState(), lambda: None, NEVER)
    assert await until_it_listens(AppState(), RelayConfig, NEVER)


def test_the_state_says_how_the_app_ended_and_when_it_comes_back() -> None:
    state = AppState()
    assert state.not_ready() == "the app is not running"
    state.last_status = 3
    assert state.not_ready() == "the app is not running: it ended with status 3"
    state.restart_delay = 1.25
    assert state.not_ready() == "the app is not running: it ended with status 3 and is started again after 1.2 s"
