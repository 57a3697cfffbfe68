# SPDX-License-Identifier: Apache-2.0
"""Apps and clients in pods with Linkerd that live in the test itself: TCP, TLS, and what ends such a connection."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.kit.linkerd_pod import Pod
from tests.kit.netns import Namespace

PATIENCE = 10.0


class Echo:
    """An app that gives back what it gets. `peers`: the addresses that connected."""

    def __init__(self) -> None:
        self.peers: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peers.append(writer.get_extra_info("peername")[0])
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def echo(
    pod: Pod, port: int, host: str = "0.0.0.0", context: ssl.SSLContext | None = None
) -> AsyncIterator[Echo]:
    """The app in a pod, on a port; TLS if it has a context."""
    app = Echo()
    server = await asyncio.start_server(app.serve, sock=pod.listen(port, host), ssl=context)
    try:
        yield app
    finally:
        server.close()


class Connection:
    """A client's."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, payload: bytes) -> bytes:
        """Send, and read as much as was sent; b"" or less if the connection ends first."""
        async with asyncio.timeout(PATIENCE):
            try:
                self._writer.write(payload)
                await self._writer.drain()
                return await self._reader.readexactly(len(payload))
            except asyncio.IncompleteReadError as error:
                return error.partial
            except ConnectionError:
                return b""

    async def ended(self) -> bool:
        """Wait for the other side to end it; False if bytes come instead."""
        async with asyncio.timeout(PATIENCE):
            try:
                return await self._reader.read(1) == b""
            except ConnectionError:
                return True

    @property
    def certificate(self) -> x509.Certificate:
        """What the server showed."""
        shown = self._writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(shown)

    def close(self) -> None:
        self._writer.close()


@asynccontextmanager
async def connected(
    where: Namespace, address: str, port: int, context: ssl.SSLContext | None = None, server_name: str | None = None
) -> AsyncIterator[Connection]:
    """A connection from a namespace. TLS verifies nobody: a test looks at the certificate itself."""
    sock = where.socket()
    sock.setblocking(False)
    async with asyncio.timeout(PATIENCE):
        await asyncio.get_running_loop().sock_connect(sock, (address, port))
        name = server_name if context is not None else None
        reader, writer = await asyncio.open_connection(sock=sock, ssl=context, server_hostname=name)
    connection = Connection(reader, writer)
    try:
        yield connection
    finally:
        connection.close()
        with suppress(OSError, ssl.SSLError, TimeoutError):
            async with asyncio.timeout(1):
                await writer.wait_closed()


def unverified() -> ssl.SSLContext:
    """For a client that accepts any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def app_tls(name: str) -> ssl.SSLContext:
    """For a server with a certificate of its own in this name."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(hours=1))
    pem = builder.sign(key, SHA256()).public_bytes(Encoding.PEM)
    pem += key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with TemporaryDirectory(prefix="mm-") as directory:
        path = Path(directory) / "app.pem"
        path.write_bytes(pem)
        context.load_cert_chain(path)
    return context


def client_hello(name: str, size: int) -> bytes:
    """A ClientHello of about this many bytes in one record, for this server name: padding fills it up."""
    inward, outward = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = unverified().wrap_bio(inward, outward, server_hostname=name)
    with suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outward.read()
    handshake = hello[5:]
    at = 4 + 2 + 32
    at += 1 + handshake[at]
    at += 2 + int.from_bytes(handshake[at : at + 2])
    at += 1 + handshake[at]
    extensions = handshake[at + 2 :]
    padding = max(0, size - len(hello) - 4)
    extensions = (21).to_bytes(2) + padding.to_bytes(2) + bytes(padding) + extensions
    body = handshake[4:at] + len(extensions).to_bytes(2) + extensions
    whole = handshake[:1] + len(body).to_bytes(3) + body
    return hello[:3] + len(whole).to_bytes(2) + whole


async def refused(where: Namespace, address: str, port: int) -> bool:
    """Whether a connection from there ends without an answer."""
    try:
        async with connected(where, address, port) as connection:
            return await connection.ask(b"hello") == b""
    except ConnectionError:
        return True
