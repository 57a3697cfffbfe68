# SPDX-License-Identifier: Apache-2.0
"""What the relay's TLS says and takes: alerts, versions, protocols, no resumption; every first flight ends in time."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from enclave_proxy.counters import Refusal
from enclave_proxy.relay_config import Membership, PeerRule, RelayConfig, TcpAddress, TlsOptions
from enclave_proxy.tls_library import certificate_from
from enclave_proxy.tls_verify import CLIENT, NotVerified, PeerVerifier, Verified
from sds.ca import pem_of
from sds.material import Identity, TrustBundle
from sds.tls import client_context, server_context
from tests.kit.mesh_relay import App, ask, connect, hang_up, inbound, only, outbound, port, relay, try_to_ask
from tests.kit.pki import HOUR, marble, now, odd_leaf, other_ca, shared_ca


def shake_hands(
    where: tuple[str, int], context: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> ssl.SSLSocket:
    """A blocking client, which unlike asyncio's reads the alert."""
    raw = socket.create_connection(where, timeout=10)
    try:
        return context.wrap_socket(raw, session=session)
    except BaseException:
        raw.close()
        raise


def alert_for(where: tuple[str, int], context: ssl.SSLContext) -> str:
    try:
        with shake_hands(where, context) as client:
            client.recv(1)
            return "none"
    except ssl.SSLError as e:
        return str(e.reason)


# Who, what it hears, and what we count. The guide's table of reasons is compared with this one.
ALERTED = (
    ("stranger", "TLSV1_ALERT_UNKNOWN_CA", Refusal.UNTRUSTED),
    ("expired", "SSLV3_ALERT_CERTIFICATE_EXPIRED", Refusal.EXPIRED),
    ("revoked", "SSLV3_ALERT_CERTIFICATE_REVOKED", Refusal.REVOKED),
    ("other type", "SSLV3_ALERT_BAD_CERTIFICATE", Refusal.PEER_NOT_ALLOWED),
    ("nobody", "TLSV13_ALERT_CERTIFICATE_REQUIRED", Refusal.NO_CERTIFICATE),
    ("old", "TLSV1_ALERT_PROTOCOL_VERSION", Refusal.TLS_ERROR),
)


