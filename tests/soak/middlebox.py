# SPDX-License-Identifier: Apache-2.0
"""A box on the way between two pods that passes TCP connections on and fails on command: middlebox.py SOCKET WAY...

A way is NAME=HOST:PORT>HOST:PORT, where it listens and whither it leads. Orders come to the UNIX socket SOCKET as lines
of JSON, {"way", "fault", "seconds", "to"}, answered by "ok". Between its two sides each connection is terminated, so
that one side may hear of an end that the other does not.

    delayed     every chunk comes later, by up to 0.3 s          blackhole  new connections are taken, and nothing else
    stalled     nothing passes, then all of it                   refused    new connections are reset
    reset       all connections are reset on both sides          half-open  reset on the far side alone; the near side
    cut         a chunk is cut in two, then comes a plain FIN               is ignored until the time is over
    corrupted   one bit of the next chunk is turned              hijacked   new connections go elsewhere (`to`)
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass, field

CHUNK = 16384
_RESET = struct.pack("ii", 1, 0)
Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def reset(writer: asyncio.StreamWriter) -> None:
    """RST instead of FIN."""
    with suppress(OSError):  # it is closed already
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


@dataclass(eq=False)
class Passing:
    """One connection: the side that came to us, and the one that we made."""

    near: Pair
    far: Pair | None = None
    deaf: bool = False
    """the far side is gone, and the near side does not know"""
    cut: bool = False
    corrupt: bool = False
    whole: bool = False
    """both directions have ended, and everything that was sent was passed on"""

    def close(self) -> None:
        for side in (self.near, self.far):
            if side is not None:
                side[1].close() if self.whole else reset(side[1])

    def reset(self) -> None:
        for side in (self.near, self.far):
            if side is not None:
                reset(side[1])


@dataclass
class Way:
    """Where it leads, and what is the matter with it now."""

    name: str
    to: tuple[str, int]
    fault: str = ""
    elsewhere: tuple[str, int] | None = None
    passing: set[Passing] = field(default_factory=set)
    whole: asyncio.Event = field(default_factory=asyncio.Event)
    """not while it is stalled"""

    def fail(self, fault: str, elsewhere: tuple[str, int] | None) -> None:
        self.fault, self.elsewhere = fault, elsewhere
        match fault:
            case "stalled" | "blackhole":
                self.whole.clear()
            case "reset":
                for one in list(self.passing):
                    one.reset()
            case "half-open":
                for one in self.passing:
                    if one.far is not None:
                        one.deaf = True
                        reset(one.far[1])
            case "cut":
                for one in self.passing:
                    one.cut = True
            case "corrupted":
                for one in self.passing:
                    one.corrupt = True

    def heal(self) -> None:
        if self.fault in ("half-open", "blackhole"):
            for one in list(self.passing):
                if one.deaf or one.far is None:
                    one.reset()  # as a box does that has forgotten a connection, when it is spoken to
        self.fault, self.elsewhere = "", None
        self.whole.set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        one = Passing((reader, writer))
        self.passing.add(one)
        try:
            await self._pass(one)
        except* OSError:
            pass  # an end like any other
        finally:
            self.passing.discard(one)
            one.close()

    async def _pass(self, one: Passing) -> None:
        reader, writer = one.near
        if self.fault == "refused":
            return
        if self.fault == "blackhole":
            while await reader.read(CHUNK):
                pass
            return
        to = self.elsewhere or self.to
        one.far = await asyncio.wait_for(asyncio.open_connection(*to), 3)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pump(one, reader, one.far[1], forth=True))
            group.create_task(self._pump(one, one.far[0], writer, forth=False))
        one.whole = not one.deaf

    async def _pump(
        self, one: Passing, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, forth: bool
    ) -> None:
        try:
            while data := await reader.read(CHUNK):
                if one.deaf:
                    continue  # swallowed
                await self.whole.wait()
                if self.fault == "delayed":
                    await asyncio.sleep(random.uniform(0.05, 0.3))
                if one.corrupt:
                    one.corrupt = False
                    middle = len(data) // 2
                    data = data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
                if one.cut:
                    writer.write(data[: len(data) // 2])
                    break
                writer.write(data)
                await writer.drain()
            if not one.deaf and writer.can_write_eof():
                writer.write_eof()
            if one.cut:
                await asyncio.sleep(1)  # the FIN is to be seen before everything is reset
                raise ConnectionAbortedError
        except OSError:
            if one.deaf and not forth:
                return  # the near side is to hear nothing of that
            one.reset()
            raise


class Box:
    """All ways, and who gives orders."""

    def __init__(self, ways: list[Way]) -> None:
        self._ways = {way.name: way for way in ways}

    async def obey(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for line in reader:
            order = json.loads(line)
            way = self._ways[order["way"]]
            if order["fault"] == "heal":
                way.heal()
            else:
                way.fail(order["fault"], tuple(order["to"]) if order["to"] else None)
                if order["seconds"]:
                    asyncio.get_running_loop().call_later(order["seconds"], way.heal)
            writer.write(b"ok\n")
        writer.close()


async def main(control: str, specifications: list[str]) -> None:
    ways = []
    for text in specifications:
        name, _, route = text.partition("=")
        (host, port), (far, far_port) = (end.rsplit(":", 1) for end in route.split(">"))
        way = Way(name, (far, int(far_port)))
        way.whole.set()
        await asyncio.start_server(way.accept, host, int(port), limit=CHUNK)
        ways.append(way)
    await asyncio.start_unix_server(Box(ways).obey, control)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
