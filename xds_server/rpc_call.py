# SPDX-License-Identifier: Apache-2.0
"""One call on the own transport: a `rpc.Call`, for a handler's task first and, if it returns one, for its Receiver."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Protocol

from sds.logs import get_logger
from xds_server.rpc import CallEnded, Handler, Receiver, RpcError
from xds_server.rpc_h2 import Connection
from xds_server.rpc_stream import Stream

_INTERNAL = RpcError("INTERNAL", "internal error")
# A client that is told its status before it has written its first message may take that for a fault of its own (grpcio
# says INTERNAL then). So whoever is refused is heard first, if it speaks at once.
_HEAR_SECONDS = 0.1

_log = get_logger(__name__)


class Line(Protocol):
    """What a call needs of its connection."""

    h2: Connection

    @property
    def peer(self) -> str: ...

    @property
    def certificate_der(self) -> bytes | None: ...

    def touch(self) -> None:
        """There is something to be written."""


class RpcCall:
    """A `rpc.Call`. While the task of its handler runs, messages are kept until they are read."""

    __slots__ = ("_heard", "_inbox", "_line", "_receiver", "_stream", "_task", "_turn", "_writable", "closed")

    def __init__(self, line: Line, stream: Stream) -> None:
        self._line = line
        self._stream = stream
        self._receiver: Receiver | None = None
        self._task: asyncio.Task[None] | None = None
        self._inbox: deque[bytes] | None = deque()
        self._turn: asyncio.Future[None] | None = None  # what a read waits for
        self._writable: asyncio.Future[None] | None = None  # what a write waits for
        self._heard = False
        self.closed = False
        stream.paused = True

    def serve(self, handler: Handler) -> asyncio.Task[None]:
        """Begin; the task ends with the call, or when a Receiver has taken over."""
        self._task = asyncio.get_running_loop().create_task(self._serve(handler))
        return self._task

    async def _serve(self, handler: Handler) -> None:
        try:
            receiver = await handler(self)
        except CallEnded:
            return
        except RpcError as e:
            await self._hear()
            self.finish(e)
        except Exception:  # a bug: the client learns nothing of it, the log everything
            _log.exception("call failed", method=self.method)
            self.finish(_INTERNAL)
        else:
            if receiver is None:
                self.finish()
            else:
                self._hand_over(receiver)
        finally:
            self._task = None

    async def _hear(self) -> None:
        if self._heard:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_HEAR_SECONDS):
                await self.read()

    def _hand_over(self, receiver: Receiver) -> None:
        if self.closed:
            receiver.closed()
            return
        self._receiver = receiver
        inbox, self._inbox = self._inbox, None
        while inbox and not self.closed:
            self.message(inbox.popleft())
        self.resume()

    # ---- rpc.Call

    @property
    def method(self) -> str:
        return self._stream.path

    @property
    def peer(self) -> str:
        return self._line.peer

    @property
    def certificate_der(self) -> bytes | None:
        return self._line.certificate_der

    async def read(self) -> bytes | None:
        while not self._inbox:
            if self.closed or self._stream.told:
                return None
            self.resume()
            if not self._inbox and not self.closed and not self._stream.told:
                self._turn = asyncio.get_running_loop().create_future()
                try:
                    await self._turn
                finally:
                    self._turn = None
        return self._inbox.popleft()

    async def write(self, body: bytes) -> None:
        if self.closed:
            raise CallEnded
        if self.send(body):
            return
        self._writable = asyncio.get_running_loop().create_future()
        try:
            await self._writable
        finally:
            self._writable = None
        if self.closed:
            raise CallEnded

    def send(self, body: bytes) -> bool:
        sent = self._line.h2.send(self._stream, body)
        self._line.touch()
        return sent

    def pause(self) -> None:
        self._stream.paused = True

    def resume(self) -> None:
        self._line.h2.resume(self._stream)
        self._line.touch()

    def finish(self, error: RpcError | None = None) -> None:
        if error is None:
            self._line.h2.finish(self._stream, "OK")
        else:
            self._line.h2.finish(self._stream, error.status, str(error))
        self._line.touch()

    # ---- from the connection

    def message(self, body: bytes) -> None:
        """A message has come."""
        if self._receiver is not None:
            try:
                self._receiver.received(body)
            except Exception as e:
                self._fail(e)
        elif self._inbox is not None:
            self._heard = True
            self._inbox.append(body)
            self._stream.paused = True
            _wake(self._turn)

    def half_closed(self) -> None:
        """Nothing more will come."""
        if self._receiver is not None:
            try:
                self._receiver.half_closed()
            except Exception as e:
                self._fail(e)
        else:
            _wake(self._turn)

    def writable(self) -> None:
        """What waited has been sent."""
        if self._receiver is not None:
            try:
                self._receiver.writable()
            except Exception as e:
                self._fail(e)
        else:
            _wake(self._writable)

    def end(self) -> None:
        """The stream is over."""
        self.closed = True
        receiver, self._receiver = self._receiver, None  # or each would keep the other
        if receiver is not None:
            receiver.closed()
            return
        _wake(self._turn)
        _wake(self._writable)
        # It may wait for something else; unless it is itself what ends the call.
        if self._task is not None and self._task is not _current_task():
            self._task.cancel()

    def _fail(self, error: Exception) -> None:
        if isinstance(error, RpcError):
            self.finish(error)
        else:  # a bug, as above
            _log.error("call failed", method=self.method, exc_info=error)
            self.finish(_INTERNAL)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def _current_task() -> asyncio.Task[object] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
