# SPDX-License-Identifier: Apache-2.0
"""Every peer that must not get through: it gets no byte, the app sees no connection, and the reason is counted."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from enclave_proxy.counters import Refusal
from enclave_proxy.limits import Limits
from enclave_proxy.relay_config import PeerRule, RelayConfig
from sds.ca import CertificateAuthority
from sds.tls import client_context
from tests.kit.mesh_relay import App, inbound, port, relay, try_to_ask
from tests.kit.pki import HOUR, marble, now, odd_leaf, other_ca, shared_ca

Client = Callable[[CertificateAuthority], ssl.SSLContext | None]


def without_certificate(ca: CertificateAuthority) -> ssl.SSLContext:
    return client_context(None, ca.bundle)


def of_another_ca(ca: CertificateAuthority) -> ssl.SSLContext:
    return client_context(marble(other_ca(), "web"), ca.bundle)


def of_another_type(ca: CertificateAuthority) -> ssl.SSLContext:
    return client_context(marble(ca, "web-admin"), ca.bundle)


def without_names(ca: CertificateAuthority) -> ssl.SSLContext:
    return client_context(odd_leaf(ca, uris=()), ca.bundle)


def self_signed(ca: CertificateAuthority) -> ssl.SSLContext:
    uri = str(marble(ca, "web").spiffe_id)
    return client_context(odd_leaf(ca, uris=[uri], self_signed=True), ca.bundle)


def expired(ca: CertificateAuthority) -> ssl.SSLContext:
    return client_context(odd_leaf(ca, not_before=now() - 2 * HOUR, not_after=now() - HOUR), ca.bundle)


def not_yet_valid(ca: CertificateAuthority) -> ssl.SSLContext:
    return client_context(odd_leaf(ca, not_before=now() + HOUR, not_after=now() + 2 * HOUR), ca.bundle)


def for_servers_only(ca: CertificateAuthority) -> ssl.SSLContext:
    uri = str(marble(ca, "web").spiffe_id)
    return client_context(odd_leaf(ca, uris=[uri], usages=[ExtendedKeyUsageOID.SERVER_AUTH]), ca.bundle)


def of_a_ca(ca: CertificateAuthority) -> ssl.SSLContext:
    return client_context(odd_leaf(ca, uris=[str(marble(ca, "web").spiffe_id)], is_ca=True), ca.bundle)


def that_may_sign(ca: CertificateAuthority) -> ssl.SSLContext:
    usage = x509.KeyUsage(True, False, False, False, False, True, False, False, False)
    return client_context(odd_leaf(ca, uris=[str(marble(ca, "web").spiffe_id)], extensions=[usage]), ca.bundle)


def with_another_uri(ca: CertificateAuthority) -> ssl.SSLContext:
    return client_context(odd_leaf(ca, uris=["https://elsewhere/", str(marble(ca, "web").spiffe_id)]), ca.bundle)


def of_old_tls(ca: CertificateAuthority) -> ssl.SSLContext:
    context = client_context(marble(ca, "web"), ca.bundle, ssl.TLSVersion.TLSv1_2)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def that_distrusts_us(ca: CertificateAuthority) -> ssl.SSLContext:
    return client_context(marble(ca, "web"), other_ca().bundle)


def plaintext(ca: CertificateAuthority) -> None:
    return None


@pytest.mark.parametrize(
    ("client", "reason"),
    [
        (without_certificate, Refusal.NO_CERTIFICATE),
        (of_another_ca, Refusal.UNTRUSTED),
        (of_another_type, Refusal.PEER_NOT_ALLOWED),
        (without_names, Refusal.PEER_NOT_ALLOWED),
        (self_signed, Refusal.UNTRUSTED),
        (expired, Refusal.EXPIRED),
        (not_yet_valid, Refusal.EXPIRED),
        (for_servers_only, Refusal.UNTRUSTED),
        (of_a_ca, Refusal.UNTRUSTED),
        (that_may_sign, Refusal.UNTRUSTED),
        (with_another_uri, Refusal.PEER_NOT_ALLOWED),
        (of_old_tls, Refusal.TLS_ERROR),
        (that_distrusts_us, Refusal.ABORTED),  # asyncio, here the client, closes without sending OpenSSL's alert
        (plaintext, Refusal.PLAINTEXT),
    ],
)
async def test_a_peer_that_must_not_get_through_gets_nothing(tmp_path: Path, client: Client, reason: Refusal) -> None:
    ca = shared_ca()
    async with App(tmp_path / "app.sock") as app, relay() as made:
        await made.apply(RelayConfig(inbound=(inbound(ca, app),)))
        assert await try_to_ask(port(made, "in"), client(ca), b"GET / HTTP/1.1\r\n\r\n") == b""
        await made.close(drain=1)
        assert made.counters.of("in").refused == {reason: 1}
        assert app.accepted == 0


async def test_a_silent_client_is_cut_off(tmp_path: Path) -> None:
    async with App(tmp_path / "app.sock") as app, relay() as made:
        await made.apply(RelayConfig(inbound=(inbound(shared_ca(), app),)))
        address = port(made, "in")
        reader, writer = await asyncio.open_connection(address.host, address.port)
        assert await reader.read() == b""
        writer.close()
        await made.close(drain=1)
        assert made.counters.of("in").refused == {Refusal.TIMEOUT: 1}
        assert app.accepted == 0


async def test_who_is_silent_in_its_handshake_makes_room_for_who_waits(tmp_path: Path) -> None:
    ca = shared_ca()
    limits = Limits(handshakes=2)  # with the timeout of ten seconds that others have
    async with App(tmp_path / "app.sock") as app, relay(limits) as made:
        await made.apply(RelayConfig(inbound=(inbound(ca, app),)))
        address = port(made, "in")
        silent = [await asyncio.open_connection(address.host, address.port) for _ in range(3)]
        client = client_context(marble(ca, "web"), ca.bundle)
        assert await try_to_ask(address, client) == b"ping"
        assert made.counters.of("in").refused == {Refusal.LIMIT: 2}
        for _, writer in silent:
            writer.transport.abort()


async def test_a_client_that_goes_away_during_the_handshake_is_counted(tmp_path: Path) -> None:
    async with App(tmp_path / "app.sock") as app, relay() as made:
        await made.apply(RelayConfig(inbound=(inbound(shared_ca(), app),)))
        address = port(made, "in")
        _, writer = await asyncio.open_connection(address.host, address.port)
        writer.close()
        await writer.wait_closed()
        await made.close(drain=1)
        assert made.counters.of("in").refused == {Refusal.ABORTED: 1}


async def test_an_allowed_peer_of_an_open_listener_needs_no_certificate(tmp_path: Path) -> None:
    ca = shared_ca()
    async with App(tmp_path / "app.sock") as app, relay() as made:
        await made.apply(RelayConfig(inbound=(inbound(ca, app, require=False, peers=PeerRule()),)))
        assert await try_to_ask(port(made, "in"), without_certificate(ca)) == b"ping"
        assert await try_to_ask(port(made, "in"), of_another_ca(ca)) == b""


async def test_without_certificate_no_rule_about_names_is_met(tmp_path: Path) -> None:
    ca = shared_ca()
    async with App(tmp_path / "app.sock") as app, relay() as made:
        await made.apply(RelayConfig(inbound=(inbound(ca, app, require=False),)))
        assert await try_to_ask(port(made, "in"), without_certificate(ca)) == b""
        assert made.counters.of("in").refused == {Refusal.NO_CERTIFICATE: 1}
        assert app.accepted == 0


async def test_an_app_that_does_not_listen_is_reported(tmp_path: Path) -> None:
    ca = shared_ca()
    async with relay() as made:
        await made.apply(RelayConfig(inbound=(inbound(ca, App(tmp_path / "nobody.sock")),)))
        assert await try_to_ask(port(made, "in"), client_context(marble(ca, "web"), ca.bundle)) == b""
        assert made.counters.of("in").refused == {Refusal.UPSTREAM_UNAVAILABLE: 1}
