# SPDX-License-Identifier: Apache-2.0
"""Changing the configuration under traffic: at once for new connections, not at all for old ones, all or nothing."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path

import pytest
from cryptography import x509

from enclave_proxy.counters import Refusal
from enclave_proxy.limits import Limits
from enclave_proxy.relay import Relay, RelayError
from enclave_proxy.relay_config import RelayConfig, TcpAddress, UnixAddress
from sds.logs import get_logger
from sds.material import TrustBundle
from sds.tls import client_context
from tests.kit.mesh_relay import App, Streams, ask, dial, hang_up, inbound, outbound, port, relay, try_to_ask
from tests.kit.pki import marble, other_ca, shared_ca


def serial_seen(streams: Streams) -> int:
    der = streams[1].get_extra_info("ssl_object").getpeercert(binary_form=True)
    return x509.load_der_x509_certificate(der).serial_number


async def test_a_new_identity_serves_new_connections_and_old_ones_live_on(tmp_path: Path) -> None:
    ca = shared_ca()
    first, second = marble(ca, "backend"), marble(ca, "backend")
    async with App(tmp_path / "app.sock") as app, relay() as made:
        await made.apply(RelayConfig(inbound=(inbound(ca, app, identity=first),)))
        old = await dial(port(made, "in"), marble(ca, "web"), ca.bundle)
        assert await ask(old) == b"ping"
        await made.apply(RelayConfig(inbound=(inbound(ca, app, identity=second),)))
        new = await dial(port(made, "in"), marble(ca, "web"), ca.bundle)
        assert (serial_seen(old), serial_seen(new)) == (first.leaf.serial_number, second.leaf.serial_number)
        assert [await ask(old), await ask(new)] == [b"ping", b"ping"]
        await hang_up(old)
        await hang_up(new)


async def test_a_removed_ca_is_refused_at_once(tmp_path: Path) -> None:
    ca, leaving = shared_ca(), other_ca()
    both = TrustBundle(ca.bundle.pem + leaving.bundle.pem)
    old_client = client_context(marble(leaving, "web"), ca.bundle)
    async with App(tmp_path / "app.sock") as app, relay() as made:
        route = inbound(ca, app, bundle=both, peers=inbound(leaving, app).peers)
        await made.apply(RelayConfig(inbound=(route,)))
        assert await try_to_ask(port(made, "in"), old_client) == b"ping"
        await made.apply(RelayConfig(inbound=(inbound(ca, app, peers=route.peers),)))
        assert await try_to_ask(port(made, "in"), old_client) == b""
        assert made.counters.of("in").refused == {Refusal.UNTRUSTED: 1}


async def test_a_hundred_rotations_drop_none_of_fifty_connections(tmp_path: Path) -> None:
    ca = shared_ca()
    identities = [marble(ca, "backend") for _ in range(4)]
    async with App(tmp_path / "app.sock") as app, relay(Limits()) as made:  # a handshake may take its time here
        await made.apply(RelayConfig(inbound=(inbound(ca, app, identity=identities[0]),)))
        client = marble(ca, "web")
        streams = [await dial(port(made, "in"), client, ca.bundle) for _ in range(50)]
        rotating = True

        async def traffic(one: Streams, number: int) -> int:
            asked = 0
            while rotating or asked == 0:
                message = b"%d-%d" % (number, asked) * 50
                assert await ask(one, message) == message
                asked += 1
            return asked

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(traffic(one, n)) for n, one in enumerate(streams)]
            for turn in range(100):
                await made.apply(RelayConfig(inbound=(inbound(ca, app, identity=identities[turn % 4]),)))
                assert await try_to_ask(port(made, "in"), client_context(client, ca.bundle)) == b"ping"
            rotating = False
        assert all(task.result() > 0 for task in tasks)
        assert made.counters.of("in").active >= 50
        assert made.counters.applied == 101
        for one in streams:
            await hang_up(one)


async def test_a_configuration_that_cannot_bind_changes_nothing(tmp_path: Path) -> None:
    ca = shared_ca()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        async with App(tmp_path / "app.sock") as app, relay() as made:
            good = inbound(ca, app)
            await made.apply(RelayConfig(inbound=(good,)))
            before = made.addresses
            blocked = inbound(ca, app, name="blocked", bind=TcpAddress("127.0.0.1", taken.getsockname()[1]))
            other = inbound(ca, app, name="other")
            with pytest.raises(RelayError, match=r"cannot listen on 127\.0\.0\.1"):
                await made.apply(RelayConfig(inbound=(other, blocked)))
            assert made.addresses == before
            assert made.counters.rejected == 1
            assert await try_to_ask(port(made, "in"), client_context(marble(ca, "web"), ca.bundle)) == b"ping"


async def test_a_refused_configuration_leaves_no_socket_file(tmp_path: Path) -> None:
    ca = shared_ca()
    async with relay() as made:
        ok = outbound(ca, tmp_path / "ok.sock")
        bad = outbound(ca, tmp_path / "missing" / "bad.sock", name="bad")
        with pytest.raises(RelayError, match="No such file"):
            await made.apply(RelayConfig(outbound=(ok, bad)))
    assert os.listdir(tmp_path) == []  # noqa: PTH208


async def test_two_listeners_at_one_address_are_refused(tmp_path: Path) -> None:
    ca = shared_ca()
    async with relay() as made:
        routes = (outbound(ca, tmp_path / "x.sock"), outbound(ca, tmp_path / "x.sock", name="again"))
        with pytest.raises(RelayError, match="used twice"):
            await made.apply(RelayConfig(outbound=routes))


async def test_a_removed_listener_stops_accepting_and_its_connections_live_on(tmp_path: Path) -> None:
    ca = shared_ca()
    async with App(tmp_path / "app.sock") as app, relay() as made:
        await made.apply(RelayConfig(inbound=(inbound(ca, app),)))
        address = port(made, "in")
        streams = await dial(address, marble(ca, "web"), ca.bundle)
        assert await ask(streams) == b"ping"
        await made.apply(RelayConfig())
        assert made.addresses == {}
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(address.host, address.port)
        assert await ask(streams) == b"ping"
        await hang_up(streams)


async def test_a_listener_that_stays_keeps_its_port(tmp_path: Path) -> None:
    ca = shared_ca()
    async with App(tmp_path / "app.sock") as app, relay() as made:
        await made.apply(RelayConfig(inbound=(inbound(ca, app),)))
        before = port(made, "in")
        await made.apply(RelayConfig(inbound=(inbound(ca, app),), outbound=(outbound(ca, tmp_path / "o.sock"),)))
        assert port(made, "in") == before


async def test_a_unix_listener_belongs_to_its_user_alone_and_is_removed(tmp_path: Path) -> None:
    ca, path = shared_ca(), tmp_path / "out.sock"
    async with relay() as made:
        await made.apply(RelayConfig(outbound=(outbound(ca, path),)))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        await made.apply(RelayConfig())
        assert not path.exists()


async def test_the_socket_file_of_a_dead_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with relay() as made:
        await made.apply(RelayConfig(outbound=(outbound(shared_ca(), path),)))
        assert made.addresses == {"out": UnixAddress(str(path))}


async def test_a_socket_that_answers_and_a_file_that_is_none_are_left_alone(tmp_path: Path) -> None:
    file, path = tmp_path / "file.sock", tmp_path / "taken.sock"
    file.write_text("mine")
    with socket.create_server(str(path), family=socket.AF_UNIX):
        async with relay() as made:
            with pytest.raises(RelayError, match="another process answers"):
                await made.apply(RelayConfig(outbound=(outbound(shared_ca(), path),)))
            with pytest.raises(RelayError, match="file of another kind"):
                await made.apply(RelayConfig(outbound=(outbound(shared_ca(), file),)))
    assert file.read_text() == "mine"


async def test_closing_leaves_no_task_and_no_socket(tmp_path: Path) -> None:
    ca = shared_ca()
    async with App(tmp_path / "app.sock") as app:
        descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        made = Relay(get_logger("relay"), Limits(handshake_timeout=30))
        await made.apply(RelayConfig(inbound=(inbound(ca, app),), outbound=(outbound(ca, tmp_path / "o.sock"),)))
        address = port(made, "in")
        joined = await dial(address, marble(ca, "web"), ca.bundle)
        assert await ask(joined) == b"ping"
        silent = await asyncio.open_connection(address.host, address.port)
        waiting = await asyncio.open_unix_connection(tmp_path / "o.sock")
        while made.counters.of("in").handshakes + made.counters.of("out").handshakes < 2:
            await asyncio.sleep(0)
        await made.close()
        assert [await s[0].read() for s in (silent, waiting)] == [b"", b""]
        for streams in (joined, silent, waiting):
            await hang_up(streams)
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208
        assert made.counters.bugs == 0


async def test_a_closed_relay_does_not_listen_again(tmp_path: Path) -> None:
    async with relay() as made:
        await made.close()
        with pytest.raises(RelayError, match="closed"):
            await made.apply(RelayConfig(outbound=(outbound(shared_ca(), tmp_path / "o.sock"),)))
        assert not os.listdir(tmp_path)  # noqa: PTH208


async def test_connections_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    ca = shared_ca()
    async with App(tmp_path / "app.sock") as app, relay(Limits(connections=1)) as made:
        await made.apply(RelayConfig(inbound=(inbound(ca, app),)))
        streams = await dial(port(made, "in"), marble(ca, "web"), ca.bundle)
        assert await ask(streams) == b"ping"
        assert await try_to_ask(port(made, "in"), client_context(marble(ca, "web"), ca.bundle)) == b""
        assert made.counters.of("in").refused == {Refusal.LIMIT: 1}
        await hang_up(streams)
