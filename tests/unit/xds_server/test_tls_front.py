# SPDX-License-Identifier: Apache-2.0
"""TLS in front of a protocol: who is let in, what the protocol sees, and how everybody ends in time."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.kit.marble_client import MarbleCredentials
from tests.kit.pki import marble, shared_ca
from tests.kit.programs import program
from tests.kit.tls_port import client_context, tls_port
from xds_server.tls_front import TlsFrontConfig, TlsTransport, source_of

PLAIN = TlsFrontConfig(alpn=(b"http/1.1",))
SHORT = TlsFrontConfig(alpn=(b"http/1.1",), handshake_timeout=0.2, idle_timeout=0.2, close_timeout=0.2)
MARBLES = TlsFrontConfig(alpn=(b"h2",), alpn_required=True, require_client_certificate=True)


class Echo(asyncio.Protocol):
    """Sends back what comes, and notes what it is told."""

    def __init__(self, transport: TlsTransport) -> None:
        self.transport = transport
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.paused = 0

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.paused += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


class Echoes:
    def __init__(self) -> None:
        self.made: list[Echo] = []

    def __call__(self, transport: TlsTransport) -> Echo:
        self.made.append(Echo(transport))
        return self.made[-1]


async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> bytes:
    writer.write(data)
    await writer.drain()
    return await reader.readexactly(len(data))


async def bye(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        await writer.wait_closed()
    except OSError:
        return


async def test_bytes_go_both_ways_and_close_notify_ends_it() -> None:
    echoes = Echoes()
    async with tls_port(echoes) as port:
        reader, writer = await port.connect()
        data = bytes(range(256)) * 4096
        echo, _ = await asyncio.gather(reader.readexactly(len(data)), send(writer, data))
        assert echo == data
        await bye(writer)
        assert await echoes.made[0].lost is None


async def send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


@pytest.mark.parametrize("expired", [False, True])
async def test_any_client_certificate_is_taken_and_handed_on_byte_for_byte(expired: bool) -> None:
    echoes = Echoes()
    credentials = MarbleCredentials.make(expired=expired)
    async with tls_port(echoes, MARBLES) as port:
        reader, writer = await port.connect(credentials, alpn="h2")
        assert await talk(reader, writer, b"hello") == b"hello"
        transport = echoes.made[0].transport
        assert transport.peer_certificate_der == credentials.certificate_der
        assert transport.get_extra_info("alpn") == "h2"
        assert transport.get_extra_info("peername")[0] == "127.0.0.1"
        await bye(writer)


async def test_without_a_client_certificate_there_is_none_to_see() -> None:
    echoes = Echoes()
    async with tls_port(echoes) as port:
        reader, writer = await port.connect()
        await talk(reader, writer, b"x")
        assert echoes.made[0].transport.peer_certificate_der is None
        await bye(writer)


async def test_where_a_client_certificate_is_required_none_means_no_connection() -> None:
    echoes = Echoes()
    async with tls_port(echoes, MARBLES) as port:
        # In TLS 1.3 the client learns of the refusal only with its first read.
        with suppress(OSError):
            reader, _ = await port.connect(alpn="h2")
            assert await reader.read(1) == b""
        assert "peer did not return a certificate" in port.refused[0]
        assert echoes.made == []


@pytest.mark.parametrize("alpn", ["", "http/1.1"])
async def test_where_h2_is_required_nothing_else_gets_through(alpn: str) -> None:
    async with tls_port(Echoes(), MARBLES) as port:
        reader, writer = await port.connect(MarbleCredentials.make(), alpn=alpn)
        assert await reader.read(1) == b""
        assert port.refused == ["client did not offer h2 by ALPN"]
        await bye(writer)


async def test_plain_http_is_closed_with_a_reason() -> None:
    async with tls_port(Echoes()) as port:
        reader, writer = await port.connect_plain()
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await reader.read()
        assert port.refused == ["plain http on a TLS port: use https"]
        await bye(writer)


@pytest.mark.parametrize("start", [b"", b"\x16\x03\x01"])
async def test_a_handshake_that_does_not_come_ends_in_time(start: bytes) -> None:
    async with tls_port(Echoes(), SHORT) as port:
        reader, writer = await port.connect_plain()
        writer.write(start)
        assert await reader.read() == b""
        assert port.refused == ["handshake took too long"]
        await bye(writer)


async def test_a_client_that_says_nothing_or_trickles_ends_in_time() -> None:
    echoes = Echoes()
    async with tls_port(echoes, SHORT) as port:
        reader, writer = await port.connect()
        while not echoes.made[0:] or not echoes.made[0].lost.done():
            writer.write(b".")  # bytes alone are no progress: only a handled request is
            with suppress(TimeoutError, OSError):
                await asyncio.wait_for(reader.read(1), 0.05)
        assert port.front.connections == 0
        await bye(writer)


async def test_a_connection_in_use_is_not_idle() -> None:
    echoes = Echoes()
    async with tls_port(echoes, SHORT) as port:
        reader, writer = await port.connect()
        await talk(reader, writer, b"x")
        with echoes.made[0].transport.in_use(), pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 2 * SHORT.idle_timeout)
        assert await reader.read() == b""
        await bye(writer)


async def test_a_peer_that_does_not_read_pauses_the_protocol_and_is_not_read_either() -> None:
    echoes = Echoes()
    async with tls_port(echoes) as port:
        reader, writer = await port.connect()
        await talk(reader, writer, b"x")
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        chunk = bytes(1 << 20)
        for _ in range(64):
            echoes.made[0].transport.write(chunk)
            if echoes.made[0].paused:
                break
            await asyncio.sleep(0)
        assert echoes.made[0].paused == 1
        assert echoes.made[0].transport.get_write_buffer_size() > 0
        writer.transport.abort()


async def test_a_paused_protocol_gets_nothing_until_it_resumes() -> None:
    echoes = Echoes()
    async with tls_port(echoes) as port:
        reader, writer = await port.connect()
        await talk(reader, writer, b"x")
        transport = echoes.made[0].transport
        transport.pause_reading()
        assert not transport.is_reading()
        writer.write(b"later")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.05)
        transport.resume_reading()
        assert await reader.readexactly(5) == b"later"
        await bye(writer)


async def test_too_many_connections_are_refused_and_the_first_live_on() -> None:
    one = TlsFrontConfig(alpn=(b"http/1.1",), max_connections=1)
    async with tls_port(Echoes(), one) as port:
        reader, writer = await port.connect()
        with pytest.raises(ConnectionError):
            await port.connect()
        assert port.refused == ["too many connections (1)"]
        assert await talk(reader, writer, b"still") == b"still"
        await bye(writer)


async def test_one_source_gets_half_of_the_connections() -> None:
    four = TlsFrontConfig(alpn=(b"http/1.1",), max_connections=4)
    async with tls_port(Echoes(), four) as port:
        first, second = await port.connect(), await port.connect()
        with pytest.raises(ConnectionError):
            await port.connect()
        assert port.refused == ["too many connections from 127.0.0.1 (2)"]
        other = await asyncio.open_connection("127.0.0.1", port.port, ssl=client_context(), local_addr=("127.0.0.2", 0))
        for reader, writer in (first, second, other):
            assert await talk(reader, writer, b"x") == b"x"
            await bye(writer)


async def test_one_source_gets_half_of_the_handshakes() -> None:
    four = TlsFrontConfig(alpn=(b"http/1.1",), max_handshakes=4, handshake_timeout=0.5)
    async with tls_port(Echoes(), four) as port:
        silent = [await asyncio.open_connection("127.0.0.1", port.port, local_addr=("127.0.0.2", 0)) for _ in range(3)]
        assert await silent[2][0].read() == b""
        assert port.refused == ["too many handshakes in flight from 127.0.0.2 (2)"]
        reader, writer = await port.connect()
        assert await talk(reader, writer, b"x") == b"x"
        for _, each in [*silent, (reader, writer)]:
            await bye(each)


@pytest.mark.parametrize(
    ("host", "source"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown", "unknown"),
    ],
)
def test_a_source_is_what_one_machine_gets(host: str, source: str) -> None:
    assert source_of(host) == source


async def test_sources_that_are_gone_are_forgotten() -> None:
    async with tls_port(Echoes()) as port:
        reader, writer = await port.connect()
        assert await talk(reader, writer, b"x") == b"x"
        await bye(writer)
    assert (port.front._sources, port.front._shaking) == ({}, {})


async def test_the_whole_chain_is_handed_on_leaf_first() -> None:
    echoes = Echoes()
    ca = shared_ca()
    identity = marble(ca)
    context = client_context()
    with tempfile.NamedTemporaryFile() as file:
        file.write(identity.chain + identity.key.pem)
        file.flush()
        context.load_cert_chain(file.name)
    async with tls_port(echoes) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port.port, ssl=context)
        await talk(reader, writer, b"x")
        expected = x509.load_pem_x509_certificates(identity.chain)
        assert echoes.made[0].transport.peer_certificates == tuple(c.public_bytes(Encoding.DER) for c in expected)
        assert len(expected) == 2
        await bye(writer)


async def test_without_a_certificate_to_show_nobody_gets_in() -> None:
    async with tls_port(Echoes()) as port:
        port.front._credential = lambda: None
        with pytest.raises(ConnectionError):
            await port.connect()
        assert port.refused == ["no certificate to serve yet"]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls_1_2_and_1_3_are_spoken(version: ssl.TLSVersion) -> None:
    async with tls_port(Echoes()) as port:
        context = client_context()
        context.minimum_version = context.maximum_version = version
        reader, writer = await asyncio.open_connection("127.0.0.1", port.port, ssl=context)
        assert await talk(reader, writer, b"x") == b"x"
        await bye(writer)


SUITES = ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384"]


@pytest.mark.parametrize(
    "flags",
    [
        *(["-tls1_3", "-groups", group] for group in ("P-256", "P-384", "P-521", "X25519")),
        *(["-tls1_3", "-ciphersuites", suite] for suite in ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384")),
        *(["-tls1_2", "-cipher", suite, "-groups", "P-256:P-384:P-521"] for suite in SUITES),
    ],
    ids=" ".join,
)
async def test_clients_in_fips_mode_find_group_and_suite(flags: list[str]) -> None:
    async with tls_port(Echoes()) as port:
        done = await asyncio.to_thread(
            subprocess.run,
            [program("openssl"), "s_client", "-connect", f"127.0.0.1:{port.port}", *flags, "-brief"],
            input=b"",
            capture_output=True,
            timeout=10,
            check=False,
        )
        assert b"CONNECTION ESTABLISHED" in done.stderr


@pytest.mark.parametrize(
    "key",
    [
        ["rsa:2048"],
        ["rsa:4096"],
        *(["ec", "-pkeyopt", f"ec_paramgen_curve:P-{n}"] for n in (256, 384, 521)),
        ["ed25519"],
    ],
    ids=" ".join,
)
async def test_client_certificates_of_every_usual_kind_are_taken(key: list[str], tmp_path: Path) -> None:
    echoes = Echoes()
    pair = tmp_path / "pair.pem"
    make = [
        program("openssl"),
        "req",
        "-x509",
        "-newkey",
        *key,
        "-nodes",
        "-subj",
        "/CN=u",
        "-keyout",
        pair,
        "-out",
        pair,
    ]
    await asyncio.to_thread(subprocess.run, make, check=True, capture_output=True, timeout=20)
    context = client_context()
    context.load_cert_chain(pair)
    async with tls_port(echoes) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port.port, ssl=context)
        assert await talk(reader, writer, b"x") == b"x"
        assert len(echoes.made[0].transport.peer_certificates) == 1
        await bye(writer)