@pytest.mark.parametrize(("who", "alert", "reason"), ALERTED)
async def test_a_refused_peer_gets_the_alert_that_comes_nearest(
    tmp_path: Path, who: str, alert: str, reason: Refusal
) -> None:
    ca = shared_ca()
    revoked = marble(ca, "web")
    old = client_context(marble(ca, "web"), ca.bundle, ssl.TLSVersion.TLSv1_2)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    context = {
        "stranger": client_context(marble(other_ca(), "web"), ca.bundle),
        "expired": client_context(odd_leaf(ca, not_before=now() - 2 * HOUR, not_after=now() - HOUR), ca.bundle),
        "revoked": client_context(revoked, ca.bundle),
        "other type": client_context(marble(ca, "job"), ca.bundle),
        "nobody": client_context(None, ca.bundle),
        "old": old,
    }[who]
    async with App(tmp_path / "app.sock") as app, relay() as made:
        await made.apply(RelayConfig(inbound=(inbound(ca, app),)))
        made.update_membership(Membership(revoked=frozenset({str(revoked.spiffe_id)})))
        where = port(made, "in")
        assert await asyncio.to_thread(alert_for, (where.host, where.port), context) == alert
        assert (made.counters.of("in").refused, app.accepted) == ({reason: 1}, 0)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_no_session_is_resumed(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """A resumed session would skip the certificate, and so outlive what it was allowed by."""
    ca = shared_ca()
    context = client_context(marble(ca, "web"), ca.bundle, version)
    context.maximum_version = version

    def twice(where: tuple[str, int]) -> bool | None:
        with shake_hands(where, context) as first:
            first.sendall(b"x")
            first.recv(1)
            session = first.session
            assert session is not None
            if version == ssl.TLSVersion.TLSv1_2:  # in 1.3 OpenSSL sends tickets, which nobody takes back
                assert (session.has_ticket, session.id) == (False, b"")
        with shake_hands(where, context, session) as second:
            second.sendall(b"x")
            assert second.recv(1) == b"x"
            return second.session_reused

    async with App(tmp_path / "app.sock") as app, relay() as made:
        await made.apply(RelayConfig(inbound=(replace(inbound(ca, app), tls=TlsOptions(minimum="1.2")),)))
        where = port(made, "in")
        assert await asyncio.to_thread(twice, (where.host, where.port)) is False


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_what_servers_offer_for_resumption_is_not_taken(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """Else a peer would be believed for what it was when the session began."""
    ca, resumed = shared_ca(), list[bool]()
    context = server_context(marble(ca, "backend"), ca.bundle, require_client_certificate=True, minimum=version)
    context.maximum_version, context.num_tickets = version, 2
    context.options &= ~ssl.OP_NO_TICKET

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(1))
        resumed.append(writer.get_extra_info("ssl_object").session_reused)
        await reader.read()
        writer.close()

    async with await asyncio.start_server(echo, "127.0.0.1", 0, ssl=context) as server, relay() as made:
        peer = TcpAddress(*server.sockets[0].getsockname())
        route = replace(outbound(ca, tmp_path / "out.sock", peer), tls=TlsOptions(minimum="1.2"))
        await made.apply(RelayConfig(outbound=(route,)))
        for _ in range(3):
            streams = await asyncio.open_unix_connection(tmp_path / "out.sock")
            assert await ask(streams, b"x") == b"x"
            await hang_up(streams)
    assert resumed == [False, False, False]


@pytest.mark.parametrize(("offered", "agreed"), [(["h2", "echo/1"], "echo/1"), (["h2"], None), ([], None)])
async def test_the_first_protocol_of_the_route_that_the_peer_offers_is_agreed_upon(
    tmp_path: Path, offered: list[str], agreed: str | None
) -> None:
    ca = shared_ca()
    context = client_context(marble(ca, "web"), ca.bundle)
    context.set_alpn_protocols(offered)

    def ask(where: tuple[str, int]) -> str | None:
        with shake_hands(where, context) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            return client.selected_alpn_protocol()

    async with App(tmp_path / "app.sock") as app, relay() as made:
        await made.apply(RelayConfig(inbound=(replace(inbound(ca, app), tls=TlsOptions(alpn=("echo/2", "echo/1"))),)))
        where = port(made, "in")
        assert await asyncio.to_thread(ask, (where.host, where.port)) == agreed


async def test_a_port_that_takes_tls_1_2_no_more_keeps_the_connections_that_it_has(tmp_path: Path) -> None:
    ca = shared_ca()
    old = client_context(marble(ca, "web"), ca.bundle, ssl.TLSVersion.TLSv1_2)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    async with App(tmp_path / "app.sock") as app, relay() as made:
        route = inbound(ca, app)
        await made.apply(RelayConfig(inbound=(replace(route, tls=TlsOptions(minimum="1.2")),)))
        where = port(made, "in")
        streams = await connect(where, old)
        assert await ask(streams) == b"ping"
        await made.apply(RelayConfig(inbound=(route,)))
        assert await try_to_ask(where, old) == b""
        assert await ask(streams) == b"ping"
        await hang_up(streams)


def big_client_hello() -> bytes:
    """64 KiB that claim to be one: four records of a handshake message that never ends."""
    body = b"\x01" + (1 << 16).to_bytes(3, "big") + bytes(16380)
    return b"".join(
        b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part for part in (body, bytes(16384), bytes(16384))
    )


@pytest.mark.parametrize(
    "flight",
    [
        lambda: b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        lambda: bytes.fromhex("802e0100020015000000100700c0030080010080060040040080020080") + bytes(16),  # SSL 2.0
        lambda: random.Random(5).randbytes(4096),
        lambda: b"\x16\x03\x01",
        lambda: b"",
        big_client_hello,
    ],
)
async def test_every_hostile_first_flight_ends_within_the_handshake_timeout(
    tmp_path: Path, flight: Callable[[], bytes]
) -> None:
    async with App(tmp_path / "app.sock") as app, relay() as made:
        await made.apply(RelayConfig(inbound=(inbound(shared_ca(), app),)))
        where = port(made, "in")
        reader, writer = await asyncio.open_connection(where.host, where.port)
        writer.write(flight())
        with suppress(ConnectionError):
            async with asyncio.timeout(5):
                await reader.read()
        writer.transport.abort()
        counters = made.counters.of("in")
        async with asyncio.timeout(5):
            while counters.handshakes:
                await asyncio.sleep(0.01)
        assert sum(counters.refused.values()) == 1
        assert not set(counters.refused) - {Refusal.PLAINTEXT, Refusal.TLS_ERROR, Refusal.TIMEOUT}
        assert app.accepted == 0


async def test_one_byte_at_a_time_does_not_stretch_the_handshake(tmp_path: Path) -> None:
    async with App(tmp_path / "app.sock") as app, relay() as made:
        await made.apply(RelayConfig(inbound=(inbound(shared_ca(), app),)))
        where = port(made, "in")
        _, writer = await asyncio.open_connection(where.host, where.port)
        counters = made.counters.of("in")
        async with asyncio.timeout(5):
            for byte in b"\x16\x03\x01\x02\x00\x01" + bytes(400):
                if counters.refused:
                    break
                writer.write(bytes([byte]))
                await asyncio.sleep(0.02)
        assert counters.refused == {Refusal.TIMEOUT: 1}
        writer.transport.abort()


def der(identity: Identity) -> bytes:
    return identity.leaf.public_bytes(Encoding.DER)


def test_a_verified_peer_is_remembered_until_it_expires_and_no_longer() -> None:
    """The clock passes the certificate's end: the entry counts no more, and OpenSSL, whose clock is real, is asked."""
    ca = shared_ca()
    time = [now().timestamp()]
    verifier = PeerVerifier(ca.bundle, CLIENT, lambda: time[0])
    leaf = certificate_from(der(odd_leaf(ca, not_after=now() + HOUR)))
    first = verifier.leaf(leaf)
    assert isinstance(first, Verified)
    assert verifier.leaf(leaf) is first
    time[0] += 2 * 3600
    assert verifier.leaf(leaf) is not first
    time[0] -= 24 * 3600
    assert verifier.leaf(leaf) is not first


def test_what_did_not_verify_is_not_remembered_and_strangers_fill_no_memory() -> None:
    verifier = PeerVerifier(shared_ca().bundle, CLIENT)
    for _ in range(3):
        answer = verifier.leaf(certificate_from(der(marble(other_ca(), "web"))))
        assert isinstance(answer, NotVerified)
        assert not answer.missing_issuer
    assert len(verifier) == 0


async def test_a_peer_whose_issuer_comes_along_with_it_is_admitted_and_a_stranger_like_it_is_not(
    tmp_path: Path,
) -> None:
    """The bundle holds the root alone, so that the path leads through what the peer has sent."""
    ca, foreign = shared_ca(), other_ca()
    root = TrustBundle(pem_of(ca.root))
    client = marble(ca, "web")
    assert len(client.certificates) > 1
    async with App(tmp_path / "app.sock") as app, relay() as made:
        await made.apply(RelayConfig(inbound=(inbound(ca, app, bundle=root, peers=only(ca, "web")),)))
        where = port(made, "in")

        def ask(context: ssl.SSLContext) -> bytes:
            with suppress(ssl.SSLError, ConnectionError), shake_hands((where.host, where.port), context) as peer:
                peer.sendall(b"x")
                return peer.recv(1)
            return b""

        assert await asyncio.to_thread(ask, client_context(client, ca.bundle)) == b"x"
        stranger = client_context(marble(foreign, "web"), ca.bundle)
        assert await asyncio.to_thread(ask, stranger) == b""
        assert made.counters.of("in").refused == {Refusal.UNTRUSTED: 1}
        assert app.accepted == 1
        await made.apply(RelayConfig(inbound=(inbound(ca, app, bundle=root, peers=PeerRule()),)))
        assert await asyncio.to_thread(ask, stranger) == b""
