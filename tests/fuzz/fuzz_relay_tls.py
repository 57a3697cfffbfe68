# SPDX-License-Identifier: Apache-2.0
"""Hostile peers to the relay's TLS, from the accepted socket on: a whole relay, its listener, its app.

A script's first byte says what is played: bytes as a first flight to the listener, bytes as the answer to a hello of
ours, a real client or a real server that changes what it sends, or a client whose certificate has extensions of the
script's bytes. OpenSSL's own code is not watched by the fuzzer; what is ours is: callbacks in the middle of a
handshake, verification, names, reasons, counters.

The rules: every connection is counted once, nothing stays, no bug is counted; who has no certificate of our CA for the
right name is never let in; what a read gives out fits its buffer.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.x509.oid import ExtensionOID

from enclave_proxy.admission import Refused
from enclave_proxy.limits import Limits
from enclave_proxy.listener import tune
from enclave_proxy.relay import Relay
from enclave_proxy.relay_config import RelayConfig, TcpAddress, TlsOptions
from enclave_proxy.stream import END, WANT_READ, WANT_WRITE
from enclave_proxy.tls_context import TlsContext, dialling
from enclave_proxy.tls_library import CHUNK
from enclave_proxy.tls_stream import TlsStream
from sds.ca import pem_of
from sds.identity import type_prefix
from sds.keys import PrivateKey
from sds.tls import client_context, server_context
from tests.fuzz.driver import run
from tests.kit.hostile_identities import Shown
from tests.kit.mesh_relay import App, inbound, port
from tests.kit.pki import HOUR, marble, now, shared_ca

# What a certificate may say about itself; the key identifiers lead the path building.
_EXTENSIONS = (
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    ExtensionOID.NAME_CONSTRAINTS,
    ExtensionOID.CERTIFICATE_POLICIES,
    x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"),
)


class Quiet:
    """A log that nobody reads; a bug is counted all the same."""

    def info(self, event: str, **fields: object) -> None:
        pass

    def error(self, event: str, **fields: object) -> None:
        pass


@dataclass(frozen=True)
class World:
    """One relay for all scripts. It takes TLS 1.2, so that both versions are played."""

    loop: asyncio.AbstractEventLoop
    relay: Relay
    app: App
    address: TcpAddress
    client: TlsContext
    patience: float

    async def settled(self) -> None:
        counters = self.relay.counters.of("in")
        async with asyncio.timeout(5):
            while counters.handshakes or counters.active or counters.accepted != self.told():
                await asyncio.sleep(0)

    def told(self) -> int:
        counters = self.relay.counters.of("in")
        return counters.established + sum(counters.refused.values())


@cache
def world() -> World:
    """The one that scripts are played in. Most of them end by themselves; the others are cut off soon."""
    return make_world(0.01)


def make_world(patience: float) -> World:
    loop = asyncio.new_event_loop()
    ca, options = shared_ca(), TlsOptions(minimum="1.2", alpn=("h2", "http/1.1"))

    async def make() -> tuple[Relay, App]:
        app = await App(Path(mkdtemp(prefix="mm-")) / "app.sock").__aenter__()
        relay = Relay(Quiet(), Limits(handshake_timeout=patience, linger=patience))
        route = inbound(ca, app)
        await relay.apply(RelayConfig(inbound=(type(route)(**{**_fields(route), "tls": options}),)))
        return relay, app

    relay, app = loop.run_until_complete(make())
    return World(loop, relay, app, port(relay, "in"), dialling(marble(ca, "web"), ca.bundle, options), patience)


def end_world(made: World) -> None:
    made.loop.run_until_complete(made.relay.close())
    made.loop.run_until_complete(made.app.__aexit__())
    made.loop.close()


def _fields(route: object) -> dict[str, object]:
    return {name: getattr(route, name) for name in route.__slots__}  # type: ignore[attr-defined]


@cache
def peer(version: ssl.TLSVersion, *, server: bool, certificate: bool) -> ssl.SSLContext:
    ca = shared_ca()
    if server:
        context = server_context(marble(ca, "backend"), None, require_client_certificate=False, minimum=version)
    else:
        context = client_context(marble(ca, "web") if certificate else None, ca.bundle, version)
    context.maximum_version = version
    context.set_alpn_protocols(["http/1.1", "h2"])
    return context


# ---- scripts


class Script:
    """The fuzzer's bytes, taken from the front; zeroes when there are no more."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def byte(self) -> int:
        return (self.take(1) or b"\0")[0]

    def number(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def take(self, size: int) -> bytes:
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def rest(self) -> bytes:
        return self.take(60_000)


def changed(script: Script, flight: bytes) -> bytes:
    """A flight as it is sent: whole, or with a part of it replaced by bytes of the script."""
    if script.byte() % 4 != 1:
        return flight
    at, cut = script.number() % (len(flight) + 1), script.number() % 64
    return flight[:at] + script.take(script.byte() % 64) + flight[at + cut :]


async def exchange(script: Script, own: socket.socket, context: ssl.SSLContext, *, server: bool) -> None:
    """Play one side of TLS on a socket, with changes; then what is left of the script as it is."""
    loop = asyncio.get_running_loop()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=server)
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(4 * world().patience):
            for _ in range(6):
                done = False
                with suppress(ssl.SSLWantReadError):
                    tls.do_handshake()
                    done = True
                if flight := outgoing.read():
                    await loop.sock_sendall(own, changed(script, flight))
                if done:
                    break
                if not (answer := await loop.sock_recv(own, 65536)):
                    return
                incoming.write(answer)
            await loop.sock_sendall(own, script.rest())
            own.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(own, 65536):
                pass


