# SPDX-License-Identifier: Apache-2.0
"""Random bytes to the relay's TLS: as a first flight, and in place of records behind a finished handshake.

The rule: a handshake ends with Refused or waits, payload ends with OSError or waits, and nothing else is raised; what
is given out fits the buffer that it was read into.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from functools import cache

from enclave_proxy.admission import Refused
from enclave_proxy.relay_config import TlsOptions
from enclave_proxy.stream import END, WANT_READ, WANT_WRITE
from enclave_proxy.tls_context import TlsContext, accepting, dialling
from enclave_proxy.tls_library import CHUNK
from enclave_proxy.tls_stream import TlsStream
from sds.tls import client_context
from tests.fuzz.driver import run
from tests.kit.pki import marble, shared_ca

_PATIENCE = 0.002


@cache
def contexts() -> tuple[TlsContext, TlsContext]:
    ca = shared_ca()
    options = TlsOptions(minimum="1.2", alpn=("h2",))
    mine = marble(ca, "backend")
    return accepting(mine, ca.bundle, options, require_client_certificate=True), dialling(mine, ca.bundle, options)


@cache
def peer() -> ssl.SSLContext:
    return client_context(marble(shared_ca(), "web"), shared_ca().bundle)


async def first_flight(data: bytes, *, as_server: bool) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        theirs.setblocking(False)
        stream = TlsStream(contexts()[0 if as_server else 1], ours, lambda peer: None)
        try:
            theirs.send(data or b"\0")
            await (stream.accept(_PATIENCE) if as_server else stream.connect(_PATIENCE, "backend.test"))
        except Refused:
            return
        finally:
            stream.dismiss()
    raise AssertionError("nobody who sends one flight without knowing a key can finish a handshake")


async def records(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    stream = TlsStream(contexts()[0], ours, lambda peer: None)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = peer().wrap_bio(incoming, outgoing)
    accepting_one = asyncio.ensure_future(stream.accept(5))
    try:
        for _ in range(4):
            with suppress(ssl.SSLWantReadError):
                client.do_handshake()
            if sent := outgoing.read():
                theirs.send(sent)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            with suppress(BlockingIOError):
                incoming.write(theirs.recv(65536))
        await accepting_one
        theirs.send(data or b"\0")
        for _ in range(8):
            size = stream.read()
            assert size <= CHUNK
            assert size > 0 or size in (END, WANT_READ, WANT_WRITE)
            if size <= 0:
                break
    except OSError:
        pass
    finally:
        accepting_one.cancel()
        stream.close()
        theirs.close()


def fuzz_one(data: bytes) -> None:
    kind, rest = (data[0] % 3 if data else 0), data[1:60_000]
    if kind == 2:
        asyncio.run(records(rest))
    else:
        asyncio.run(first_flight(rest, as_server=kind == 0))


def client_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    try:
        peer().wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake needs an answer")


if __name__ == "__main__":
    hello = client_hello()
    run(
        fuzz_one, [b"\0" + hello, b"\0GET / HTTP/1.1\r\n\r\n", b"\x01" + hello, b"\x02\x17\x03\x03\x00\x20" + bytes(32)]
    )
