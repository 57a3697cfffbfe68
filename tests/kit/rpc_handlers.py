# SPDX-License-Identifier: Apache-2.0
"""Handlers and a Receiver for tests of the transport: what they are told they send back."""

from __future__ import annotations

import asyncio

from xds_server.rpc import Call, Handler, Receiver, RpcError

ECHO, SINK, FALL, WAIT, LISTEN = "/t/Echo", "/t/Sink", "/t/Fall", "/t/Wait", "/t/Listen"


async def echo(call: Call) -> None:
    while (body := await call.read()) is not None:
        await call.write(body)


async def fall(call: Call) -> None:
    body = await call.read()
    if body == b"politely":
        raise RpcError("ABORTED", "no more")
    raise RuntimeError("secret=hunter2")


async def wait(_call: Call) -> None:
    await asyncio.Event().wait()


class Echoing:
    """A Receiver that sends back what it gets, and falls over when told to."""

    open = 0

    def __init__(self, call: Call) -> None:
        self.call = call
        self.waiting: list[bytes] = []
        self.over = False
        Echoing.open += 1

    def received(self, body: bytes) -> None:
        if body == b"politely":
            raise RpcError("ABORTED", "no more")
        if body == b"fall":
            raise RuntimeError("secret=hunter2")
        self.waiting.append(body)
        if len(self.waiting) == 1:
            self.go_on()

    def go_on(self) -> None:
        while self.waiting and self.call.send(self.waiting[0]):
            del self.waiting[0]
        if self.over and not self.waiting:
            self.call.finish()

    def writable(self) -> None:
        del self.waiting[0]
        self.go_on()

    def half_closed(self) -> None:
        self.over = True
        if not self.waiting:
            self.call.finish()

    def closed(self) -> None:
        Echoing.open -= 1


async def listen(call: Call) -> Receiver:
    return Echoing(call)


HANDLERS: dict[str, Handler] = {ECHO: echo, FALL: fall, WAIT: wait, LISTEN: listen}
