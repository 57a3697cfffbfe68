# SPDX-License-Identifier: Apache-2.0
"""Whose connections end when a listener goes, or when a Marble goes: its own, after a time, and nobody else's."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

from enclave_proxy.relay_config import RelayConfig
from tests.kit.mesh_relay import FAST, App, ask, dial, hang_up, inbound, outbound, port, relay
from tests.kit.pki import marble, shared_ca

AT_ONCE = dataclasses.replace(FAST, drain=0.0)
# Longer than any test may take: what has to happen earlier did not wait for it.
NEVER = 3600.0


async def test_a_removed_listeners_connections_end_after_the_drain_and_its_neighbours_do_not(tmp_path: Path) -> None:
    ca = shared_ca()
    async with App(tmp_path / "app.sock") as app, relay(AT_ONCE) as made:
        stays = inbound(ca, app, name="stays")
        await made.apply(RelayConfig(inbound=(stays, inbound(ca, app, name="goes"))))
        kept, cut = [await dial(port(made, name), marble(ca, "web"), ca.bundle) for name in ("stays", "goes")]
        assert [await ask(kept), await ask(cut)] == [b"ping", b"ping"]
        await made.apply(RelayConfig(inbound=(stays,)))
        assert await cut[0].read() == b""
        assert await ask(kept) == b"ping"
        await hang_up(cut)
        await hang_up(kept)


async def test_a_listener_that_moves_to_another_address_drains_at_its_old_one(tmp_path: Path) -> None:
    ca = shared_ca()
    async with App(tmp_path / "app.sock") as app, relay(AT_ONCE) as server, relay(AT_ONCE) as made:
        await server.apply(RelayConfig(inbound=(inbound(ca, app),)))
        target = port(server, "in")
        await made.apply(RelayConfig(outbound=(outbound(ca, tmp_path / "old.sock", target),)))
        old = await asyncio.open_unix_connection(tmp_path / "old.sock")
        assert await ask(old) == b"ping"
        await made.apply(RelayConfig(outbound=(outbound(ca, tmp_path / "new.sock", target),)))
        new = await asyncio.open_unix_connection(tmp_path / "new.sock")
        assert await ask(new) == b"ping"
        assert await old[0].read() == b""
        await hang_up(old)
        await hang_up(new)


async def test_closing_inbound_ends_what_peers_opened_and_leaves_what_the_app_opens(tmp_path: Path) -> None:
    ca = shared_ca()
    async with App(tmp_path / "app.sock") as app, relay() as peer, relay() as made:
        await peer.apply(RelayConfig(inbound=(inbound(ca, app),)))
        both = RelayConfig((inbound(ca, app),), (outbound(ca, tmp_path / "o.sock", port(peer, "in")),))
        await made.apply(both)
        address = port(made, "in")
        streams = await dial(address, marble(ca, "web"), ca.bundle)
        assert await ask(streams) == b"ping"

        patient = asyncio.create_task(made.close_inbound(NEVER))  # noqa: TID251 - ended below
        while "in" in made.addresses:
            await asyncio.sleep(0)
        assert await ask(streams) == b"ping"
        assert not patient.done()
        await made.apply(both)  # a push in these seconds does not open the door again
        assert "in" not in made.addresses
        await made.close_inbound(0)
        await patient
        assert await streams[0].read() == b""
        await hang_up(streams)

        mine = await asyncio.open_unix_connection(tmp_path / "o.sock")
        assert await ask(mine) == b"ping"
        await hang_up(mine)


async def test_closing_inbound_waits_no_longer_than_for_the_last_connection(tmp_path: Path) -> None:
    ca = shared_ca()
    async with App(tmp_path / "app.sock") as app, relay() as made:
        await made.apply(RelayConfig(inbound=(inbound(ca, app),)))
        streams = await dial(port(made, "in"), marble(ca, "web"), ca.bundle)
        assert await ask(streams) == b"ping"
        async with asyncio.TaskGroup() as group:
            group.create_task(made.close_inbound(NEVER))
            await hang_up(streams)