async def connected(address: TcpAddress) -> socket.socket:
    own = socket.create_connection((address.host, address.port))
    own.setblocking(False)
    tune(own)
    return own


async def first_flight(script: Script) -> None:
    own = await connected(world().address)
    with own:
        flight = script.rest()
        with suppress(OSError):
            own.send(flight)
            if len(flight) % 8:  # else it waits until the relay has had enough
                own.shutdown(socket.SHUT_WR)
        await world().settled()


async def real_client(script: Script) -> None:
    kind = script.byte()
    version = ssl.TLSVersion.TLSv1_2 if kind & 1 else ssl.TLSVersion.TLSv1_3
    before = world().relay.counters.of("in").established
    with await connected(world().address) as own:
        await exchange(script, own, peer(version, server=False, certificate=not kind & 2), server=False)
    await world().settled()
    if kind & 2:
        assert world().relay.counters.of("in").established == before, "let in without a certificate"


async def answer_to_a_hello(script: Script) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        stream = TlsStream(world().client, ours, lambda _: None)
        theirs.send(script.rest() or b"\0")
        theirs.shutdown(socket.SHUT_WR)
        try:
            await stream.connect(world().patience, "backend.test")
        except Refused:
            return
        finally:
            stream.dismiss()
    raise AssertionError("nobody who sends one flight without knowing a key can finish a handshake")


async def real_server(script: Script) -> None:
    version = ssl.TLSVersion.TLSv1_2 if script.byte() & 1 else ssl.TLSVersion.TLSv1_3
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    stream = TlsStream(world().client, ours, lambda _: None)
    context = peer(version, server=True, certificate=True)
    playing = asyncio.ensure_future(exchange(script, theirs, context, server=True))
    try:
        await stream.connect(world().patience, "backend.test")
        for size in _reads(stream):
            assert size <= CHUNK
            assert size > 0 or size in (END, WANT_READ, WANT_WRITE)
    except (Refused, OSError):
        pass
    finally:
        stream.dismiss()
        await playing
        theirs.close()


def _reads(stream: TlsStream) -> Iterator[int]:
    for _ in range(8):
        size = stream.read()
        yield size
        if size <= 0:
            return


async def odd_certificate(script: Script) -> None:
    """Signed by our CA, by itself, by somebody who only claims to be our CA, or by nobody whom anybody knows; with any
    of our certificates behind it."""
    signer = script.byte() % 4
    ca, key = shared_ca(), _key()
    name, nobody = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)]) for text in ("odd", "nobody"))
    issuer = (ca.marble_root.subject, name, ca.marble_root.subject, nobody)[signer]
    builder = (
        x509.CertificateBuilder(issuer, name, key.load().public_key())
        .serial_number(1 + script.byte())
        .not_valid_before(now() - HOUR)
        .not_valid_after(now() + HOUR)
    )
    for oid in _EXTENSIONS:
        if size := script.byte():
            value = x509.UnrecognizedExtension(oid, _value(script.take(size)))
            builder = builder.add_extension(value, critical=bool(size & 1))
    certificate = builder.sign((ca.intermediate_key if signer == 0 else key).load(), SHA384())
    known = (ca.intermediate, ca.root, ca.marble_root, certificate)
    chain = [certificate, *(known[number % len(known)] for number in script.take(script.byte() % 16))]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        Shown([pem_of(each) for each in chain], key).load(context)
    except ssl.SSLError:
        return  # not even its own side can use it
    before = world().relay.counters.of("in").established
    with await connected(world().address) as own:
        await exchange(script, own, context, server=False)
    await world().settled()
    if signer:
        assert world().relay.counters.of("in").established == before, "let in by a signature that is not our CA's"


def _value(data: bytes) -> bytes:
    """An extension's bytes; `@` stands for the name that is let in."""
    uri = f"{type_prefix(shared_ca().trust_domain, 'web')}1".encode()
    return data.replace(b"@", bytes([0x30, len(uri) + 2, 0x86, len(uri)]) + uri)


@cache
def _key() -> PrivateKey:
    return PrivateKey.generate_p256()


PLAYS = (first_flight, real_client, answer_to_a_hello, real_server, odd_certificate)


def fuzz_one(data: bytes) -> None:
    script = Script(data)
    world().loop.run_until_complete(PLAYS[script.byte() % len(PLAYS)](script))
    assert world().relay.counters.bugs == 0


def client_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    context = peer(ssl.TLSVersion.TLSv1_3, server=False, certificate=True)
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return outgoing.read()


def seeds() -> list[bytes]:
    hello = client_hello()
    record = b"\x17\x03\x03\x00\x20" + bytes(32)
    return [
        b"\0" + hello,
        b"\0GET / HTTP/1.1\r\n\r\n",
        *(bytes([1, kind, 0, 0]) + record for kind in range(4)),
        b"\x01\0\x01\x00\x20\x00\x01\x01\xff",
        b"\x02" + hello,
        b"\x03\0\0\0" + record,
        b"\x03\x01\0\0" + record,
        *(bytes([4, signer, 7, 1]) + b"@" + bytes(7) + b"\2\0\1" for signer in range(4)),
        b"\x04\0\x07\x01@\x05\x30\x03\x01\x01\xff" + bytes(6),
    ]


if __name__ == "__main__":
    run(fuzz_one, seeds())
