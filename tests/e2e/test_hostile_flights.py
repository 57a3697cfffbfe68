# SPDX-License-Identifier: Apache-2.0
"""Every hostile first flight ends by the worker's doing, and is counted under the reason that it has; so does every
hostile server that the worker dials. A real worker with a real Coordinator, each flight at a port of its own, all at
the same time. The tables are the specification."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.kit import hostile_flights as flights
from tests.kit import hostile_identities as identities
from tests.kit import hostile_servers as servers
from tests.kit.hostile_flights import dribble, half_close, hello, old_hello, reset, say, shake_hands
from tests.kit.hostile_scene import PLACES, SECRET, Scene, hostile_scene
from tests.kit.mesh import PATIENCE, Json, free_port
from tests.kit.pki import HOUR, now

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]

TLS_1_2 = ssl.TLSVersion.TLSv1_2
LONG_AGO = {"not_before": now() - 2 * HOUR, "not_after": now() - HOUR}
NOT_YET = {"not_before": now() + HOUR, "not_after": now() + 2 * HOUR}

Flight = Callable[[Scene, int], Awaitable[object]]


def showing(
    made: Callable[[Scene], identities.Shown | None], version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> Flight:
    """A handshake by the book with a certificate that is not."""
    return lambda scene, port: shake_hands(port, made(scene), version)


def sending(flight: Callable[[], bytes], *then: Callable[[], bytes]) -> Flight:
    return lambda _, port: say(port, flight(), *(more() for more in then))


FLIGHTS: Mapping[str, tuple[Flight, str]] = {
    # ---- no TLS, or none that is spoken today
    "plaintext HTTP": (sending(lambda: b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), "plaintext"),
    "plaintext HTTP/2": (sending(lambda: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), "plaintext"),
    "random bytes": (sending(flights.random_bytes), "plaintext"),
    "hello of SSL 2.0": (sending(lambda: flights.SSL_2_HELLO), "plaintext"),  # its records look like nothing of TLS
    "hello of SSL 3.0": (sending(lambda: old_hello(0x0300)), "tls_error"),
    "hello of TLS 1.0": (sending(lambda: old_hello(0x0301)), "tls_error"),
    "hello of TLS 1.1": (sending(lambda: old_hello(0x0302)), "tls_error"),
    "handshake of TLS 1.2": (showing(lambda m: identities.good(m.ca, "client"), TLS_1_2), "tls_error"),
    # ---- too slow, too long, broken off
    "not a byte": (sending(lambda: b""), "timeout"),
    "one byte at a time": (lambda _, port: dribble(port, hello(), 0.2), "timeout"),
    "a hello and no more": (sending(hello), "timeout"),
    "hello of 64 KiB": (sending(flights.long_hello), "tls_error"),
    "record of 64 KiB": (sending(flights.oversized_record), "tls_error"),
    "garbage behind a hello": (sending(hello, flights.random_bytes), "tls_error"),
    "a second hello behind the first": (sending(hello, hello), "tls_error"),
    "hang up at once": (lambda _, port: half_close(port, b""), "aborted"),
    "half-close in the middle": (lambda _, port: half_close(port, hello()), "aborted"),
    "half-close in the middle of a record": (lambda _, port: half_close(port, hello()[:50]), "aborted"),
    "reset in the middle": (lambda _, port: reset(port, hello()), "aborted"),
    # ---- certificates
    "no certificate": (showing(lambda m: None), "no_certificate"),
    "self-signed": (showing(lambda m: identities.odd(m.ca, self_signed=True)), "untrusted"),
    "of another mesh": (showing(lambda m: identities.good(m.foreign, "client")), "untrusted"),
    "of the root before the last rotation": (showing(lambda m: identities.good(m.former, "client")), "untrusted"),
    "expired": (
        showing(lambda m: identities.odd(m.ca, not_before=now() - 2 * HOUR, not_after=now() - HOUR)),
        "expired",
    ),
    "not yet valid": (
        showing(lambda m: identities.odd(m.ca, not_before=now() + HOUR, not_after=now() + 2 * HOUR)),
        "expired",
    ),
    "of a type that Peers does not name": (showing(lambda m: identities.good(m.ca, "other")), "peer_not_allowed"),
    "without a name": (showing(lambda m: identities.odd(m.ca, uris=(), dns_names=())), "peer_not_allowed"),
    "with a host name alone": (showing(lambda m: identities.odd(m.ca, uris=())), "peer_not_allowed"),
    "with two SPIFFE IDs": (
        showing(lambda m: identities.odd(m.ca, more_uris=["spiffe://elsewhere/a"])),
        "peer_not_allowed",
    ),
    "for servers alone": (
        showing(lambda m: identities.odd(m.ca, usages=[ExtendedKeyUsageOID.SERVER_AUTH])),
        "untrusted",
    ),
    "of a CA": (showing(lambda m: identities.odd(m.ca, is_ca=True)), "untrusted"),
    "behind 100 intermediates": (showing(lambda m: identities.deep(m.ca, 100)), "untrusted"),
    "behind 9 intermediates": (showing(lambda m: identities.deep(m.ca, 9)), "untrusted"),
    "of 100 KiB": (showing(lambda m: identities.of_bytes(m.ca, 100 << 10)), "tls_error"),
    "all certificates twice, of another type": (
        showing(lambda m: identities.everything_twice(m.ca, "other")),
        "peer_not_allowed",
    ),
    # ---- the control: who is allowed gets through, also with a chain that is longer than it need be
    "an allowed peer": (showing(lambda m: identities.good(m.ca, "client")), "established"),
    "all certificates twice": (showing(lambda m: identities.everything_twice(m.ca, "client")), "established"),
}

Served = Callable[[Scene], servers.Server]


def presenting(made: Callable[[Scene], identities.Shown]) -> Served:
    return lambda scene: servers.presenting(made(scene))


SERVERS: Mapping[str, tuple[Served, str]] = {
    "plaintext HTTP": (lambda _: servers.answering(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "plaintext"),
    "random bytes": (lambda _: servers.answering(flights.random_bytes()), "plaintext"),
    "not a byte": (lambda _: servers.answering(b""), "timeout"),
    "half of a record": (lambda _: servers.answering(b"\x16\x03\x03\x00\x7a\x02"), "timeout"),
    "record of 64 KiB": (lambda _: servers.answering(flights.oversized_record()), "tls_error"),
    "hello of 64 KiB": (lambda _: servers.answering(flights.long_hello(kind=2)), "tls_error"),
    "an alert": (lambda _: servers.answering(flights.record(21, b"\x02\x28", 0x0303)), "refused_by_peer"),
    "refuses our version": (lambda _: servers.answering(flights.record(21, b"\x02\x46", 0x0303)), "refused_by_peer"),
    "hello of TLS 1.2": (lambda _: servers.answering(flights.server_hello(0x0303)), "tls_error"),
    "hello of TLS 1.0": (lambda _: servers.answering(flights.server_hello(0x0301)), "tls_error"),
    "hangs up at once": (lambda _: servers.hanging_up(), "aborted"),
    "hangs up behind the hello": (lambda _: servers.answering(b"", close=True), "aborted"),
    "nobody": (lambda _: servers.nobody, "upstream_unavailable"),
    "self-signed": (presenting(lambda s: identities.odd(s.ca, "db", self_signed=True)), "untrusted"),
    "of another mesh": (presenting(lambda s: identities.good(s.foreign, "db")), "untrusted"),
    "of the root before the last rotation": (presenting(lambda s: identities.good(s.former, "db")), "untrusted"),
    "expired": (presenting(lambda s: identities.odd(s.ca, "db", **LONG_AGO)), "expired"),
    "not yet valid": (presenting(lambda s: identities.odd(s.ca, "db", **NOT_YET)), "expired"),
    "of another type": (presenting(lambda s: identities.good(s.ca, "other")), "peer_not_allowed"),
    "with a host name alone": (presenting(lambda s: identities.odd(s.ca, uris=())), "peer_not_allowed"),
    "with two SPIFFE IDs": (
        presenting(lambda s: identities.odd(s.ca, "db", more_uris=["spiffe://elsewhere/a"])),
        "peer_not_allowed",
    ),
    "for clients alone": (
        presenting(lambda s: identities.odd(s.ca, "db", usages=[ExtendedKeyUsageOID.CLIENT_AUTH])),
        "untrusted",
    ),
    "of a CA": (presenting(lambda s: identities.odd(s.ca, "db", is_ca=True)), "untrusted"),
    "behind 100 intermediates": (presenting(lambda s: identities.deep(s.ca, 100, "db")), "untrusted"),
    "of 100 KiB": (presenting(lambda s: identities.of_bytes(s.ca, 100 << 10)), "tls_error"),
    # ---- the control
    "the peer that is wanted": (presenting(lambda s: identities.good(s.ca, "db")), "established"),
}

INBOUND = {name: free_port() for name in FLIGHTS}
OUTBOUND = {name: free_port() for name in SERVERS}
FLOODED, OLD_TLS = free_port(), free_port()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene() -> AsyncIterator[Scene]:
    incoming: list[Json] = [{"Port": str(port), "Peers": ["client"]} for port in (*INBOUND.values(), FLOODED)]
    incoming.append({"Port": str(OLD_TLS), "Peers": ["client"], "MinTLSVersion": "1.2", "ALPN": ["h2", "http/1.1"]})
    outgoing = [{"Addr": "127.0.0.1", "Port": str(port), "Peer": "db"} for port in OUTBOUND.values()]
    async with hostile_scene(incoming, outgoing) as made:
        yield made


async def test_every_hostile_first_flight_ends_and_is_counted_under_its_reason(scene: Scene) -> None:
    got = await asyncio.gather(*(fly(scene, INBOUND[name]) for name, (fly, _) in FLIGHTS.items()))

    counted = await scene.counted(scene.server, (f"inbound|{port}" for port in INBOUND.values()))
    assert {n: counted[f"inbound|{INBOUND[n]}"] for n in FLIGHTS} == {n: [why] for n, (_, why) in FLIGHTS.items()}
    let_in = [name for name, (_, reason) in FLIGHTS.items() if reason == "established"]
    assert [name for name, answer in zip(FLIGHTS, got, strict=True) if answer == SECRET] == let_in
    assert Counter(scene.seen) == Counter(str(INBOUND[name]) for name in let_in)


async def test_no_hostile_server_gets_a_byte_of_the_app(scene: Scene) -> None:
    received = {name: bytearray() for name in SERVERS}
    async with AsyncExitStack() as stack:
        for name, (made, _) in SERVERS.items():
            await stack.enter_async_context(made(scene)(OUTBOUND[name], received[name]))
        got = await asyncio.gather(*(tell(scene, port, b"the app's own words") for port in OUTBOUND.values()))

    counted = await scene.counted(scene.caller, (f"outbound|127.0.0.1|{port}" for port in OUTBOUND.values()))
    outcome = {name: counted[f"outbound|127.0.0.1|{OUTBOUND[name]}"] for name in SERVERS}
    assert outcome == {name: [reason] for name, (_, reason) in SERVERS.items()}
    answered = {name: answer for name, answer in zip(SERVERS, got, strict=True) if answer}
    assert answered == {"the peer that is wanted": b"None:the app's own words"}
    assert [name for name, bytes_ in received.items() if b"own words" in bytes_] == ["the peer that is wanted"]


async def tell(scene: Scene, port: int, words: bytes) -> bytes:
    """What the app gets for its words from a peer, before the peer or the worker ends it."""
    reader, writer = await asyncio.open_unix_connection(str(scene.caller.run_dir / f"127.0.0.1-{port}.sock"))
    try:
        writer.write(words)
        async with asyncio.timeout(PATIENCE):
            return await reader.readuntil(words)
    except (ConnectionError, asyncio.IncompleteReadError):
        return b""
    finally:
        writer.transport.abort()


async def test_a_flood_of_half_open_handshakes_makes_room_for_others(scene: Scene) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(2 * PLACES):
            _, writer = await stack.enter_async_context(flights.connection(FLOODED))
            writer.write(b"\x16")
        client = identities.good(scene.ca, "client")
        # Where the machine is so busy that an honest client, too, is silent for a second, it has to come again.
        answers = [await shake_hands(FLOODED, client) for _ in range(3)]
        assert SECRET in answers
    name = f"inbound|{FLOODED}"
    counted = Counter((await scene.counted(scene.server, [name]))[name])
    assert counted["established"] == answers.count(SECRET)
    assert counted["limit"] >= PLACES


@pytest.mark.parametrize("version", [TLS_1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_port_that_takes_tls_1_2_agrees_on_version_and_protocol(scene: Scene, version: ssl.TLSVersion) -> None:
    client = identities.good(scene.ca, "client")
    assert await shake_hands(OLD_TLS, client, version, ("spdy", "http/1.1", "h2"), said := []) == SECRET
    assert said == [(version.name.replace("v1_", "v1."), "h2")]
    assert await shake_hands(OLD_TLS, identities.good(scene.ca, "other"), version) == b""
    assert await shake_hands(OLD_TLS, None, version) == b""


async def test_a_renegotiation_is_refused(scene: Scene) -> None:
    client = identities.good(scene.ca, "client")
    said = await flights.renegotiate(OLD_TLS, client)
    assert "RENEGOTIATING" in said
    assert "no renegotiation" in said
