# SPDX-License-Identifier: Apache-2.0
"""Several relay processes behave as one relay, with real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from enclave_proxy.limits import Limits
from enclave_proxy.listener import RelayError
from enclave_proxy.relay_config import Membership, RelayConfig, TcpAddress
from enclave_proxy.relay_fleet import Fleet
from enclave_proxy.relay_process import Settings
from sds.logs import get_logger
from tests.kit.mesh import free_port
from tests.kit.mesh_relay import App, Streams, ask, dial, hang_up, inbound, outbound, port, relay
from tests.kit.pki import marble, shared_ca

LIMITS = Limits(drain=0.0, endpoint_wait=1.0)
MANY = 40


@asynccontextmanager
async def fleet(others: int = 1) -> AsyncIterator[Fleet]:
    settings = [Settings(LIMITS, "warning", "json", True, "web", 2 + n) for n in range(others)]
    made = Fleet(get_logger("fleet"), LIMITS, settings, dict(os.environ))  # noqa: TID251 - a process of the test's own
    made.start()
    try:
        yield made
    finally:
        processes = list(made.processes.values())
        await made.close()
        assert made.processes == {}
        for pid in processes:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def somewhere() -> TcpAddress:
    return TcpAddress("127.0.0.1", free_port())


async def many(address: TcpAddress, uuid: str | None = None) -> list[Streams]:
    who = marble(shared_ca(), "web", uuid=uuid)
    streams = [await dial(address, who, shared_ca().bundle) for _ in range(MANY)]
    assert {await ask(each) for each in streams} == {b"ping"}
    return streams


def own_share(made: Fleet, name: str = "in") -> int:
    return made._own.counters.of(name).active


async def test_connections_are_spread_counted_as_one_and_outlive_the_death_of_another_process(tmp_path: Path) -> None:
    ca, address = shared_ca(), somewhere()
    async with App(tmp_path / "app.sock") as app, fleet() as made:
        await made.apply(RelayConfig(inbound=(inbound(ca, app, bind=address),)))
        streams = await many(address)
        await until(lambda: made.counters.of("in").active == MANY)
        assert 0 < own_share(made) < MANY

        (pid,) = made.processes.values()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: made.restarted == 1 and len(made.processes) == 1)
        assert made.counters.of("in").accepted == MANY
        assert made.counters.of("in").active == own_share(made)
        alive = [each for each in streams if await ask(each) == b"ping"]
        assert len(alive) == own_share(made)

        again = await many(address)
        await until(lambda: made.counters.of("in").accepted == 2 * MANY)
        assert own_share(made) < len(alive) + MANY
        for each in (*streams, *again):
            await hang_up(each)


async def test_what_each_process_knows_of_peers_and_has_cost_is_seen_as_one(tmp_path: Path) -> None:
    ca, out = shared_ca(), tmp_path / "out.sock"
    async with App(tmp_path / "app.sock") as app, relay() as server, fleet() as made:
        await server.apply(RelayConfig(inbound=(inbound(ca, app),)))
        peer = port(server, "in")
        await made.apply(RelayConfig(outbound=(outbound(ca, out, peer),)))
        streams = [await asyncio.open_unix_connection(out) for _ in range(MANY)]
        assert {await ask(each) for each in streams} == {b"ping"}
        await until(lambda: made.counters.dials["out"].attempts == MANY)
        own = made._own.clusters.status()
        (seen,) = await made.clusters.look()
        assert seen.counters.attempts == MANY
        assert [(each.address, each.in_flight) for each in seen.endpoints] == [(peer, MANY)]
        assert 0 < sum(each.in_flight for status in own for each in status.endpoints) < MANY
        made.look()
        assert (made.counters.endpoints, made.counters.ejected) == ({"out": 1}, {"out": 0})
        spent = made.counters.cpu
        assert spent.keys() == {"1", "2"}
        assert spent["2"] > 0

        (pid,) = made.processes.values()
        os.kill(pid, signal.SIGKILL)
        (alone,) = await made.clusters.look()  # whether it is gone already or is asked in vain
        assert alone.counters.attempts < MANY
        await until(lambda: made.restarted == 1 and len(made.processes) == 1)
        assert made.counters.cpu["2"] >= spent["2"]
        assert made.counters.dials["out"].attempts == MANY
        for each in streams:
            await hang_up(each)


async def test_a_swap_reaches_every_process_or_none(tmp_path: Path) -> None:
    ca, address, taken = shared_ca(), somewhere(), socket.create_server(("127.0.0.1", 0))
    async with App(tmp_path / "app.sock") as app, fleet() as made:
        old = RelayConfig(inbound=(inbound(ca, app, bind=address),))
        await made.apply(old)
        elsewhere = RelayConfig(inbound=(inbound(ca, app, bind=TcpAddress("127.0.0.1", taken.getsockname()[1])),))
        with taken, pytest.raises(RelayError, match="cannot listen on"):
            await made.apply(elsewhere)
        streams = await many(address)
        await until(lambda: made.counters.of("in").active == MANY > own_share(made))

        out = RelayConfig(outbound=(outbound(ca, tmp_path / "out.sock", address),))
        await made.apply(RelayConfig(old.inbound, out.outbound))
        for _ in range(MANY):
            mine = await asyncio.open_unix_connection(tmp_path / "out.sock")
            writer = mine[1]
            writer.close()
            await writer.wait_closed()
        await made.apply(RelayConfig())
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(address.host, address.port)
        for each in streams:
            assert await each[0].read() == b""  # whichever process had it
            await hang_up(each)


async def test_who_is_turned_out_is_cut_off_in_every_process_and_stays_out_of_a_new_one(tmp_path: Path) -> None:
    ca, address, uuid = shared_ca(), somewhere(), "11111111-2222-4333-8444-555555555555"
    async with App(tmp_path / "app.sock") as app, fleet() as made:
        await made.apply(RelayConfig(inbound=(inbound(ca, app, bind=address),)))
        streams = await many(address, uuid)
        made.update_membership(Membership(revoked=frozenset({f"spiffe://{ca.trust_domain}/marble/web/{uuid}"})))
        for each in streams:
            assert await each[0].read() == b""
            await hang_up(each)
        (pid,) = made.processes.values()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: made.restarted == 1 and len(made.processes) == 1)
        for _ in range(MANY):
            each = await dial(address, marble(ca, "web", uuid=uuid), ca.bundle)
            assert await ask(each) == b""
            await hang_up(each)


async def test_closing_inbound_drains_every_process(tmp_path: Path) -> None:
    ca, address = shared_ca(), somewhere()
    async with App(tmp_path / "app.sock") as app, fleet() as made:
        await made.apply(RelayConfig(inbound=(inbound(ca, app, bind=address),)))
        streams = await many(address)
        patient = asyncio.create_task(made.close_inbound(3600))  # noqa: TID251 - awaited below
        await until(lambda: "in" not in made.addresses)
        assert {await ask(each) for each in streams} == {b"ping"}
        await made.close_inbound(0)
        await patient
        for each in streams:
            assert await each[0].read() == b""
            await hang_up(each)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(address.host, address.port)


async def test_relay_processes_end_with_their_worker_however_it_ends() -> None:
    worker = """
        import asyncio, os
        from enclave_proxy.limits import Limits
        from enclave_proxy.relay_config import RelayConfig
        from enclave_proxy.relay_fleet import Fleet
        from enclave_proxy.relay_process import Settings
        from sds.logs import get_logger
        async def main():
            fleet = Fleet(get_logger("x"), Limits(), [Settings(Limits(), "error", "json", True, "web", 2)], os.environ)
            fleet.start()
            await fleet.apply(RelayConfig())
            print("pid", *fleet.processes.values(), flush=True)
            await asyncio.sleep(60)
        asyncio.run(main())
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(worker), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    pid = 0
    while not pid:
        word, *rest = (await process.stdout.readline()).split()
        pid = int(rest[0]) if word == b"pid" else 0
    process.kill()
    await process.wait()
    await until(lambda: is_gone(pid))


def is_gone(pid: int) -> bool:
    """Ended; whoever adopted it may not have read its status yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
