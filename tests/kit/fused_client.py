# SPDX-License-Identifier: Apache-2.0
"""An app that knows nothing of a mesh: asks the six servers of `fused_server` at the host `db`, says what it heard as
one JSON line on standard error, and ends.

fused_client.py OUTSIDE_PORT ASYNCIO HTTP AIOHTTP UVICORN GRPC GRPC_AIO
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import sys
import urllib.request
from collections.abc import Callable

import aiohttp
import grpc
import uvloop

SAY = "/app.Echo/Say"


async def streams(port: int) -> str:
    reader, writer = await asyncio.open_connection("db", port)
    writer.write(b"hello")
    answer = await reader.readexactly(len(b"asyncio:12345:hello") - 5 + len(str(port)))
    peer = writer.get_extra_info("peername")
    writer.close()
    return f"{answer.decode()} {isinstance(peer, tuple)}"


async def page(port: int) -> str:
    async with aiohttp.ClientSession() as client, client.get(f"http://db:{port}/") as reply:
        return await reply.text()


async def rpc_later(port: int) -> str:
    async with grpc.aio.insecure_channel(f"db:{port}") as channel:
        return (await channel.unary_unary(SAY)(b"hello", wait_for_ready=True)).decode()


def rpc(port: int) -> str:
    with grpc.insecure_channel(f"dns:///db:{port}") as channel:
        return channel.unary_unary(SAY)(b"hello", wait_for_ready=True).decode()


def uvicorn_page(port: int) -> str:
    connection = http.client.HTTPConnection("db", port)
    connection.request("GET", "/")
    return connection.getresponse().read().decode()


def plain(host: str, port: int) -> str:
    with socket.create_connection((host, port), timeout=5) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(b"x")
        return f"{sock.makefile('rb').read(9).decode()} {sock.getpeername()[1] == port}"


def tried(what: Callable[[], str]) -> str:
    try:
        return what()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main(outside: int, *ports: int) -> int:
    a, b, c, d, e, f = ports
    heard = {
        "asyncio": tried(lambda: asyncio.run(streams(a))),
        "uvloop": tried(lambda: uvloop.run(streams(a))),
        "urllib": tried(lambda: urllib.request.urlopen(f"http://db:{b}/").read().decode()),
        "aiohttp": tried(lambda: asyncio.run(page(c))),
        "aiohttp on uvloop": tried(lambda: uvloop.run(page(c))),
        "http.client": tried(lambda: uvicorn_page(d)),
        "grpc": tried(lambda: rpc(e)),
        "grpc.aio": tried(lambda: asyncio.run(rpc_later(f))),
        "socket": tried(lambda: plain("db", a)),
        "outside": tried(lambda: plain("127.0.0.1", outside)),
        "wrong port": tried(lambda: plain(socket.gethostbyname("db"), 1)),
        "wrong port of grpc": tried(lambda: rpc(1)),
        "resolved": socket.getaddrinfo("db", a, type=socket.SOCK_STREAM)[0][4][0],
    }
    print(json.dumps({"event": "heard", **heard}), file=sys.stderr, flush=True)
    return 7


if __name__ == "__main__":
    sys.exit(main(*[int(port) for port in sys.argv[1:]]))
