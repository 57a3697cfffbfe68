# SPDX-License-Identifier: Apache-2.0
"""What becomes of one captured connection, and of what a look at the rules finds; the packet filter is a fake one."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from enclave_proxy import capture_listener, capture_relay
from enclave_proxy.capture_firewall import FirewallError
from enclave_proxy.capture_relay import CapturingRelay
from enclave_proxy.capture_rules import CaptureRules
from enclave_proxy.counters import Refusal
from enclave_proxy.errors import StartError
from enclave_proxy.listener import RelayError
from enclave_proxy.relay_config import DnsTarget, Outbound, RelayConfig, TcpAddress
from sds.logs import get_logger
from tests.kit.mesh_relay import FAST, outbound
from tests.kit.pki import shared_ca


@dataclass
class Kernel:
    """A packet filter that remembers what it was told. `objections` are what it says of the order, look by look."""

    objections: list[str | None] = field(default_factory=list)
    broken: bool = False
    applied: list[CaptureRules] = field(default_factory=list)
    removed: int = 0

    async def check(self, rules: CaptureRules) -> None: ...

    async def apply(self, rules: CaptureRules) -> None:
        if self.broken:
            raise FirewallError("nft -f -: Operation not permitted")
        self.applied.append(rules)

    async def remove(self) -> None:
        self.removed += 1

    async def objection(self) -> str | None:
        return self.objections.pop(0) if self.objections else None


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
async def relay(kernel: Kernel) -> AsyncIterator[CapturingRelay]:
    claim = socket.socket(socket.AF_UNIX)
    made = CapturingRelay(get_logger("relay"), FAST, kernel, 0, 1000, frozenset(), None, claim)
    try:
        yield made
    finally:
        await made.close()
        await made.release()
        assert made.counters.bugs == 0
        assert claim.fileno() == -1


def routes(directory: Path) -> tuple[Outbound, ...]:
    """Two that share a port, one by name and one by address, and one alone."""
    by_name = replace(
        outbound(shared_ca(), directory / "a", name="outbound|localhost|5432"), endpoints=DnsTarget("localhost", 5432)
    )
    by_address = outbound(shared_ca(), directory / "b", TcpAddress("10.255.0.1", 5432), name="outbound|db|5432")
    return by_name, by_address, outbound(shared_ca(), directory / "c", name="outbound|web|80")


async def taken(relay: CapturingRelay, host: str, port: int) -> None:
    """One connection that was going there, until it has ended."""
    ours, app = socket.socketpair()
    ours.setblocking(False)
    app.setblocking(False)
    with app:
        relay._take(ours, TcpAddress(host, port))
        assert await asyncio.get_running_loop().sock_recv(app, 1) == b""


@pytest.mark.parametrize(
    ("host", "port", "listener"),
    [
        ("203.0.113.7", 80, "outbound|web|80"),
        ("127.0.0.1", 5432, "outbound|localhost|5432"),
        ("10.255.0.1", 5432, "outbound|db|5432"),
        ("203.0.113.7", 5432, "capture"),
        ("203.0.113.7", 22, "capture"),
    ],
)
async def test_a_captured_connection_is_counted_where_it_belongs(
    relay: CapturingRelay, tmp_path: Path, host: str, port: int, listener: str
) -> None:
    await relay.apply(RelayConfig(outbound=routes(tmp_path)))
    await taken(relay, host, port)
    accepted = {name: counters.accepted for name, counters in relay.counters.listeners.items() if counters.accepted}
    assert accepted == {listener: 1}
    assert relay.counters.of("capture").refused[Refusal.NO_ENDPOINT] == (listener == "capture")


async def test_too_many_that_wait_at_once_are_refused(
    relay: CapturingRelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_relay, "MAX_WAITING", 0)
    await relay.apply(RelayConfig(outbound=routes(tmp_path)))
    await taken(relay, "127.0.0.1", 5432)
    assert relay.counters.of("capture").refused[Refusal.LIMIT] == 1


async def test_who_dials_the_capture_port_itself_is_refused(relay: CapturingRelay) -> None:
    for host in ("127.0.0.1", "::1"):
        reader, writer = await asyncio.open_connection(host, relay._listener.port)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
    assert relay.counters.of("capture").refused[Refusal.NO_ENDPOINT] == 2


@pytest.mark.parametrize("turns", range(6))
async def test_a_connection_that_comes_while_it_closes_is_closed_too(
    relay: CapturingRelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    async def never(_: str) -> list[str]:
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(relay._resolver, "_ask", never)
    monkeypatch.setattr(capture_listener, "original_destination", lambda _: TcpAddress("203.0.113.7", 5432))
    await relay.apply(RelayConfig(outbound=routes(tmp_path)))
    with socket.create_connection(("127.0.0.1", relay._listener.port)) as app:
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.wait_for(relay.close(), 5)
        assert len(relay._waiting) == 0
        app.settimeout(5)
        with suppress(ConnectionResetError):  # it may never have left the backlog
            assert app.recv(1) == b""
    gc.collect()  # an accepted socket that nobody has closed is an error of this test


async def test_rules_are_written_once_for_each_change(relay: CapturingRelay, kernel: Kernel, tmp_path: Path) -> None:
    by_name, by_address, web = routes(tmp_path)
    await relay.apply(RelayConfig(outbound=(web,)))
    await relay.apply(RelayConfig(outbound=(replace(web, endpoints=(TcpAddress("10.0.0.1", 80),)),)))
    await relay.apply(RelayConfig(outbound=(web, by_name, by_address)))
    assert [rules.outgoing for rules in kernel.applied] == [{80}, {80, 5432}]


async def test_what_the_kernel_refuses_is_refused_as_a_whole(
    relay: CapturingRelay, kernel: Kernel, tmp_path: Path
) -> None:
    kernel.broken = True
    with pytest.raises(RelayError, match="the capture rules cannot be put in force: nft -f -: Operation not permitted"):
        await relay.apply(RelayConfig(outbound=routes(tmp_path)))
    assert relay.addresses == {}
    await relay.release()
    assert kernel.removed == 0  # there is nothing of ours to take away


async def test_a_start_in_the_wrong_order_is_refused_and_not_put_right_in_silence(
    relay: CapturingRelay, kernel: Kernel
) -> None:
    assert relay.problem == "the capture rules are not in force yet"
    kernel.objections = ["somebody comes before ours"]
    with pytest.raises(StartError, match="capture does not work here: somebody comes before ours"):
        await relay.prove()
    assert kernel.applied == []
    assert relay.problem == "somebody comes before ours"


async def test_later_the_rules_are_put_back_and_what_stays_wrong_stays_said(
    relay: CapturingRelay, kernel: Kernel
) -> None:
    await relay.prove()
    assert relay.problem is None
    kernel.objections = ["displaced", None]
    await relay._look_again()
    assert (relay.problem, len(kernel.applied)) == (None, 1)
    kernel.objections = ["displaced", "still displaced"]
    await relay._look_again()
    assert relay.problem == "still displaced"
    kernel.objections, kernel.broken = ["displaced"], True
    await relay._look_again()
    assert relay.problem == "displaced; and they cannot be put back: nft -f -: Operation not permitted"
    await relay._look_again()
    assert relay.problem is None


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
async def test_the_rules_stay_while_something_of_the_app_s_user_lives(kernel: Kernel, tmp_path: Path) -> None:
    for ends, removed in ((False, 0), (True, 1)):
        made = CapturingRelay(get_logger("relay"), FAST, kernel, 0, 54321, frozenset(), None, socket.socket())
        await made.apply(RelayConfig(outbound=routes(tmp_path)))
        daemon = await asyncio.create_subprocess_exec("sleep", "60", user=54321, start_new_session=True)
        if ends:
            daemon.kill()
            await daemon.wait()
        await made.close()
        await made.release()
        assert kernel.removed == removed
        if not ends:
            daemon.kill()
            await daemon.wait()
