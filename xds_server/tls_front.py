# SPDX-License-Identifier: Apache-2.0
"""TLS in front of an asyncio protocol, by pyOpenSSL: the port.

    TCP transport ⇄ tls_connection.Connection ⇄ OpenSSL ⇄ TlsTransport ⇄ inner protocol

`TlsFront` accepts, counts and limits, and picks the certificate at every handshake. The inner protocol (aiohttp's or
the Marble API's) is made only after a finished handshake, so nothing above this file ever meets an unencrypted peer.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from ipaddress import IPv6Address, ip_address

from OpenSSL import SSL

from xds_server.tls_connection import Connection, InnerFactory, Refused, TlsFrontConfig, TlsTransport
from xds_server.tls_context import CredentialProvider, ServerCredential, make_context

__all__ = ["TlsFront", "TlsFrontConfig", "TlsTransport"]


class TlsFront:
    """One TLS port. `refused` hears of every connection that never got to the inner protocol."""

    def __init__(
        self, config: TlsFrontConfig, credential: CredentialProvider, inner: InnerFactory, refused: Refused
    ) -> None:
        self.config = config
        self.inner = inner
        self.refused = refused
        self.handshakes = 0
        self._credential = credential
        self._context: tuple[ServerCredential, SSL.Context] | None = None
        self._connections: set[Connection] = set()
        self._sources: Counter[str] = Counter()  # connections
        self._shaking: Counter[str] = Counter()  # handshakes
        self._server: asyncio.Server | None = None

    @property
    def connections(self) -> int:
        """Open connections, handshakes included."""
        return len(self._connections)

    async def start(self, listener: socket.socket) -> None:
        """Accept on a bound socket."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), sock=listener)

    def stop_accepting(self) -> None:
        """Accept no more; connections live on."""
        if self._server is not None:
            self._server.close()

    async def stop(self, grace: float = 5.0) -> None:
        """Accept no more, wait up to `grace` seconds until the inner protocols have closed, then cut the rest."""
        self.stop_accepting()
        if self._connections and grace > 0:
            await asyncio.wait([connection.lost for connection in self._connections], timeout=grace)
        rest = tuple(self._connections)
        for connection in rest:
            connection.abort("")
        if rest:
            await asyncio.wait([connection.lost for connection in rest], timeout=1.0)

    def admit(self, connection: Connection) -> str | None:
        """Count a new connection in; a reason if it is one too many."""
        if len(self._connections) >= self.config.max_connections:
            return f"too many connections ({self.config.max_connections})"
        if self.handshakes >= self.config.max_handshakes:
            return f"too many handshakes in flight ({self.config.max_handshakes})"
        source = source_of(connection.host)
        if self._sources[source] >= (self.config.max_connections + 1) // 2:
            return f"too many connections from {source} ({self._sources[source]})"
        if self._shaking[source] >= (self.config.max_handshakes + 1) // 2:
            return f"too many handshakes in flight from {source} ({self._shaking[source]})"
        self._connections.add(connection)
        _count(self._sources, connection, +1)
        return None

    def shaking(self, connection: Connection, change: int) -> None:
        """A handshake begins (+1) or ends (-1)."""
        self.handshakes += change
        _count(self._shaking, connection, change)

    def forget(self, connection: Connection) -> None:
        """The connection is gone."""
        if connection in self._connections:  # else it was never admitted
            self._connections.discard(connection)
            _count(self._sources, connection, -1)

    def context(self) -> SSL.Context | None:
        """The context of the certificate that is current *now*; None while there is none."""
        credential = self._credential()
        if credential is None:
            return None
        if self._context is None or self._context[0] is not credential:
            context = make_context(
                credential,
                require_client_certificate=self.config.require_client_certificate,
                alpn=self.config.alpn,
            )
            self._context = (credential, context)
        return self._context[1]


def _count(counter: Counter[str], connection: Connection, change: int) -> None:
    """Sources that have nothing left are forgotten, or every address that ever came would stay."""
    source = source_of(connection.host)
    counter[source] += change
    if not counter[source]:
        del counter[source]


def source_of(host: str) -> str:
    """Who counts as one source: an IPv4 address, or the /64 of an IPv6 address, which is what one machine gets."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if not isinstance(address, IPv6Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{IPv6Address(int(address) >> 64 << 64)}/64"
