# SPDX-License-Identifier: Apache-2.0
"""An app that holds as many connections as it is given and sends back what it gets: connections_app.py SOCKET (in
$MARBLEMESH_RUN_DIR)."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import cast

import uvloop


class Echo(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


async def main(name: str) -> None:
    path = Path(os.environ["MARBLEMESH_RUN_DIR"]) / name  # noqa: TID251 - an app of its own
    await asyncio.get_running_loop().create_unix_server(Echo, path, backlog=4096)
    print("app listening", file=sys.stderr, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
