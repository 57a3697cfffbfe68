# SPDX-License-Identifier: Apache-2.0
"""A call that has passed the gate: what its handler, and later its Receiver, sees of it.

It reads no faster than the client's share of requests allows; the transport's flow control holds the client back
meanwhile. And it turns what a Receiver raises into what the client may hear.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from xds_server.rpc import Call, Receiver, RpcError
from xds_server.xds_admission import Bucket

_BYTES_PER_TOKEN = 4096

Judge = Callable[[Exception, Call], Exception]


class Passed:
    """A `rpc.Call` towards the service and a `rpc.Receiver` towards the transport. `judge` says what to raise instead
    of what was raised; `left` is called when the stream of a Receiver is over."""

    __slots__ = ("_call", "_clock", "_debt", "_judge", "_left", "_receiver", "_share")

    def __init__(self, call: Call, share: Bucket, clock: Callable[[], float], judge: Judge) -> None:
        self._call = call
        self._share = share
        self._clock = clock
        self._judge = judge
        self._debt = 0.0
        self._receiver: Receiver | None = None
        self._left: Callable[[], None] | None = None

    def hand_over(self, receiver: Receiver, left: Callable[[], None]) -> Passed:
        """From here on it is the Receiver's."""
        self._receiver, self._left = receiver, left
        return self

    # ---- rpc.Call

    @property
    def method(self) -> str:
        return self._call.method

    @property
    def peer(self) -> str:
        return self._call.peer

    @property
    def certificate_der(self) -> bytes | None:
        return self._call.certificate_der

    async def read(self) -> bytes | None:
        if self._debt:
            await asyncio.sleep(self._debt)
        body = await self._call.read()
        if body is not None:
            self._debt = self._owe(body)
        return body

    async def write(self, body: bytes) -> None:
        await self._call.write(body)

    def send(self, body: bytes) -> bool:
        return self._call.send(body)

    def pause(self) -> None:
        self._call.pause()

    def resume(self) -> None:
        self._call.resume()

    def finish(self, error: RpcError | None = None) -> None:
        self._call.finish(error)

    def _owe(self, body: bytes) -> float:
        return self._share.owe(1 + len(body) // _BYTES_PER_TOKEN, self._clock())

    # ---- rpc.Receiver

    def received(self, body: bytes) -> None:
        assert self._receiver is not None
        if (debt := self._owe(body)) > 0:
            self._call.pause()
            asyncio.get_running_loop().call_later(debt, self._call.resume)
        try:
            self._receiver.received(body)
        except Exception as e:
            raise self._judge(e, self) from None

    def half_closed(self) -> None:
        assert self._receiver is not None
        try:
            self._receiver.half_closed()
        except Exception as e:
            raise self._judge(e, self) from None

    def writable(self) -> None:
        assert self._receiver is not None
        try:
            self._receiver.writable()
        except Exception as e:
            raise self._judge(e, self) from None

    def closed(self) -> None:
        receiver, left = self._receiver, self._left
        self._receiver = self._left = None  # or each would keep the other
        if receiver is not None and left is not None:
            receiver.closed()
            left()
