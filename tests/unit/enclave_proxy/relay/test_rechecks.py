# SPDX-License-Identifier: Apache-2.0
"""Connections that are open already end when their peer may no longer talk, and for no other reason."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from enclave_proxy.counters import Refusal
from enclave_proxy.relay import Relay
from enclave_proxy.relay_config import Membership, PeerRule, RelayConfig, SanMatcher, TcpAddress
from sds.ca import CertificateAuthority
from sds.identity import any_marble_prefix
from sds.material import TrustBundle
from sds.resources import MarbleTypes
from sds.tls import client_context, server_context
from tests.kit.mesh_relay import App, Streams, ask, dial, hang_up, inbound, only, outbound, port, relay, try_to_ask
from tests.kit.pki import make_ca, marble, now, shared_ca


async def ended(streams: Streams) -> bool:
    with suppress(ConnectionError):
        return await streams[0].read(1) == b""
    return True


async def test_a_rule_that_no_longer_has_a_type_ends_its_open_connections_and_no_others(tmp_path: Path) -> None:
    ca = shared_ca()
    web, job = only(ca, "web"), only(ca, "job")
    both = PeerRule((*web.matchers, *job.matchers))
    async with App(tmp_path / "app.sock") as app, relay() as made:
        await made.apply(RelayConfig(inbound=(inbound(ca, app, peers=both),)))
        stays = await dial(port(made, "in"), marble(ca, "web"), ca.bundle)
        goes = await dial(port(made, "in"), marble(ca, "job"), ca.bundle)
        assert [await ask(stays), await ask(goes)] == [b"ping", b"ping"]
        await made.apply(RelayConfig(inbound=(inbound(ca, app, peers=web),)))
        assert await ended(goes)
        assert await ask(stays) == b"ping"
        assert made.counters.of("in").ended == {Refusal.PEER_NOT_ALLOWED: 1}
        await hang_up(stays)
        await hang_up(goes)


async def test_a_renewed_identity_and_another_root_end_nothing(tmp_path: Path) -> None:
    """The peer's certificate is of a root that is not trusted any more; it was good when it came."""
    old = make_ca()
    new = old.rotate(now())
    async with App(tmp_path / "app.sock") as app, relay() as made:
        await made.apply(RelayConfig(inbound=(inbound(old, app),)))
        streams = await dial(port(made, "in"), marble(old, "web"), old.bundle)
        assert await ask(streams) == b"ping"
        for bundle in (TrustBundle(old.bundle.pem + new.bundle.pem), new.bundle):
            await made.apply(RelayConfig(inbound=(inbound(old, app, identity=marble(new, "backend"), bundle=bundle),)))
            assert await ask(streams) == b"ping"
        assert await try_to_ask(port(made, "in"), client_context(marble(old, "web"), new.bundle)) == b""
        assert made.counters.of("in").ended == {}
        await hang_up(streams)


async def both_ways(made: Relay, tmp_path: Path, app: App) -> tuple[Streams, Streams, frozenset[str]]:
    """A connection in and one out, both with the same peer; and its name."""
    ca = shared_ca()
    peer = marble(ca, "web")
    rule = only(ca, "web")
    behind = inbound(ca, app, identity=peer, peers=PeerRule(), name="peer")
    await made.apply(RelayConfig(inbound=(behind,)))
    where = port(made, "peer")
    config = RelayConfig(
        inbound=(behind, inbound(ca, app)),
        outbound=(outbound(ca, tmp_path / "out.sock", where, peer=rule),),
    )
    await made.apply(config)
    into = await dial(port(made, "in"), peer, ca.bundle)
    out = await asyncio.open_unix_connection(str(tmp_path / "out.sock"))
    return into, out, frozenset({str(peer.spiffe_id)})


async def test_an_instance_that_was_turned_out_loses_what_is_open_in_both_directions(tmp_path: Path) -> None:
    async with App(tmp_path / "app.sock") as app, relay() as made:
        into, out, name = await both_ways(made, tmp_path, app)
        other = await dial(port(made, "in"), marble(shared_ca(), "web"), shared_ca().bundle)
        assert [await ask(into), await ask(out), await ask(other)] == [b"ping"] * 3
        made.update_membership(Membership(revoked=name))
        assert await ended(into)
        assert await ended(out)
        assert await ask(other) == b"ping"
        assert made.counters.of("in").ended == {Refusal.REVOKED: 1}
        assert made.counters.of("out").ended == {Refusal.REVOKED: 1}
        for streams in (into, out, other):
            await hang_up(streams)


