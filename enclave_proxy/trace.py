# SPDX-License-Identifier: Apache-2.0
"""One connection from its accept to its end, as far as somebody will ask: its handshake for the histogram, and for the
access log, if there is one, a line when it is over. Nothing here costs anything per byte.

Names of a peer come from a certificate whose path was verified; what anybody else claims is not written down.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Awaitable
from datetime import UTC, datetime

from cryptography import x509

from enclave_proxy.access_log import AccessLog, Line
from enclave_proxy.admission import Refused
from enclave_proxy.counters import ListenerCounters, Refusal
from enclave_proxy.relay_config import Address, Inbound, Outbound, TcpAddress, uris_of
from enclave_proxy.stream import Stream
from enclave_proxy.tls_stream import TlsStream

# Characters of a peer's name that are written; a Marble's has about 120.
MAX_NAME = 512


class Trace:
    """`log` None: no line is ever written, and what only a line would need is not looked up."""

    __slots__ = (
        "_address", "_counters", "_log", "_peer", "_started", "_tls",
        "handshake", "reason", "received", "sent", "upstream",
    )  # fmt: skip

    def __init__(self, connection: socket.socket, counters: ListenerCounters, log: AccessLog | None) -> None:
        self.handshake: float | None = None
        """seconds"""
        self.received = self.sent = 0
        """payload from and to the side that connected to us, once it is over"""
        self.upstream: Address | None = None
        """which endpoint of a peer was dialled last"""
        self.reason: Refusal | None = None
        """why it is being ended by us"""
        self._counters = counters
        self._log = log
        self._peer: x509.Certificate | None = None
        self._tls: tuple[str, str, bool] | None = None
        if log is not None:
            self._started = time.monotonic()
            self._address = _peer_address(connection)

    async def shake_hands(
        self, stream: TlsStream, handshake: Awaitable[x509.Certificate | None]
    ) -> x509.Certificate | None:
        """Await the handshake of `stream`, and count what becomes of it."""
        started = time.monotonic()
        try:
            peer = self._peer = await handshake
        except Refused as refused:
            self._peer = stream.peer
            self._counters.handshakes_failed[refused.reason] += 1
            raise
        spent = self.handshake = time.monotonic() - started
        self._counters.handshake_times.add(spent)
        return peer

    def joined(self, near: Stream, far: Stream) -> None:
        """Both sides are there; called before either can be closed."""
        if self._log is not None:
            self._tls = next((stream.facts() for stream in (near, far) if isinstance(stream, TlsStream)), None)

    def ended(self, route: Inbound | Outbound, reason: Refusal | None) -> None:
        """It is over; `reason` None: both sides have ended it in good order."""
        if self._log is not None:
            self._log.add(self._line(route, reason))

    def _line(self, route: Inbound | Outbound, reason: Refusal | None) -> Line:
        inbound = isinstance(route, Inbound)
        upstream = route.upstream if isinstance(route, Inbound) else self.upstream
        names = [] if self._peer is None else uris_of(self._peer)
        version, cipher, resumed = self._tls or (None, None, None)
        return {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "listener": route.name,
            "direction": "inbound" if inbound else "outbound",
            "peer": names[0][:MAX_NAME] if names else None,
            "address": self._address,
            "upstream": None if upstream is None else str(upstream),
            "received": self.received,
            "sent": self.sent,
            "seconds": round(time.monotonic() - self._started, 6),
            "handshake_ms": None if self.handshake is None else round(self.handshake * 1000, 3),
            "tls": version,
            "cipher": cipher,
            "resumed": resumed,
            "reason": None if reason is None else reason.value,
        }


def _peer_address(connection: socket.socket) -> str | None:
    """Where a TCP connection comes from; None for a UNIX socket, or if it has gone already."""
    try:
        name = connection.getpeername()
    except OSError:
        return None
    return str(TcpAddress(name[0], name[1])) if isinstance(name, tuple) else None
