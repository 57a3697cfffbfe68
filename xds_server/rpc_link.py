# SPDX-License-Identifier: Apache-2.0
"""One accepted connection of the own transport: socket, TLS and HTTP/2, from the first byte to the last.

    waiting ─ the client speaks ─► queued ─ its turn ─► shaking ─┬► open ─► closing ─┬► closed
                                                                 └─────► refused ────┘

Everything is bounded in time by `check`, which whoever keeps the time calls when the link has asked for it. Bytes are
read only while the peer takes what we write: who floods without reading blocks itself.
"""

from __future__ import annotations

import socket
import ssl
from enum import IntEnum

from sds.logs import get_logger
from xds_server.rpc_call import RpcCall
from xds_server.rpc_h2 import Connection
from xds_server.rpc_poll import GONE, IN, ONCE, OUT
from xds_server.rpc_port import Port
from xds_server.rpc_stream import Stream
from xds_server.rpc_tls import TlsFault

_CHUNK = 16 * 1024
# What the socket has not taken before we stop to read.
_UNSENT = 64 * 1024
# TCP keepalive: 30 s of silence and 2 probes 10 s apart end a connection to a host that is gone.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 2))

_CLOSE_WAIT = 8  # tcp_info.tcpi_state, the first byte: the peer has sent everything

_log = get_logger(__name__)


class State(IntEnum):
    WAITING = 0
    QUEUED = 1
    SHAKING = 2
    REFUSED = 3
    OPEN = 4
    CLOSING = 5
    CLOSED = 6