def types(*names: str) -> Membership:
    return Membership(types=MarbleTypes(any_marble_prefix(shared_ca().trust_domain), frozenset(names)))


async def test_where_any_marble_may_connect_one_of_a_type_that_is_gone_loses_what_is_open(tmp_path: Path) -> None:
    """The Coordinator need not know the instance: it may never have come back since the Coordinator's restart."""
    ca = shared_ca()
    anybody = PeerRule((SanMatcher("uri", prefix=any_marble_prefix(ca.trust_domain)),))
    async with App(tmp_path / "app.sock") as app, relay() as made:
        await made.apply(RelayConfig(inbound=(inbound(ca, app, peers=anybody),)))
        made.update_membership(types("web", "job"))
        stays = await dial(port(made, "in"), marble(ca, "web"), ca.bundle)
        goes = await dial(port(made, "in"), marble(ca, "job"), ca.bundle)
        assert [await ask(stays), await ask(goes)] == [b"ping", b"ping"]
        made.update_membership(types("web", "jobs"))
        assert await ended(goes)
        assert await ask(stays) == b"ping"
        assert await try_to_ask(port(made, "in"), client_context(marble(ca, "job"), ca.bundle)) == b""
        counters = made.counters.of("in")
        assert (counters.ended, counters.refused) == ({Refusal.REVOKED: 1}, {Refusal.REVOKED: 1})
        await hang_up(stays)
        await hang_up(goes)


async def test_a_root_that_comes_during_a_handshake_makes_the_worker_dial_again(tmp_path: Path) -> None:
    """The peer was busy: by the time it answers it shows an identity that our context did not know when we dialled."""
    old = make_ca()
    new = old.rotate(now())
    both = TrustBundle(old.bundle.pem + new.bundle.pem)
    context = server_context(marble(new, "backend"), both, require_client_certificate=True)
    with socket.create_server(("127.0.0.1", 0)) as peer:
        peer.setblocking(False)
        where = TcpAddress(*peer.getsockname())
        await dialled_again(peer, where, context, (old, both), tmp_path)


async def dialled_again(
    peer: socket.socket,
    where: TcpAddress,
    context: ssl.SSLContext,
    roots: tuple[CertificateAuthority, TrustBundle],
    tmp_path: Path,
) -> None:
    loop = asyncio.get_running_loop()
    old, both = roots

    async def serve(connection: socket.socket) -> None:
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        with suppress(ConnectionError, ssl.SSLError):
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection, ssl=context)
            transport.write(await reader.read(4))

    route = outbound(old, tmp_path / "out.sock", where)
    async with relay() as made:
        await made.apply(RelayConfig(outbound=(route,)))
        streams = await asyncio.open_unix_connection(str(tmp_path / "out.sock"))
        first, _ = await loop.sock_accept(peer)
        await made.apply(RelayConfig(outbound=(replace(route, bundle=both),)))
        await serve(first)
        second, _ = await loop.sock_accept(peer)
        async with asyncio.TaskGroup() as group:
            group.create_task(serve(second))
            assert await ask(streams) == b"ping"
        assert made.counters.of("out").refused == {}
        await hang_up(streams)


async def test_an_instance_that_was_turned_out_is_refused_and_may_come_back(tmp_path: Path) -> None:
    ca = shared_ca()
    web = marble(ca, "web")
    async with App(tmp_path / "app.sock") as app, relay() as made:
        await made.apply(RelayConfig(inbound=(inbound(ca, app),)))
        made.update_membership(Membership(revoked=frozenset({str(web.spiffe_id)})))
        assert await try_to_ask(port(made, "in"), client_context(web, ca.bundle)) == b""
        assert (made.counters.of("in").refused, app.accepted) == ({Refusal.REVOKED: 1}, 0)
        made.update_membership(Membership())
        assert await try_to_ask(port(made, "in"), client_context(web, ca.bundle)) == b"ping"


async def test_a_connection_of_a_listener_that_is_gone_ends_when_its_peer_is_turned_out(tmp_path: Path) -> None:
    ca = shared_ca()
    web = marble(ca, "web")
    async with App(tmp_path / "app.sock") as app, relay() as made:
        await made.apply(RelayConfig(inbound=(inbound(ca, app),)))
        streams = await dial(port(made, "in"), web, ca.bundle)
        assert await ask(streams) == b"ping"
        await made.apply(RelayConfig())
        assert await ask(streams) == b"ping"
        made.update_membership(Membership(revoked=frozenset({str(web.spiffe_id)})))
        assert await ended(streams)
        await hang_up(streams)
