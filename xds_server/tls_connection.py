# SPDX-License-Identifier: Apache-2.0
"""One TLS connection over memory BIOs: handshake, both directions, timers, end.

`Connection` sits on the TCP transport, `TlsTransport` is what the inner protocol sees. The limits come from the port
that accepted the connection (`Port`, in life `tls_front.TlsFront`).

Time: a handshake has `handshake_timeout`. After it a connection that is not `in_use()` lives for `idle_timeout`: the
protocol above marks the handling of a request, so a client that trickles a request head byte by byte ends as surely as
one that sends nothing. Memory: bytes are read only while the inner protocol wants them *and* the peer takes what we
write; so a peer that floods pings or key updates without reading blocks itself, not us.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, cast

from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL, crypto

from xds_server.tls_context import reason_of

_RECORD = 16 * 1024  # the largest plaintext of a TLS record
_CIPHERTEXT = 64 * 1024
# OpenSSL takes up to 100 KiB of certificates. Who needs more than a leaf and its intermediates is no client of ours.
_MAX_CERTIFICATES = 8

InnerFactory = Callable[["TlsTransport"], asyncio.Protocol]
Refused = Callable[[str, str], None]  # peer address, reason


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFrontConfig:
    """Limits of one port; seconds and counts.

    An open connection costs about 60 KiB in OpenSSL and 100 KiB with a request in flight: 512 of them are 50 MiB.
    One source (an IPv4 address, an IPv6 /64) gets half of both: so one machine cannot keep others out, and many honest
    clients behind one load balancer or one node's address translation still find room.
    """

    alpn: tuple[bytes, ...]
    alpn_required: bool = False
    require_client_certificate: bool = False
    handshake_timeout: float = 10.0
    idle_timeout: float = 60.0
    close_timeout: float = 5.0
    max_connections: int = 512
    max_handshakes: int = 256


class Port(Protocol):
    """What a connection needs of the port that accepted it."""

    config: TlsFrontConfig
    inner: InnerFactory
    refused: Refused

    def admit(self, connection: Connection) -> str | None: ...

    def forget(self, connection: Connection) -> None: ...

    def shaking(self, connection: Connection, change: int) -> None: ...

    def context(self) -> SSL.Context | None: ...


class TlsTransport(asyncio.Transport):
    """What the inner protocol writes to; extra info `peer_certificates` are the client's certificates, leaf first."""

    def __init__(self, connection: Connection, outer: asyncio.Transport, extra: dict[str, Any]) -> None:
        super().__init__(extra)
        self._connection = connection
        self._outer = outer

    @property
    def peer_certificate_der(self) -> bytes | None:
        """The certificate whose key this client proved to hold, unverified otherwise."""
        return next(iter(self.peer_certificates), None)

    @property
    def peer_certificates(self) -> tuple[bytes, ...]:
        """Everything the client sent in its certificate message, DER, leaf first; only the leaf's key is proven."""
        found: tuple[bytes, ...] = self.get_extra_info("peer_certificates", ())
        return found

    @property
    def alpn(self) -> str:
        """The protocol agreed on, empty if none."""
        return str(self.get_extra_info("alpn", ""))

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While a request is handled the idle timer stands still; the handler has its own deadline."""
        self._connection.hold()
        try:
            yield
        finally:
            self._connection.release()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Our own facts first, then those of the TCP transport."""
        found = super().get_extra_info(name)
        return self._outer.get_extra_info(name, default) if found is None else found

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        if not isinstance(protocol, asyncio.Protocol):
            raise TypeError(f"a streaming protocol is needed, got {type(protocol).__name__}")
        self._connection.inner = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        if self._connection.inner is None:
            raise RuntimeError("the connection has no protocol yet")
        return self._connection.inner

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._connection.write(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self._connection.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        self.close()  # TLS has no half-close that HTTP peers rely on

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self._connection.set_wanted(False)

    def resume_reading(self) -> None:
        self._connection.set_wanted(True)

    def is_reading(self) -> bool:
        return self._connection.wanted and not self.is_closing()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._outer.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._outer.get_write_buffer_size()

    def close(self) -> None:
        self._connection.close()

    def is_closing(self) -> bool:
        return self._connection.closing

    def abort(self) -> None:
        self._connection.abort("")


class Connection(asyncio.Protocol):
    """One accepted TCP connection: handshake, then both directions."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self.inner: asyncio.Protocol | None = None
        self.closing = False
        self.wanted = True  # the inner protocol wants bytes
        self._handshaking = False
        self._peer_reads = True  # the peer takes what we write
        self._holds = 0
        self._timer: asyncio.TimerHandle | None = None

    # --- from the TCP transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._outer = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        peer = transport.get_extra_info("peername")
        self.host = str(peer[0]) if isinstance(peer, tuple) else "unknown"
        self._peer = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "unknown"
        reason = self._port.admit(self)
        if reason is not None:
            self.abort(reason)
            return
        context = self._port.context()
        if context is None:
            self.abort("no certificate to serve yet")
            return
        self._tls = SSL.Connection(context, None)
        self._tls.set_accept_state()
        self._handshaking = True
        self._port.shaking(self, +1)
        self._arm(self._port.config.handshake_timeout, "handshake took too long")

    def data_received(self, data: bytes) -> None:
        if self.closing:
            return
        self._tls.bio_write(data)
        if self._handshaking:
            self._shake_hands()
        if self.inner is not None:
            self._deliver()

    def eof_received(self) -> None:
        # Without a close_notify this may be somebody cutting the stream: never treated as a clean end.
        self.abort("connection closed during the handshake" if self._handshaking else "")

    def pause_writing(self) -> None:
        self._peer_reads = False
        self._update_reading()
        if self.inner is not None:
            self.inner.pause_writing()

    def resume_writing(self) -> None:
        self._peer_reads = True
        self._rearm_idle()
        self._update_reading()
        if self.inner is not None:
            self.inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closing = True
        self._end_handshake()
        self._disarm()
        self._port.forget(self)
        if not self.lost.done():
            self.lost.set_result(None)
        if self.inner is not None:
            self.inner.connection_lost(exc)

    # --- handshake

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except SSL.WantReadError:
            self._flush()
            return
        except SSL.Error as error:
            self._flush()  # the alert
            self._refuse(reason_of(error))
            return
        self._flush()
        self._end_handshake()
        chosen = self._tls.get_alpn_proto_negotiated()
        if self._port.config.alpn_required and chosen not in self._port.config.alpn:
            self._refuse(f"client did not offer {b' or '.join(self._port.config.alpn).decode()} by ALPN")
            return
        self._open(chosen)

    def _open(self, chosen: bytes) -> None:
        try:
            certificates = _peer_certificates(self._tls)
        except ValueError as error:
            self._refuse(f"client certificate cannot be parsed: {error}")
            return
        extra = {
            "peer_certificates": certificates,
            "alpn": chosen.decode("ascii", "replace"),
            "sslcontext": self._tls.get_context(),  # aiohttp: this request is https
        }
        transport = TlsTransport(self, self._outer, extra)
        self._rearm_idle()
        self.inner = self._port.inner(transport)
        self.inner.connection_made(transport)

    def _end_handshake(self) -> None:
        if self._handshaking:
            self._handshaking = False
            self._port.shaking(self, -1)

    def _refuse(self, reason: str) -> None:
        """Let an alert that is already in the buffer reach the peer, then close."""
        self._port.refused(self._peer, reason)
        self._finish()

    # --- bytes

    def _deliver(self) -> None:
        while self.wanted and not self.closing and self.inner is not None:
            try:
                plain = self._tls.recv(_RECORD)
            except SSL.WantReadError:
                break
            except SSL.ZeroReturnError:
                if not self.inner.eof_received():
                    self.close()
                return
            except SSL.Error:
                self.abort("")
                return
            self.inner.data_received(plain)
        if not self.closing:
            self._flush()  # answers to key updates

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and hand to the socket; after close() bytes are dropped, as asyncio's own transports do."""
        if self.closing:
            return
        view = memoryview(data)
        sent = 0
        try:
            while sent < len(view):
                sent += self._tls.send(view[sent : sent + _RECORD])
        except SSL.Error:
            self.abort("")
            return
        self._flush()

    def _flush(self) -> None:
        parts = []
        while True:
            try:
                parts.append(self._tls.bio_read(_CIPHERTEXT))
            except SSL.Error:  # WantReadError: empty
                break
        if parts and not self._outer.is_closing():
            self._outer.write(b"".join(parts))

    def set_wanted(self, wanted: bool) -> None:
        """The inner protocol pauses or resumes reading."""
        if self.wanted == wanted:
            return
        self.wanted = wanted
        self._update_reading()
        if wanted:
            self._loop.call_soon(self._deliver)  # what OpenSSL already holds

    def _update_reading(self) -> None:
        if self._outer.is_closing():
            return
        if self.wanted and self._peer_reads:
            self._outer.resume_reading()
        else:
            self._outer.pause_reading()

    # --- time and end

    def hold(self) -> None:
        """A request is being handled."""
        self._holds += 1
        self._disarm()

    def release(self) -> None:
        """A request is done; the answer may still be on its way, which the idle time covers."""
        self._holds -= 1
        self._rearm_idle()

    def close(self) -> None:
        """Send close_notify and close; cut after `close_timeout` if the peer does not take what is buffered."""
        if self.closing:
            return
        if self.inner is not None:
            with suppress(SSL.Error):  # the peer is already gone or broke the protocol
                self._tls.shutdown()
            self._flush()
        self._finish()

    def _finish(self) -> None:
        self.closing = True
        self._end_handshake()
        self._outer.close()
        self._arm(self._port.config.close_timeout, "")

    def abort(self, reason: str) -> None:
        """Cut at once; a reason is told to the port's owner."""
        self.closing = True
        self._end_handshake()
        if reason:
            self._port.refused(self._peer, reason)
        self._outer.abort()

    def _arm(self, seconds: float, reason: str) -> None:
        self._disarm()
        self._timer = self._loop.call_later(seconds, self.abort, reason)

    def _rearm_idle(self) -> None:
        if not self._holds and not self.closing and not self._handshaking:
            self._arm(self._port.config.idle_timeout, "")

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _peer_certificates(tls: SSL.Connection) -> tuple[bytes, ...]:
    """Leaf first, none if the client sent none; raises ValueError if the leaf is no certificate for us."""
    leaf = tls.get_peer_certificate(as_cryptography=True)
    if leaf is None:
        return ()
    first = leaf.public_bytes(Encoding.DER)
    # On the server's side OpenSSL leaves the leaf out of the chain.
    rest = (tls.get_peer_cert_chain() or [])[: _MAX_CERTIFICATES - 1]
    return (first, *(crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate) for certificate in rest))
