# SPDX-License-Identifier: Apache-2.0
"""The transport of the xDS port: gRPC over HTTP/2 over mutual TLS, for thousands of long quiet streams on one loop.

    listener ─► Link (rpc_link) ─► Handshakes ─► Tls ─► HTTP/2 (rpc_h2) ─► RpcCall ─► Handler

Why not a library: grpcio takes 62 kB for a stream and 80 more for its TLS, and a connection of grpclib or h2 some 40;
here an idle worker costs 30 kB, 26 of them OpenSSL's. And neither lets a storm of handshakes wait its turn.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from sds.discovery import MAX_REQUEST_BYTES
from sds.logs import get_logger
from xds_server.byte_budget import ByteBudget
from xds_server.rpc import Call, Handler, RpcError
from xds_server.rpc_call import RpcCall
from xds_server.rpc_h2 import H2Limits
from xds_server.rpc_handshakes import Handshakes
from xds_server.rpc_link import Link
from xds_server.rpc_poll import IN, Poller
from xds_server.rpc_port import LinkTimes
from xds_server.rpc_stream import Stream
from xds_server.rpc_tls import Tls
from xds_server.tls_front import source_of
from xds_server.xds_credentials import ServerTls

_ACCEPT_AT_ONCE = 64
# The process has no descriptor left: somebody else may give one back.
_ACCEPT_AGAIN = 0.1
_READ_STATUS = 0.05
_CLOSE = 1.0

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortLimits:
    """Counts and bytes. One source (an IPv4 address, an IPv6 /64) gets half of the connections, one certificate
    `connections_per_certificate`; `large_messages` is what unfinished messages of more than a window may hold."""

    connections: int = 20_000
    connections_per_certificate: int = 16
    handshakes: int = 512
    backlog: int = 4096
    large_messages: int = 32 * MAX_REQUEST_BYTES


def _quiet(peer: str, reason: str) -> None:
    _log.info("TLS handshake failed", port="xds", peer=peer, error=reason)


class RpcPort:
    """A `rpc.RpcServer`. `refused` hears (peer, reason) of every connection that never got to speak HTTP/2."""

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        tls: ServerTls,
        *,
        refused: Callable[[str, str], None] = _quiet,
        limits: PortLimits | None = None,
        times: LinkTimes | None = None,
    ) -> None:
        self._handlers = handlers
        self._refused = refused
        self._most = limits or PortLimits()
        self.tls = Tls(tls)
        self.limits = H2Limits(message=MAX_REQUEST_BYTES)
        self.times = times or LinkTimes()
        self.budget = ByteBudget(self._most.large_messages)
        self._links: dict[Link, bytes] = {}  # with the digest of the certificate, once there is one
        self._sources: Counter[str] = Counter()
        self._certificates: Counter[bytes] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._dirty: list[Link] = []
        self._wheel: dict[int, list[Link]] = {}
        self._ticks = 0
        self._timer: asyncio.TimerHandle | None = None
        self._listener: socket.socket | None = None
        self._news = asyncio.Event()  # a call or a connection has ended
        self._accepting = True  # not while there is no descriptor left
        self._short = False  # the last connection could not be accepted, and that was said

    @property
    def now(self) -> float:
        return self._loop.time()

    @property
    def connections(self) -> int:
        """Open ones, those in their handshake included."""
        return len(self._links)

    # ---- begin and end

    async def start(self, host: str, port: int) -> int:
        self._loop = asyncio.get_running_loop()
        found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        dual = family == socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
        backlog = self._most.backlog
        try:
            self._listener = socket.create_server(address[:2], family=family, backlog=backlog, dualstack_ipv6=dual)
        except OSError as e:
            raise OSError(e.errno, f"cannot listen on {host} port {port}: {os.strerror(e.errno or 0)}") from None
        self._listener.setblocking(False)
        self.poller = Poller()
        self._handshakes = Handshakes(self._most.handshakes, self._loop.call_soon)
        self.poller.watch(self._listener.fileno(), IN, self)
        self._timer = self._loop.call_later(self.times.tick, self._tick)
        return int(self._listener.getsockname()[1])

    async def stop(self, grace: float) -> None:
        if self._listener is None:
            return
        if self._accepting:
            self.poller.forget(self._listener.fileno())
        self._listener.close()
        self._listener = None
        await self._until(lambda: not any(link.busy for link in self._links), grace)
        for link in tuple(self._links):
            link.end_calls()
        for task in self._tasks:
            task.cancel()
        # A client that finds GOAWAY or the end of the connection behind its last status may not look at that.
        await asyncio.sleep(_READ_STATUS)
        for link in tuple(self._links):
            link.leave()
        await self._until(lambda: not self._links, _CLOSE)
        for link in tuple(self._links):
            link.abort()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._timer is not None:
            self._timer.cancel()
        self.poller.close()

    async def _until(self, done: Callable[[], bool], seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not done():
                    self._news.clear()
                    await self._news.wait()

    # ---- accepting

    def ready(self, _events: int) -> None:
        """The listener has somebody."""
        listener = self._listener
        for _ in range(_ACCEPT_AT_ONCE):
            if listener is None:
                return
            try:
                sock, address = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as e:
                if not self._short:
                    _log.error("cannot accept connections for now", port="xds", error=e.strerror)
                self._short = True
                self.poller.forget(listener.fileno())
                self._accepting = False
                self._loop.call_later(_ACCEPT_AGAIN, self._accept_again, listener)
                return
            self._short = False
            sock.setblocking(False)
            self._admit(sock, source_of(address[0]))

    def _accept_again(self, listener: socket.socket) -> None:
        if listener is self._listener:
            self._accepting = True
            self.poller.watch(listener.fileno(), IN, self)

    def _admit(self, sock: socket.socket, source: str) -> None:
        most = self._most.connections
        if len(self._links) >= most or self._sources[source] >= (most + 1) // 2:
            self._refused(source, "too many connections")
            sock.close()
            return
        try:
            link = Link(self, sock, source)
        except OSError:  # it has left already
            sock.close()
            return
        self._links[link] = b""
        self._sources[source] += 1
        self._look_at(link, self.times.handshake)

    # ---- rpc_link.Port

    def queue(self, link: Link) -> None:
        self._handshakes.add(link)

    def shaken(self, link: Link) -> str | None:
        self._handshakes.ended(link)
        who = hashlib.sha256(link.certificate_der or b"").digest()[:16]
        if self._certificates[who] >= self._most.connections_per_certificate:
            return "too many connections of one certificate"
        self._links[link] = who
        self._certificates[who] += 1
        return None

    def begin(self, link: Link, stream: Stream) -> RpcCall:
        call = RpcCall(link, stream)
        task = call.serve(self._handlers.get(stream.path, _unknown))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return call

    def call_ended(self) -> None:
        self._news.set()

    def dirty(self, link: Link) -> None:
        if not self._dirty:
            self._loop.call_soon(self._flush)
        self._dirty.append(link)

    def refused(self, link: Link, reason: str) -> None:
        self._handshakes.ended(link)
        self._refused(link.peer, reason)

    def gone(self, link: Link) -> None:
        self._handshakes.ended(link)
        who = self._links.pop(link, None)
        if who is None:
            return
        self._news.set()
        self._sources[link.host] -= 1
        if not self._sources[link.host]:
            del self._sources[link.host]  # or every address that ever came would stay
        if who:
            self._certificates[who] -= 1
            if not self._certificates[who]:
                del self._certificates[who]

    def _flush(self) -> None:
        links, self._dirty = self._dirty, []
        for link in links:
            link.flush()

    # ---- time

    def _look_at(self, link: Link, seconds: float) -> None:
        due = self._ticks + max(1, round(seconds / self.times.tick))
        self._wheel.setdefault(due, []).append(link)

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self.times.tick, self._tick)
        self._ticks += 1
        for link in self._wheel.pop(self._ticks, ()):
            if (seconds := link.check()) is not None:
                self._look_at(link, seconds)


async def _unknown(_call: Call) -> None:
    raise RpcError("UNIMPLEMENTED", "no such method")
