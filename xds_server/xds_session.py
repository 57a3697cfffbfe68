# SPDX-License-Identifier: Apache-2.0
"""One discovery stream of one client: takes requests, writes what the rules in `sds.discovery` say is due.

    begin (the handler's task: who is this, where is it) ─► received, writable ◄─ transport
                                                         ─► push               ◄─ a change of the mesh, in its turn

While nothing happens it is this object and no task. Requests are taken at once, also while a response is being written;
a change only marks the view as old, so that however much happens, what is written is the newest state.
"""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from sds.discovery import Kind, ProtocolError, Receipt, Retry, Stream, View
from sds.resources import LISTENER, SECRET
from sds.wire.discovery_pb2 import Node
from xds_server.mesh import Client, Mesh
from xds_server.mesh_clients import is_ip
from xds_server.rpc import Call
from xds_server.xds_convergence import Change
from xds_server.xds_record import ClientStatus, StreamRecord

RESOLVE_SECONDS = 5.0
# A clock may be set, and a suspended machine's stands still: whether a certificate has expired is looked at again.
_LOOK_AGAIN = 60.0

_NO_VIEW: View = {}


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, and until when its certificate says so."""

    client: Client
    not_after: datetime


class Session:
    """A `rpc.Receiver`. Methods raise ProtocolError or AccessDenied to tell how the stream must be ended.

    `patience`: seconds that a write may take, and that the first request may take to come. `leave_at`: when (by
    `time.monotonic()`) the stream is old enough. `news` hears when there may be something to say of it: a response is
    unanswered, or no longer; a time to look at it has come nearer; it is over.
    """

    __slots__ = (
        "_aged",
        "_began",
        "_call",
        "_leave_at",
        "_mesh",
        "_not_after",
        "_over",
        "_patience",
        "_refused",
        "_retry",
        "_retry_at",
        "_stale_view",
        "_stream",
        "_view",
        "_waits_since",
        "client",
        "look_due",
        "look_number",
        "news",
        "queued",
        "record",
    )

    def __init__(
        self,
        peer: Peer,
        stream: Stream,
        call: Call,
        mesh: Mesh,
        record: StreamRecord,
        *,
        patience: float,
        leave_at: float = math.inf,
    ) -> None:
        self.client = peer.client
        self._not_after = peer.not_after
        self._stream = stream
        self._call = call
        self._mesh = mesh
        self.record = record
        self._patience = patience
        self._leave_at = leave_at
        self._view = _NO_VIEW
        self._stale_view = True
        self._began = False
        self._over = False
        self._aged = False
        self._waits_since: float | None = None  # a response for the client to read
        self._refused = False  # something was, and is held back
        self._retry = Retry()
        self._retry_at = math.inf
        self.queued = False  # for whoever pushes in turn
        self.look_due, self.look_number = math.inf, -1  # the same for whoever keeps the time
        self.news: Callable[[Session], None] = _nobody

    # ---- the stream

    async def begin(self) -> bool:
        """Take the first request; False if the client leaves without one."""
        first = await self._first_request()
        if first is None:
            return False
        node = self._stream.node or Node()
        self._mesh.connected(self.client, node, await self._resolve(node))
        self._began = True
        self._note(first)
        self.push()
        return True

    async def _first_request(self) -> Receipt | None:
        try:
            async with asyncio.timeout(self._patience):
                data = await self._call.read()
        except TimeoutError:
            raise ProtocolError("DEADLINE_EXCEEDED", "no request on this stream") from None
        return None if data is None else self._stream.receive_bytes(data)

    async def _resolve(self, node: Node) -> str | None:
        """EDS carries IP addresses only (Envoy rejects names there), so an advertised name is looked up here. DNS is
        the host's to forge; all it can do is to send connections to somebody who then fails the TLS handshake."""
        name = self._mesh.advertised(self.client, node)
        if name is None or is_ip(name):
            return name
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as e:
            self.record.unresolved(e)
            return None
        return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])

    def received(self, body: bytes) -> None:
        self._note(self._stream.receive_bytes(body))
        self.push()

    def half_closed(self) -> None:
        self._call.finish()

    def writable(self) -> None:
        self._waits_since = None
        self.push()

    def closed(self) -> None:
        """The stream is over. Twice is once."""
        if self._over:
            return
        self._over = True
        self.record.closed()
        self.news(self)
        if self._began:
            self._mesh.disconnected(self.client)

    def _note(self, receipt: Receipt) -> None:
        self.record.received(receipt)
        if receipt.kind is Kind.ACK:
            if receipt.type_url == LISTENER:
                self._mesh.ready(self.client)
        elif receipt.kind is Kind.NACK:
            self._refused = True

    # ---- from the server

    def changed(self, change: Change) -> None:
        """The mesh changed: look again, when it is this stream's turn."""
        self._stale_view = True
        self.record.told(change)

    def push(self) -> None:
        """Write what is due."""
        if self._over or self._waits_since is not None:
            return
        if self._stale_view:
            self._check_certificate()
            self._stale_view = False
            self._view = self._mesh.view(self.client)
            self._stream.update(self._view)
        now = time.monotonic()
        if self._refused:
            self._retry_at = now + self._retry.step(self._stream, now)
            self._refused = self._stream.has_refused
        self._write(now)
        self.news(self)

    def _write(self, began: float) -> None:
        while (response := self._stream.take_response()) is not None:
            sent = self._call.send(response.body)
            self.record.sent(response, began)
            if not sent:
                self._waits_since = began
                return
            began = time.monotonic()
        self.record.idle()
        if self._aged:
            self._call.finish()

    def look(self, now: float) -> None:
        """A time has come that `next_look` has named."""
        self._check_certificate()
        if self._waits_since is not None and now - self._waits_since >= self._patience:
            self.record.write_timed_out()
            raise ProtocolError("DEADLINE_EXCEEDED", "the client does not read its responses")
        if now >= self._leave_at:
            # In good order, once nothing is due: the client comes back to whoever serves then.
            self._leave_at, self._aged = math.inf, True
            self.record.aged()
            self.push()
        elif now >= self._retry_at:
            self.push()

    def next_look(self, now: float) -> float:
        """When there is something to look at, by `time.monotonic()`, as far as is known at `now`."""
        left = (self._not_after - self._mesh.now()).total_seconds()
        at = min(self._leave_at, self._retry_at, now + min(max(left, 0.0), _LOOK_AGAIN))
        return at if self._waits_since is None else min(at, self._waits_since + self._patience)

    @property
    def presses(self) -> bool:
        """Whether `next_look` may have come nearer by what just happened."""
        return self._waits_since is not None or self._retry_at < math.inf

    def _check_certificate(self) -> None:
        if self._not_after <= self._mesh.now():
            # A stream is as good as its identity: who holds a renewed one comes back with it at once, who does not
            # fails the handshake. UNAVAILABLE, since UNAUTHENTICATED would say that this mesh no longer knows it.
            raise ProtocolError("UNAVAILABLE", "the client certificate has expired: connect with the renewed one")

    # ---- about

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._over

    @property
    def call(self) -> Call:
        """What it is served on."""
        return self._call

    @property
    def trusts_as_told(self) -> bool:
        """Whether the client holds the newest of the secrets that it asked for, as far as the stream was told of them:
        its identity, and whom to believe."""
        return not self._stale_view and self._stream.is_current(SECRET)

    @property
    def status(self) -> ClientStatus:
        return self.record.status(self._stream.status, self._stream.node, self._mesh.now())

    @property
    def view(self) -> View:
        """What the client may see, as of its last turn."""
        return self._view

    @property
    def subscriptions(self) -> Iterable[tuple[str, int]]:
        """How many names the client asks for, by type URL."""
        return self._stream.subscriptions


def _nobody(_session: Session) -> None:
    """There is nobody to hear news."""
