# SPDX-License-Identifier: Apache-2.0
"""The traffic of the chaos test: chaos_client.py SEED CONNECTIONS NAME=SOCKET...

Keeps so many connections to each target, one after the other, and prints a line of JSON for each when it has ended.
Ends when its input does, after the connections that are still open have.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import sys
import time
from contextlib import suppress
from itertools import count

from tests.soak.chaos_wire import DIGEST, Connection, End, Expected, Header, Mode, Stream, send_all, take_all

# Nobody waits longer than this for a worker whose timeouts are those of `chaos_world`: endpoint_wait, three attempts to
# connect and to shake hands, then idle_timeout and an eighth; the rest is for a busy machine.
HUNG = 40.0
_WEIGHTS = {Mode.UP: 6, Mode.DOWN: 6, Mode.BOTH: 6, Mode.SILENT: 1, Mode.HALF: 1}
_SIZES = (0, 1, 100, 20_000, 200_000, 1_000_000)
_PACES = (0.0, 0.005, 0.05)


class Client:
    """What one target is asked for."""

    def __init__(self, name: str, where: str, rng: random.Random, numbers: count[int]) -> None:
        self._name = name
        self._where = where
        self._rng = rng
        self._numbers = numbers
        self.stopped = asyncio.Event()

    async def keep_asking(self) -> None:
        while not self.stopped.is_set():
            if not await self._once():
                await asyncio.sleep(0.2)  # the worker is not there
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stopped.wait(), self._rng.uniform(0.0, 0.2))

    async def _once(self) -> bool:
        rng = self._rng
        mode = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        sizes = [rng.choice(_SIZES) + rng.randrange(50) for _ in range(2)]
        header = Header(mode, next(self._numbers), sizes[0], sizes[1], rng.getrandbits(63))
        pace = rng.choice(_PACES)
        record: dict[str, object] = {"number": header.number, "target": self._name, "mode": mode.name}
        began = time.time()
        record["began"] = began
        try:
            connected = await self._connect()
        except OSError:
            return False
        connection = Connection(connected)
        talking = asyncio.ensure_future(self._talk(connection, header, pace))
        hung = await self._watch(connection, talking)
        record |= {"hung": hung} if hung else talking.result()
        connection.close()
        record |= {"end": connection.end.name, "why": connection.why, "seconds": round(time.time() - began, 3)}
        print(json.dumps(record), flush=True)
        return True

    async def _watch(self, connection: Connection, talking: asyncio.Future[dict[str, object]]) -> str:
        """Until it is over; says so if nothing happened for too long."""
        moved, since = 0, time.monotonic()
        while not talking.done():
            await asyncio.wait((talking,), timeout=1)
            if connection.moved != moved:
                moved, since = connection.moved, time.monotonic()
            elif time.monotonic() - since > HUNG and not talking.done():
                talking.cancel()
                await asyncio.wait((talking,))
                return f"nothing moved for {HUNG:g} s after {moved} bytes"
        return ""

    async def _connect(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            await asyncio.get_running_loop().sock_connect(made, self._where)
        except BaseException:
            made.close()
            raise
        return made

    async def _talk(self, connection: Connection, header: Header, pace: float) -> dict[str, object]:
        up, down = Stream(header.seed, header.up), Expected(header.seed + 1, header.down)
        sent, answer, whole = False, "", Expected(header.seed, header.up)
        if await connection.send(header.pack()):
            match header.mode:
                case Mode.UP:
                    sent = await send_all(connection, up, pace)
                    answer = (await connection.receive_exactly(DIGEST)).hex()
                    await connection.receive(1)
                case Mode.DOWN:
                    await take_all(connection, down)
                    if connection.end is End.CLEAN and await connection.send(down.digest):
                        connection.finish()
                case Mode.BOTH:
                    async with asyncio.TaskGroup() as group:
                        sending = group.create_task(send_all(connection, up, pace))
                        await take_all(connection, down)
                    sent = sending.result()
                case Mode.SILENT:
                    await connection.receive()
                case Mode.HALF:
                    connection.finish()
                    await connection.receive()
        if header.mode is Mode.UP:
            stream = Stream(header.seed, header.up)
            while part := stream.take():
                whole.take(part)
        return {
            "sent": sent, "down": down.got, "down_complete": down.complete, "wrong": down.wrong,
            "digest": down.digest.hex(), "answer": answer, "expected": whole.digest.hex(),
        }  # fmt: skip


async def main(seed: int, connections: int, targets: list[str]) -> None:
    numbers = count(1)
    clients = []
    for index in range(connections):
        for target in targets:
            name, _, where = target.partition("=")
            clients.append(Client(name, where, random.Random(f"{seed} {index} {name}"), numbers))
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.keep_asking())
        await reader.read()
        for client in clients:
            client.stopped.set()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
