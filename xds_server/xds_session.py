# SPDX-License-Identifier: Apache-2.0
"""One discovery stream of one client: reads requests, writes what the rules in `sds.discovery` say is due.

A reader and a writer run side by side: requests are taken at once, also while a response is being written, and a change
of the mesh only marks the view as old, so that however much happens, what is written is the newest state.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from sds.discovery import Kind, ProtocolError, Receipt, Retry, Stream, View
from sds.resources import LISTENER, SECRET
from sds.wire.discovery_pb2 import Node
from xds_server.mesh import Client, Mesh
from xds_server.xds_convergence import Change
from xds_server.xds_record import ClientStatus, StreamRecord

# HTTP/2 flow control stops us when the client does not read, and a client that has opened a stream asks at once: 30 s
# is longer than any pause of a living client.
PATIENCE_SECONDS = 30.0
RESOLVE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Ports:
    """What a session needs of gRPC: `read` gives None at the end; both raise when the stream is broken.

    `patience`: seconds that one write may take, and that the first request may take to come.
    """

    read: Callable[[], Awaitable[bytes | None]]
    write: Callable[[bytes], Awaitable[None]]
    patience: float = PATIENCE_SECONDS


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, and until when its certificate says so."""

    client: Client
    not_after: datetime


class Session:
    """Runs until the client leaves, is no longer entitled, or misbehaves (ProtocolError, AccessDenied)."""

    def __init__(self, peer: Peer, stream: Stream, ports: Ports, mesh: Mesh, record: StreamRecord) -> None:
        self._peer = peer
        self._stream = stream
        self._ports = ports
        self._mesh = mesh
        self.record = record
        self._wake = asyncio.Event()
        self._view: View = {}
        self._stale_view = True
        self._ended = False
        self._end: ProtocolError | None = None
        self._writing: asyncio.Timeout | None = None
        self._aged = False
        self._failure: ProtocolError | None = None
        self._retry = Retry()

    # ---- from the server

    def changed(self, change: Change) -> None:
        """The mesh changed: look again."""
        self._stale_view = True
        self.record.told(change)
        self._wake.set()

    def end(self, why: ProtocolError) -> None:
        """End the stream with this status, before anything else is written, and whether or not the client reads."""
        self._end = why
        self._wake.set()
        if self._writing is not None:
            self._writing.reschedule(asyncio.get_running_loop().time())

    def leave(self) -> None:
        """End the stream in good order once nothing is due: the client comes back to whoever serves then."""
        self._aged = True
        self._wake.set()

    @property
    def client(self) -> Client:
        return self._peer.client

    @property
    def trusts_as_told(self) -> bool:
        """Whether the client holds the newest of the secrets that it asked for: its identity, and whom to believe."""
        told = not self._view or self._view.get(SECRET) is self._mesh.secrets(self.client)
        return told and self._stream.is_current(SECRET)

    @property
    def view(self) -> View:
        """What the client may see, as its stream was told last."""
        return self._view

    @property
    def status(self) -> ClientStatus:
        return self.record.status(self._stream.status, self._stream.node, self._mesh.now())

    @property
    def subscriptions(self) -> Iterable[tuple[str, int]]:
        """How many names the client asks for, by type URL."""
        return self._stream.subscriptions

    # ---- the stream

    async def run(self) -> None:
        """Serve the stream. Raises ProtocolError or AccessDenied to tell how it must be ended."""
        first = await self._first_request()
        if first is None:
            return
        node = self._stream.node or Node()
        self._mesh.connected(self.client, node, await self._resolve(node))
        try:
            self._note(first)
            await self._read_and_write()
        finally:
            self.record.closed()
            self._mesh.disconnected(self.client)

    async def _read_and_write(self) -> None:
        reader = asyncio.get_running_loop().create_task(self._read())
        try:
            await self._write()
        finally:
            reader.cancel()
            await asyncio.wait((reader,))
        if not reader.cancelled() and (fault := reader.exception()) is not None:
            raise fault

    async def _first_request(self) -> Receipt | None:
        try:
            async with asyncio.timeout(self._ports.patience):
                data = await self._ports.read()
        except TimeoutError:
            raise ProtocolError("DEADLINE_EXCEEDED", "no request on this stream") from None
        return None if data is None else self._stream.receive_bytes(data)

    async def _resolve(self, node: Node) -> str | None:
        """EDS carries IP addresses only (Envoy rejects names there), so an advertised name is looked up here. DNS is
        the host's to forge; all it can do is to send connections to somebody who then fails the TLS handshake."""
        name = self._mesh.advertised(self.client, node)
        if name is None:
            return None
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as e:
            self.record.unresolved(e)
            return None
        return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])

    async def _read(self) -> None:
        try:
            while (data := await self._ports.read()) is not None:
                self._note(self._stream.receive_bytes(data))
                self._wake.set()
        except ProtocolError as e:
            self._failure = e
        finally:
            self._ended = True
            self._wake.set()

    def _note(self, receipt: Receipt) -> None:
        self.record.received(receipt)
        if receipt.kind is Kind.ACK and receipt.type_url == LISTENER:
            self._mesh.ready(self.client)

    async def _write(self) -> None:
        while True:
            self._end_if_due()
            if self._ended:
                return
            if self._stale_view:
                self._stale_view = False
                self._view = self._mesh.view(self.client)
                self._stream.update(self._view)
            refused = self._retry.step(self._stream, time.monotonic())
            if not await self._write_next():
                self.record.idle()
                if self._aged:
                    return
                await self._sleep(refused)

    def _end_if_due(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._end is not None:
            raise self._end
        if self._seconds_left() <= 0:
            # A stream is as good as its identity: who holds a renewed one comes back with it at once, who does not
            # fails the handshake. UNAVAILABLE, since UNAUTHENTICATED would say that this mesh no longer knows it.
            raise ProtocolError("UNAVAILABLE", "the client certificate has expired: connect with the renewed one")

    def _seconds_left(self) -> float:
        return (self._peer.not_after - self._mesh.now()).total_seconds()

    async def _write_next(self) -> bool:
        began = time.monotonic()
        response = self._stream.take_response()
        if response is None:
            return False
        try:
            async with asyncio.timeout(self._ports.patience) as self._writing:
                await self._ports.write(response.body)
        except TimeoutError:
            if self._end is not None:
                raise self._end from None
            self.record.write_timed_out()
            raise ProtocolError("DEADLINE_EXCEEDED", "the client does not read its responses") from None
        finally:
            self._writing = None
        self.record.sent(response, began)
        return True

    async def _sleep(self, at_most: float) -> None:
        # At most an hour at a time: a certificate of MarbleRun's protocol lives 292 years, more than a timer can wait.
        try:
            async with asyncio.timeout(min(self._seconds_left(), at_most, 3600.0)):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()
