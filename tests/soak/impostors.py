# SPDX-License-Identifier: Apache-2.0
"""Who must never be let in, on either side: they knock again and again while everything else fails.

At a Marble's port: a plain TCP client, one with a certificate of its own making, an attested Marble of a type that may
not connect, one that was turned out of the mesh. On the way to a Marble: a server that answers in its place, attested
and of another type; a worker must not send it one byte of its app.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509

from enclave_proxy.bootstrap import Credentials
from sds.ca import CertificateAuthority, LeafTemplate
from sds.csr import CertificateRequest
from sds.material import Identity
from sds.tls import client_context, server_context
from tests.soak.chaos_wire import Header, Mode

# What an app that got it would recognise as a client's.
HELLO = Header(Mode.UP, 0, 5, 0, 0).pack() + b"hello"
_ALERT = 21
HALF_A_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
PATIENCE = 10.0
# The handshake timeout; then the end has to come through a cable that was out for 9 s: TCP repeats it 13 s later.
THROWN_OUT = 40.0


def self_made(marble_type: str) -> Identity:
    """The right type and everything, from a CA that is made like the mesh's."""
    now = datetime.now(UTC)
    request = CertificateRequest(dns_names=("localhost",), ip_addresses=(), subject=x509.Name([]))
    template = LeafTemplate(marble_type, "0a1b2c3d-4e5f-4a5b-8c7d-8e9fa0b1c2d3", request, None, timedelta(days=1))
    return CertificateAuthority.create(["localhost"], [], now).issue_marble(template, now)


@dataclass
class Impostors:
    """`stranger` and `outcast` are refused by `api` and `db`: their types may not connect, if they exist at all. Their
    certificates are to be fresh, or it would be their root that is refused."""

    stranger: Credentials
    outcast: Credentials
    knocks: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    """seconds until one who went on with no handshake was thrown out, at most"""
    hijacked: int = 0
    """connections that came to the server in the middle"""
    violations: list[str] = field(default_factory=list)

    def contexts(self) -> dict[str, ssl.SSLContext | None]:
        bundle = self.stranger.bundle
        made = {
            "self-made": client_context(self_made("web"), bundle),
            "wrong type": client_context(self.stranger.identity, bundle),
            "turned out": client_context(self.outcast.identity, bundle),
        }
        for context in made.values():
            context.verify_mode = ssl.CERT_NONE  # an impostor does not care who answers
        return {"plain": None, **made}

    async def knock(self, kind: str, context: ssl.SSLContext | None, host: str, port: int) -> None:
        """One attempt; a byte that comes back is a violation."""
        try:
            async with asyncio.timeout(PATIENCE):
                name = "localhost" if context else None
                reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=name)
        except (OSError, TimeoutError):
            self.knocks[f"{kind}, no connection"] += 1
            return
        try:
            writer.write(HELLO)
            async with asyncio.timeout(PATIENCE):
                data = await reader.read(1000)
        except (OSError, TimeoutError):
            data = b""
        finally:
            writer.transport.abort()
        self.knocks[kind] += 1
        if data and (context is not None or data[0] != _ALERT):
            self.violations.append(f"an impostor ({kind}) got {data[:32]!r} from {host}:{port}")

    async def hold(self, host: str, port: int) -> None:
        """Connect, say half a word and wait to be thrown out, again and again."""
        while True:
            await asyncio.sleep(0.5)
            try:
                async with asyncio.timeout(PATIENCE):
                    reader, writer = await asyncio.open_connection(host, port)
            except (OSError, TimeoutError):
                continue
            began = time.monotonic()
            try:
                writer.write(HALF_A_HELLO if self.knocks["slow"] % 2 else b"")
                self.knocks["slow"] += 1
                async with asyncio.timeout(THROWN_OUT):
                    await reader.read(1000)
            except TimeoutError:
                self.violations.append(f"a handshake at {host}:{port} that never goes on is not ended")
            except OSError:
                pass  # an end, too
            finally:
                self.slowest = max(self.slowest, time.monotonic() - began)
                writer.transport.abort()

    async def answer(self) -> tuple[asyncio.Server, tuple[str, int]]:
        """Be a server in the middle."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        return server, (address[0], address[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.hijacked += 1
        context = server_context(self.stranger.identity, None, require_client_certificate=False)
        try:
            async with asyncio.timeout(PATIENCE):
                await writer.start_tls(context)
                if data := await reader.read(1000):
                    self.violations.append(f"a server in the middle got {data[:32]!r} of an app")
        except (OSError, TimeoutError):
            pass  # which is how it is to be
        finally:
            writer.transport.abort()