class Link:
    """Made for a socket that was just accepted and does not block."""

    __slots__ = ("_events", "_port", "_since", "_sock", "_tls", "_touched", "_unsent", "h2", "host", "seen", "state")

    h2: Connection

    def __init__(self, port: Port, sock: socket.socket, host: str) -> None:
        self._port = port
        self._sock = sock
        self._tls: ssl.SSLObject | None = None
        self._unsent = b""
        self._events = IN | ONCE
        self._touched = False
        self._since = self.seen = (
            port.now
        )  # of the state, later of bytes that are not taken; the last byte from the peer
        self.host = host
        self.state = State.WAITING
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, name, value)
        port.poller.watch(sock.fileno(), self._events, self)

    # ---- rpc_call.Line

    @property
    def peer(self) -> str:
        try:
            host, port = self._sock.getpeername()[:2]
        except OSError:
            return self.host
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def certificate_der(self) -> bytes | None:
        return None if self._tls is None else self._tls.getpeercert(binary_form=True)

    def touch(self) -> None:
        if not self._touched:
            self._touched = True
            self._port.dirty(self)

    # ---- from the poller

    def ready(self, events: int) -> None:
        """The socket can be read or written, or is gone."""
        try:
            if self.state is State.WAITING:
                self.state = State.QUEUED
                self._port.queue(self)
            elif self.state is State.SHAKING:
                self._port.queue(self)
            else:
                if events & OUT:
                    self._send(b"")
                if events & (IN | GONE):
                    self._read()
        except Exception:  # a bug: this connection ends, the others go on
            _log.exception("connection failed", peer=self.peer)
            self.abort()

    def shake(self) -> bool:
        """A step of the handshake; whether there may be another."""
        if self.state is State.QUEUED and not self._begin():
            return False
        if self.state is not State.SHAKING or self._tls is None:
            return False
        if self._unsent:
            self._send(b"")
        data = self._receive()
        if data is None:
            self._watch_once()
        elif not data:
            self._refuse("connection closed during the handshake")
        else:
            self._shake(self._tls, data)
        return self.state is State.SHAKING

    def _begin(self) -> bool:
        if self._has_left():
            self._refuse("client left before its turn came")
            return False
        self._tls = self._port.tls.accept()
        self.state, self._since = State.SHAKING, self._port.now
        return True

    def _shake(self, tls: ssl.SSLObject, data: bytes) -> None:
        try:
            done, out, plain = self._port.tls.shake(tls, data)
        except TlsFault as fault:
            self._refuse(*fault.args)
            return
        self._send(out)
        if done:
            self._open(plain)
        elif self.state is State.SHAKING:
            self._watch_once()

    def _has_left(self) -> bool:
        """Whether the client has closed its end: it has waited too long, and a handshake would be for nobody."""
        return self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _CLOSE_WAIT

    def _watch_once(self) -> None:
        self._watch((IN | OUT if self._unsent else IN) | ONCE)

    def _open(self, plain: bytes) -> None:
        if (reason := self._port.shaken(self)) is not None:
            self._refuse(reason)
            return
        port = self._port
        self.state = State.OPEN
        self.h2 = Connection(self, port.limits, port.budget, port.now)
        self._take(plain, 0)
        if self.state is State.OPEN:
            self._watch(IN | OUT if self._unsent else IN)

    def _refuse(self, reason: str, alert: bytes = b"") -> None:
        self._port.refused(self, reason)
        if not alert:
            self.abort()
            return
        self.state, self._since, self._tls = State.REFUSED, self._port.now, None
        self._send(alert)
        if self.state is State.REFUSED and not self._unsent:
            self._shut()

    # ---- bytes

    def _read(self) -> None:
        data = self._receive()
        if data is None or self.state is State.CLOSED:
            return
        if not data:
            self.abort()
        elif self.state is State.OPEN:
            self._decrypt(data)

    def _receive(self) -> bytes | None:
        """None: nothing there. Empty: the peer is gone."""
        try:
            return self._sock.recv(_CHUNK)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _decrypt(self, data: bytes) -> None:
        assert self._tls is not None
        try:
            plain, out, ended = self._port.tls.decrypt(self._tls, data)
        except TlsFault as fault:
            self._send(fault.args[1])
            self.abort()
            return
        if out:
            self._send(out)
        self._take(plain, len(data) - len(plain))
        if ended:
            self.abort()

    def _take(self, plain: bytes, overhead: int) -> None:
        self._touched = True  # flushed below, whatever touches it meanwhile
        self.seen = self._port.now
        self.h2.receive(plain, self.seen, overhead)
        self.flush()

    def flush(self) -> None:
        """Write what HTTP/2 has to say, as far as the socket takes it."""
        self._touched = False
        if self.state is not State.OPEN:
            return
        assert self._tls is not None
        while self.h2.has_out and len(self._unsent) < _UNSENT and self.state is State.OPEN:
            try:
                self._send(self._port.tls.encrypt(self._tls, self.h2.take_out()))
            except TlsFault:
                self.abort()
        if self.h2.ended and not self.h2.has_out:
            self.close()

    def _send(self, data: bytes) -> None:
        """Ciphertext; what the socket does not take waits here."""
        if self.state is State.CLOSED:
            return
        if self._unsent:
            data = self._unsent + data
        sent = 0
        if data:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                pass
            except OSError:
                self.abort()
                return
        before, self._unsent = len(self._unsent), data[sent:]
        if self.state >= State.OPEN and (not self._unsent or sent):
            self._since = self._port.now  # a handshake's time runs from its first byte, however many more come
        if self.state >= State.REFUSED and (before or self._unsent):
            self._after_sending()

    def _after_sending(self) -> None:
        if self._unsent:
            self._watch(OUT if len(self._unsent) >= _UNSENT or self.state is not State.OPEN else IN | OUT)
        elif self.state is not State.OPEN:
            self._shut()
        else:
            self._watch(IN)
            self.touch()  # what HTTP/2 has kept back meanwhile

    def _watch(self, events: int) -> None:
        if events != self._events or events & ONCE:
            self._events = events
            self._port.poller.change(self._sock.fileno(), events)

    # ---- rpc_h2.Owner

    def begun(self, stream: Stream) -> None:
        stream.owner = self._port.begin(self, stream)

    def message(self, stream: Stream, body: bytes) -> None:
        if isinstance(stream.owner, RpcCall):
            stream.owner.message(body)

    def half_closed(self, stream: Stream) -> None:
        if isinstance(stream.owner, RpcCall):
            stream.owner.half_closed()

    def writable(self, stream: Stream) -> None:
        if isinstance(stream.owner, RpcCall):
            stream.owner.writable()

    def closed(self, stream: Stream) -> None:
        if isinstance(stream.owner, RpcCall):
            call, stream.owner = stream.owner, None
            call.end()
            self._port.call_ended()

    # ---- time and end

    def check(self) -> float | None:
        """End what has lasted too long; seconds until it is to be looked at again, None when it is over."""
        times, now = self._port.times, self._port.now
        if self.state is State.CLOSED:
            return None
        if self._unsent and now - self._since >= times.write:
            self.abort()
            return None
        if self.state is State.OPEN:
            return self._check_open(now)
        left = self._since + (times.turn if self.state is State.QUEUED else times.handshake) - now
        if left <= 0:
            if self.state < State.REFUSED:
                self._refuse("handshake took too long")
            self.abort()
            return None
        return min(left, times.handshake)

    def _check_open(self, now: float) -> float | None:
        times, silent = self._port.times, now - self.seen
        # Not all at once, although everybody may have been silent since the same push.
        ping = times.ping * (0.75 + 0.25 * (id(self) >> 5) % 16 / 16)
        if not self.h2.streams and silent >= times.idle:
            self.leave()
            return times.handshake
        if self.h2.pinged:
            if silent >= ping + times.pong:
                self.abort()
                return None
        elif silent >= ping:
            self.h2.ping()
            self.flush()
        return min(times.write, times.idle, times.pong)

    @property
    def busy(self) -> bool:
        """Whether a call is open."""
        return self.state is State.OPEN and self.h2.streams > 0

    def end_calls(self) -> None:
        """End every call: the client is told to come back."""
        if self.state is State.OPEN:
            self.h2.finish_all("UNAVAILABLE", "the server stops: connect again")
            self.flush()

    def leave(self) -> None:
        """Say goodbye and close."""
        if self.state is State.OPEN:
            self.h2.leave()
            self.flush()
            self.close()
        else:
            self.abort()

    def close(self) -> None:
        """Close once everything is sent."""
        if self.state is not State.OPEN:
            return
        self.state, self._since = State.CLOSING, self._port.now
        self.h2.cut()
        assert self._tls is not None
        self._send(self._port.tls.goodbye(self._tls))
        if self.state is State.CLOSING and not self._unsent:
            self._shut()

    def _shut(self) -> None:
        """Everything is sent. The peer may still be sending; closing at once would answer that with a reset, which can
        overtake our last bytes. So the peer closes first, within the time of a handshake."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.abort()
            return
        self._watch(IN)

    def abort(self) -> None:
        """Close at once."""
        if self.state is State.CLOSED:
            return
        opened = self.state in (State.OPEN, State.CLOSING)
        self.state = State.CLOSED
        self._port.poller.forget(self._sock.fileno())
        self._sock.close()
        self._unsent, self._tls = b"", None
        if opened:
            self.h2.cut()
        self._port.gone(self)
