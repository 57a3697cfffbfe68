# SPDX-License-Identifier: Apache-2.0
"""The app of the chaos test: chaos_app.py RECORDS SOCKET (in $MARBLEMESH_RUN_DIR)

Writes a line of JSON to RECORDS for every connection that said anything, when it begins, and another one when it ends:
what came, whether every byte was right, and how it ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from pathlib import Path
from typing import TextIO

from tests.soak.chaos_wire import DIGEST, Connection, End, Expected, Header, Mode, Stream, send_all, take_all

PACE = 0.004


class App:
    """All connections of one app."""

    def __init__(self, records: TextIO) -> None:
        self._records = records

    async def serve(self, accepted: socket.socket) -> None:
        connection = Connection(accepted)
        record: dict[str, object] = {}
        try:
            head = await connection.receive_exactly(Header.SIZE)
            if not head:
                return  # the worker looks whether we listen
            record["end"] = connection.end.name
            if len(head) < Header.SIZE:
                record["foreign"] = "" if connection.end is End.BROKEN else head.hex()
                return
            try:
                header = Header.unpack(head)
            except ValueError as e:
                record["foreign"] = str(e)
                return
            self._write({"begun": header.number})
            record |= {"number": header.number, "mode": header.mode.name}
            record |= await self._talk(connection, header)
            record |= {"end": connection.end.name, "why": connection.why}
        finally:
            connection.close()
            if record:
                self._write(record)

    def _write(self, record: dict[str, object]) -> None:
        self._records.write(json.dumps(record) + "\n")
        self._records.flush()

    async def _talk(self, connection: Connection, header: Header) -> dict[str, object]:
        up = Expected(header.seed, header.up)
        down = Stream(header.seed + 1, header.down)
        sent, answer = False, ""
        match header.mode:
            case Mode.UP:
                await take_all(connection, up)
                if connection.end is End.CLEAN and await connection.send(up.digest):
                    connection.finish()
            case Mode.DOWN:
                sent = await send_all(connection, down, PACE)
                answer = (await connection.receive_exactly(DIGEST)).hex()
            case Mode.BOTH:
                async with asyncio.TaskGroup() as group:
                    sending = group.create_task(send_all(connection, down, PACE))
                    await take_all(connection, up)
                sent = sending.result()
            case Mode.SILENT:
                await connection.receive()
            case Mode.HALF:
                await connection.receive()
                if connection.end is End.CLEAN:
                    await asyncio.sleep(15)
        return {
            "up": up.got, "up_complete": up.complete, "wrong": up.wrong, "digest": up.digest.hex(), "sent": sent,
            "answer": answer,
        }  # fmt: skip


async def main(records: Path, name: str) -> None:
    path = Path(os.environ["MARBLEMESH_RUN_DIR"]) / name  # noqa: TID251 - an app of its own
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen(256)
    listening.setblocking(False)
    print("app listening", file=sys.stderr, flush=True)
    loop = asyncio.get_running_loop()
    with records.open("a") as file:
        app = App(file)
        async with asyncio.TaskGroup() as group:
            while True:
                accepted, _ = await loop.sock_accept(listening)
                group.create_task(app.serve(accepted))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
