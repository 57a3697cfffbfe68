# SPDX-License-Identifier: Apache-2.0
"""One connection of a local client: HTTP/2 and gRPC by grpclib, and what keeps one client from hurting the others.

    bytes ─► h2 (100 streams at most) ─► one task per call ─► a method of a service

grpclib's own server is not used, because it shows a method neither the connection nor its socket, and never lets go of
a stream that is reset before its task has begun (which is all that a "rapid reset" does).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from grpclib import const
from grpclib.config import Configuration
from grpclib.events import _DispatchServerEvents
from grpclib.exceptions import GRPCError
from grpclib.protocol import AbstractHandler, H2Protocol
from grpclib.protocol import Stream as H2Stream
from grpclib.server import Stream as GrpcStream
from grpclib.server import request_handler
from h2.config import H2Configuration
from h2.exceptions import H2Error

from enclave_proxy.grpc_channel import RawCodec
from enclave_proxy.local_call import Call, Method, Methods, PeerGone
from enclave_proxy.local_counters import LocalCounters
from enclave_proxy.local_peer import Peer, Unwelcome

# A connection on which nothing is asked for yet, or any more. Clients keep a call open for as long as they live.
FIRST_CALL_SECONDS = 10.0
IDLE_SECONDS = 300.0
# h2 announces 100 streams; calls that were reset and have not ended yet come on top.
MAX_CALLS = 200
# Answers that nobody reads (to pings and settings, which cost a client nothing to send). Messages wait for their turn.
MAX_UNREAD = 256 * 1024

_WINDOWS = Configuration(http2_connection_window_size=1024 * 1024, http2_stream_window_size=256 * 1024)
_HTTP2 = H2Configuration(client_side=False, header_encoding="ascii")


@dataclass(slots=True)
class Shared:
    """What all connections of a socket have in common. `bug` gets what no method should raise."""

    methods: Methods
    counters: LocalCounters
    bug: Callable[[BaseException], None]
    max_calls: int
    first_call_seconds: float = FIRST_CALL_SECONDS
    idle_seconds: float = IDLE_SECONDS


class Calls(AbstractHandler):
    """The calls of one connection, for grpclib's protocol to hand streams to."""

    def __init__(self, shared: Shared, peer: Peer) -> None:
        self.peer = peer
        self._shared = shared
        self._abort: Callable[[Unwelcome | None], None] | None = None
        self._tasks: dict[H2Stream, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._handlers = {path: self._handler(method) for path, method in shared.methods.items()}

    def opened(self, abort: Callable[[Unwelcome | None], None]) -> None:
        """The connection is up; `abort` ends it, for a reason that counts or because it is idle (None)."""
        self._abort = abort
        self._end_after(self._shared.first_call_seconds)

    def accept(self, stream: H2Stream, headers: list[tuple[str, str]], release_stream: Callable[[], None]) -> None:
        """A client calls. grpclib checks the headers and finds the method by its path."""
        if self._abort is None:
            return
        if len(self._tasks) >= MAX_CALLS:
            self._abort(Unwelcome.MISBEHAVED)
            return
        self._end_after(None)
        release = _once(release_stream)
        body = request_handler(self._handlers, stream, headers, RawCodec(), None, _DispatchServerEvents(), release)
        task = self._tasks[stream] = asyncio.get_running_loop().create_task(body)
        task.add_done_callback(lambda done: self._ended(done, stream, release))

    def cancel(self, stream: H2Stream) -> None:
        """The client has reset a stream."""
        if (task := self._tasks.get(stream)) is not None:
            task.cancel()

    def close(self) -> None:
        """The connection is gone."""
        self._abort = None
        self._end_after(None)
        for task in self._tasks.values():
            task.cancel()

    async def wait_closed(self) -> None:
        """Until every call has ended."""
        while self._tasks:
            await asyncio.wait(self._tasks.values())

    def _ended(self, task: asyncio.Task[None], stream: H2Stream, release: Callable[[], None]) -> None:
        del self._tasks[stream]
        release()
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._shared.bug(fault)
        if not self._tasks:
            self._end_after(self._shared.idle_seconds)

    def _end_after(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None and self._abort is not None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._abort, None)

    def _handler(self, method: Method) -> const.Handler:
        async def run(stream: GrpcStream[bytes, bytes]) -> None:
            await self._run(method, stream)

        return const.Handler(run, method.cardinality, bytes, bytes)

    async def _run(self, method: Method, stream: GrpcStream[bytes, bytes]) -> None:
        counters = self._shared.counters
        if counters.streams.total() >= self._shared.max_calls:
            counters.ended[method.name, const.Status.RESOURCE_EXHAUSTED.name] += 1
            raise GRPCError(const.Status.RESOURCE_EXHAUSTED, "too many calls on this socket")
        counters.streams[method.name] += 1
        status = const.Status.CANCELLED
        try:
            await method.run(Call(stream, self.peer, method.name, counters))
            status = const.Status.OK
        except GRPCError as error:
            status = error.status
            if isinstance(error, PeerGone) and self._abort is not None:
                self._abort(Unwelcome.PROCESS_GONE)
            raise
        except H2Error:
            raise  # the stream was closed under our hands
        except Exception as error:
            status = const.Status.INTERNAL
            self._shared.bug(error)
            raise GRPCError(status, "internal error") from None
        finally:
            counters.streams[method.name] -= 1
            counters.ended[method.name, status.name] += 1


class LocalProtocol(H2Protocol):
    """The bytes of one connection. Whatever they are, only this connection suffers."""

    def __init__(self, calls: Calls, refused: Callable[[Unwelcome], None], lost: Callable[[], None]) -> None:
        super().__init__(calls, _WINDOWS.__for_server__(), _HTTP2)
        self._calls = calls
        self._refused = refused
        self._lost = lost
        self._transport: asyncio.Transport | None = None

    @property
    def open_streams(self) -> int:
        """How many streams grpclib still knows."""
        return len(self.processor.streams)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        super().connection_made(transport)
        self._calls.opened(self.abort)

    def data_received(self, data: bytes) -> None:
        try:
            events = self.connection.feed(data)
            self.connection.flush()
            for event in events:
                self.processor.process(event)
            self.connection.flush()
            if self._transport is not None and self._transport.get_write_buffer_size() > MAX_UNREAD:
                self.abort(Unwelcome.MISBEHAVED)
        except Exception:
            # h2 and hpack raise for what is wrong, grpclib for frames that it does not know and for talk after a
            # goodbye. All of it is the client's doing, and none of it is worth a traceback.
            self.abort(Unwelcome.MISBEHAVED)

    def abort(self, reason: Unwelcome | None) -> None:
        """Cut the connection off. Without a reason it was only idle."""
        if self._transport is None or self._transport.is_closing():
            return
        if reason is not None:
            self._refused(reason)
        self._transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._lost()


def _once(release: Callable[[], None]) -> Callable[[], None]:
    """grpclib lets a stream go when its task ends, unless the task was ended before it began."""
    pending = [release]

    def released() -> None:
        if pending:
            pending.pop()()

    return released
