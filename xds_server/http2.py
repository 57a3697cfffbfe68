# SPDX-License-Identifier: Apache-2.0
"""Plain HTTP/2 requests: each stream is one request to the same routes that HTTP/1.1 reaches.

Limits of the connection stand in `h2_session`, those of a body come from its route. A stream whose client does not take
the answer ends after `call_seconds`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from functools import partial
from http import HTTPStatus

from h2.errors import ErrorCodes

from xds_server.h2_session import Call, H2Port, H2Session, Headers, Limit
from xds_server.http_dispatch import SERVER, BodyRefused, BodyTooLarge, BodyTooLate, NoRoom, ReadBody
from xds_server.http_json import Reply

Dispatch = Callable[[str, str, tuple[bytes, ...], ReadBody], Awaitable[Reply]]


class Http2Session(H2Session):
    """One connection."""

    stop_upload = True

    def __init__(self, port: H2Port, dispatch: Dispatch, body_seconds: float) -> None:
        super().__init__(port)
        self._dispatch = dispatch
        self._body_seconds = body_seconds
        self._bodies: dict[int, asyncio.Future[None]] = {}

    def begun(self, call: Call) -> None:
        self._bodies[call.stream] = self.loop.create_future()
        call.task = self.loop.create_task(self._run(call))
        call.task.add_done_callback(partial(self._forget, call.stream))

    def ended(self, call: Call) -> None:
        body = self._bodies.get(call.stream)
        if body is not None and not body.done():
            body.set_result(None)

    def limited(self, call: Call, limit: Limit) -> None:
        match limit:
            case Limit.LEAVING:
                self.reset(call, ErrorCodes.REFUSED_STREAM)  # clients know that this is safe to repeat
            case Limit.TOO_LARGE:
                self._refuse(call, BodyTooLarge(call.limit))
            case Limit.NO_ROOM:
                self._refuse(call, NoRoom())
            case Limit.TOO_LATE:
                self.reset(call, ErrorCodes.CANCEL)

    def _refuse(self, call: Call, reason: BodyRefused) -> None:
        call.limit = 0  # nothing more is kept
        body = self._bodies.get(call.stream)
        if body is not None and not body.done():
            body.set_exception(reason)

    async def _run(self, call: Call) -> None:
        method = _text(call.headers.get(b":method", b""))
        target = _text(call.headers.get(b":path", b""))
        reply = await self._dispatch(method, target, self.transport.peer_certificates, partial(self._read, call))
        self.respond(call, _head(reply), b"" if method == "HEAD" else reply.body)
        self.flush()

    async def _read(self, call: Call, limit: int) -> bytes:
        """The whole body. Raises BodyRefused as soon as it is known to be too large."""
        announced = call.headers.get(b"content-length", b"")
        if call.taken > limit or (announced.isdigit() and int(announced[:20]) > limit):
            raise BodyTooLarge(limit)
        call.limit = min(call.limit, limit)
        if call.headers.get(b"expect", b"").lower() == b"100-continue" and not call.complete:
            self.interim(call, [(b":status", b"100")])
        try:
            async with asyncio.timeout(self._body_seconds):
                await self._bodies[call.stream]
        except TimeoutError:
            raise BodyTooLate(self._body_seconds) from None
        body = bytes(call.body)
        call.body.clear()
        return body

    def _forget(self, stream: int, _task: asyncio.Task[None]) -> None:
        body = self._bodies.pop(stream)
        if body.done() and not body.cancelled():
            body.exception()  # refused after the answer was made: nobody needs to hear of it


def _text(value: bytes) -> str:
    return value.decode("latin-1")


def _head(reply: Reply) -> Headers:
    fields = [
        (b":status", str(int(HTTPStatus(reply.status))).encode()),
        (b"content-length", str(len(reply.body)).encode()),
        (b"date", formatdate(usegmt=True).encode()),
        (b"server", SERVER.encode()),
    ]
    return fields + [(name.lower().encode(), value.encode()) for name, value in reply.headers.items()]
