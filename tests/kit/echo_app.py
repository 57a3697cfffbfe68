# SPDX-License-Identifier: Apache-2.0
"""A tiny app that knows nothing of TLS: answers every chunk with its name in front, on a UNIX socket.

echo_app.py NAME SOCKET [EXIT_STATUS]      SOCKET lies in $MARBLEMESH_RUN_DIR; ends with EXIT_STATUS on SIGTERM
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys


async def main(name: str, socket: str, status: str = "0") -> int:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            writer.write(name.encode() + b":" + chunk)
            await writer.drain()
        writer.close()

    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    path = os.path.join(os.environ["MARBLEMESH_RUN_DIR"], socket)  # noqa: PTH118, TID251 - an app of its own
    await asyncio.start_unix_server(serve, path)
    print("app listening", file=sys.stderr, flush=True)
    await ended.wait()
    return int(status)


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:])))
