# SPDX-License-Identifier: Apache-2.0
"""First flights that no honest peer sends, as bytes; and clients that send them and wait for the other side to end."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import struct
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from tempfile import NamedTemporaryFile

from tests.kit.hostile_identities import Shown
from tests.kit.programs import program

PATIENCE = 60.0
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


# ---- bytes


def _vector(size: int, data: bytes) -> bytes:
    return len(data).to_bytes(size, "big") + data


def record(kind: int, data: bytes, version: int = 0x0301) -> bytes:
    return struct.pack(">BHH", kind, version, len(data)) + data


def old_hello(version: int) -> bytes:
    """A client's hello of SSL 3.0 (0x0300), TLS 1.0 or TLS 1.1 (RFC 4346, 7.4.1.2), with suites of their time."""
    suites = struct.pack(">7H", 0xC00A, 0xC014, 0xC009, 0xC013, 0x002F, 0x0035, 0x000A)
    body = struct.pack(">H", version) + bytes(range(32)) + _vector(1, b"") + _vector(2, suites) + _vector(1, b"\0")
    return record(22, b"\x01" + _vector(3, body), min(version, 0x0301))


# SSL 2.0's CLIENT-HELLO (draft-hickman-netscape-ssl-00, 2.5), as browsers sent it.
SSL_2_HELLO = bytes.fromhex("802e01000200150000001007 00c0 030080 010080 060040 040080 020080 050080") + bytes(16)


def hello(padding: int = 0) -> bytes:
    """A proper hello of TLS 1.3; `padding` bytes of ALPN names make it as long as one likes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if padding:
        context.set_alpn_protocols([f"{number:0250}" for number in range(padding // 251)])
    outgoing = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return outgoing.read()


def long_hello(size: int = 1 << 16, kind: int = 1) -> bytes:
    """A hello (of a server: 2) that claims `size` bytes and sends them, in records of the largest size."""
    message = bytes([kind]) + size.to_bytes(3, "big") + b"\x03\x03" + bytes(size - 2)
    return b"".join(record(22, message[at : at + 16384]) for at in range(0, len(message), 16384))


def server_hello(version: int) -> bytes:
    """The answer of a server that picks this version, TLS 1.2 or older (RFC 5246, 7.4.1.3)."""
    body = struct.pack(">H", version) + bytes(range(32)) + _vector(1, b"") + b"\xc0\x2b" + b"\0"
    return record(22, b"\x02" + _vector(3, body), version)


def oversized_record() -> bytes:
    """A record of 65535 bytes, where 16384 are the most (RFC 8446, 5.1)."""
    return b"\x16\x03\x01\xff\xff\x01" + bytes(1 << 16)


def random_bytes(size: int = 4096) -> bytes:
    return random.Random(5).randbytes(size)


# ---- clients


@asynccontextmanager
async def connection(port: int) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def ended(reader: asyncio.StreamReader) -> None:
    """Wait until the other side has ended the connection."""
    with suppress(ConnectionError):
        async with asyncio.timeout(PATIENCE):
            await reader.read()


async def say(port: int, flight: bytes, *then: bytes) -> None:
    """Send a flight, and each of `then` after an answer; keep the connection open until the other side ends it."""
    async with connection(port) as (reader, writer):
        with suppress(ConnectionError):
            writer.write(flight)
            for more in then:
                async with asyncio.timeout(PATIENCE):
                    await reader.read(1)
                writer.write(more)
            await writer.drain()
        await ended(reader)


async def dribble(port: int, flight: bytes, pause: float) -> None:
    """One byte at a time, with a pause after each, until the other side ends it."""
    async with connection(port) as (reader, writer):
        over = asyncio.ensure_future(ended(reader))
        for byte in flight:
            if over.done():
                break
            with suppress(ConnectionError):
                writer.write(bytes([byte]))
            await asyncio.wait((over,), timeout=pause)
        await over


async def half_close(port: int, flight: bytes) -> None:
    """Say a part of the handshake, and that there is no more."""
    async with connection(port) as (reader, writer):
        writer.write(flight)
        writer.write_eof()
        await ended(reader)


async def reset(port: int, flight: bytes) -> None:
    """Say a part of the handshake, get the answer, and reset the connection."""
    async with connection(port) as (reader, writer):
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if flight:
            writer.write(flight)
            await reader.read(1)


async def shake_hands(
    port: int,
    shown: Shown | None,
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    alpn: tuple[str, ...] = (),
    agreed: list[tuple[str | None, str | None]] | None = None,
) -> bytes:
    """Shake hands as a client that believes any server. Gives what the app behind it says, if one gets that far;
    `agreed` gets version and protocol."""

    def shake() -> bytes:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.minimum_version = context.maximum_version = version
        if alpn:
            context.set_alpn_protocols(list(alpn))
        if shown is not None:
            shown.load(context)
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as raw:
            try:
                with context.wrap_socket(raw) as tls:
                    if agreed is not None:
                        agreed.append((tls.version(), tls.selected_alpn_protocol()))
                    return tls.recv(100)
            except (ssl.SSLError, ConnectionError):
                return b""

    return await asyncio.to_thread(shake)


async def renegotiate(port: int, shown: Shown) -> str:
    """Ask for a new handshake within a connection of TLS 1.2, by OpenSSL's own client; gives what it prints."""
    with NamedTemporaryFile(suffix=".pem") as file:
        shown.write(file)
        arguments = ("s_client", "-connect", f"127.0.0.1:{port}", "-tls1_2", "-cert", file.name)
        process = await asyncio.create_subprocess_exec(
            program("openssl"), *arguments, stdin=PIPE, stdout=PIPE, stderr=STDOUT
        )
        assert process.stdin is not None
        assert process.stdout is not None
        printed = b""
        try:
            async with asyncio.timeout(PATIENCE):
                while b"the secret" not in printed:
                    printed += await process.stdout.read(4096)
                process.stdin.write(b"R\n")
                printed += await process.stdout.read()
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
    return printed.decode(errors="replace")
