# SPDX-License-Identifier: Apache-2.0
"""What is counted of connections: nothing that was accepted is forgotten, and each end has one reason."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest

from enclave_proxy.access_log import access_log
from enclave_proxy.counters import ListenerCounters, Refusal
from enclave_proxy.limits import Limits
from enclave_proxy.relay import Relay
from enclave_proxy.relay_config import Membership, RelayConfig
from sds.logs import get_logger
from tests.kit.mesh_relay import FAST, App, ask, dial, hang_up, inbound, outbound, port, relay
from tests.kit.pki import marble, shared_ca

# No handshake ends by itself in these tests.
PATIENT = Limits(handshake_timeout=3600)


def all_accounted_for(numbers: ListenerCounters) -> bool:
    return numbers.accepted == numbers.established + sum(numbers.refused.values()) + numbers.handshakes


async def test_connections_cut_off_after_a_drain_say_so_joined_or_not(tmp_path: Path) -> None:
    ca = shared_ca()
    async with App(tmp_path / "app.sock") as app, relay(PATIENT) as made:
        await made.apply(RelayConfig(inbound=(inbound(ca, app),)))
        address, numbers = port(made, "in"), made.counters.of("in")
        joined = await dial(address, marble(ca, "web"), ca.bundle)
        assert await ask(joined) == b"ping"
        _, silent = await asyncio.open_connection(address.host, address.port)
        while numbers.handshakes == 0:
            await asyncio.sleep(0.01)
        assert all_accounted_for(numbers)
        await made.close(drain=0)
        assert (numbers.ended, numbers.refused) == ({Refusal.DRAINED: 1}, {Refusal.DRAINED: 1})
        assert (all_accounted_for(numbers), numbers.active, numbers.handshakes) == (True, 0, 0)
        silent.close()
        await hang_up(joined)


async def test_an_end_that_the_rules_want_is_counted_once_and_logged_under_that_reason(tmp_path: Path) -> None:
    ca, path = shared_ca(), tmp_path / "access.log"
    who = marble(ca, "web")
    async with App(tmp_path / "app.sock") as app, access_log(str(path), get_logger("test")) as lines:
        made = Relay(get_logger("relay"), FAST, access_log=lines)
        await made.apply(RelayConfig(inbound=(inbound(ca, app),)))
        streams = await dial(port(made, "in"), who, ca.bundle)
        assert await ask(streams) == b"ping"
        made.update_membership(Membership(revoked=frozenset({str(who.spiffe_id)})))
        assert await streams[0].read() == b""
        await hang_up(streams)
        await made.close(drain=1)
        assert made.counters.of("in").ended == {Refusal.REVOKED: 1}
    (line,) = map(json.loads, path.read_text().splitlines())
    assert (line["reason"], line["peer"], line["received"], line["sent"]) == ("revoked", str(who.spiffe_id), 4, 4)


async def test_handshakes_are_timed_if_they_admit_somebody_and_counted_by_reason_if_not(tmp_path: Path) -> None:
    ca = shared_ca()
    async with App(tmp_path / "app.sock") as app, relay() as made:
        await made.apply(RelayConfig(inbound=(inbound(ca, app),)))
        for who in ("web", "web", "job"):
            streams = await dial(port(made, "in"), marble(ca, who), ca.bundle)
            await ask(streams)
            await hang_up(streams)
        await made.close(drain=1)
        numbers = made.counters.of("in")
        assert sum(numbers.handshake_times.counts) == 2
        assert 0 < numbers.handshake_times.seconds < 60
        assert numbers.handshakes_failed == numbers.refused == {Refusal.PEER_NOT_ALLOWED: 1}
        assert numbers.peers == Counter(web=2)


async def test_a_handshake_with_an_impostor_among_the_endpoints_counts_though_the_app_was_served(
    tmp_path: Path,
) -> None:
    ca, out = shared_ca(), tmp_path / "out.sock"
    async with App(tmp_path / "app.sock") as app, relay() as peer, relay() as impostor, relay() as made:
        await peer.apply(RelayConfig(inbound=(inbound(ca, app),)))
        await impostor.apply(RelayConfig(inbound=(inbound(ca, app, identity=marble(ca, "impostor")),)))
        await made.apply(RelayConfig(outbound=(outbound(ca, out, port(impostor, "in"), port(peer, "in")),)))
        numbers = made.counters.of("out")
        while not numbers.handshakes_failed:
            streams = await asyncio.open_unix_connection(out)
            assert await ask(streams) == b"ping"
            await hang_up(streams)
        assert numbers.handshakes_failed == {Refusal.PEER_NOT_ALLOWED: 1}
        assert numbers.refused == {}
        assert numbers.peers == Counter(backend=numbers.established)


@pytest.mark.parametrize(("step", "established"), [("relay.dial_app", 0), ("pump._Joint.start", 1)])
async def test_a_fault_of_ours_is_a_reason_too_and_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, established: int
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("for a test")

    monkeypatch.setattr(f"enclave_proxy.{step}", broken)
    ca, path = shared_ca(), tmp_path / "access.log"
    async with App(tmp_path / "app.sock") as app, access_log(str(path), get_logger("test")) as lines:
        made = Relay(get_logger("relay"), FAST, access_log=lines)
        await made.apply(RelayConfig(inbound=(inbound(ca, app),)))
        streams = await dial(port(made, "in"), marble(ca, "web"), ca.bundle)
        while not made.counters.bugs:
            await asyncio.sleep(0.01)
        await hang_up(streams)
        await made.close()
        numbers = made.counters.of("in")
        assert (numbers.established, numbers.active, made.counters.bugs) == (established, 0, 1)
        assert numbers.refused + numbers.ended == {Refusal.INTERNAL_ERROR: 1}
        assert all_accounted_for(numbers)
    assert [json.loads(line)["reason"] for line in path.read_text().splitlines()] == ["internal_error"]


async def test_a_relay_knows_what_its_event_loop_has_cost(tmp_path: Path) -> None:
    async with App(tmp_path / "app.sock") as app, relay() as made:
        await made.apply(RelayConfig(inbound=(inbound(shared_ca(), app),)))
        made.look()
        before = made.counters.cpu["1"]
        while made.counters.cpu["1"] == before:
            sum(range(100_000))
            made.look()
        assert made.counters.cpu["1"] > before
