# SPDX-License-Identifier: Apache-2.0
"""An app that knows nothing of a mesh: six servers of six kinds on six TCP ports, until SIGTERM.

fused_server.py ASYNCIO HTTP AIOHTTP UVICORN GRPC GRPC_AIO
"""

from __future__ import annotations

import asyncio
import http.server
import json
import signal
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import grpc
import uvicorn
from aiohttp import web

STATUS = 9


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"asyncio:%d:" % writer.get_extra_info("sockname")[1])
    while chunk := await reader.read(65536):
        writer.write(chunk)
        await writer.drain()
    writer.close()


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"http.server {self.server.server_address[1]} {self.client_address[0]}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


async def aiohttp_page(request: web.Request) -> web.Response:
    return web.Response(text=f"aiohttp {request.url.host} {request.remote}")


async def asgi(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"7")]})
        await send({"type": "http.response.body", "body": b"uvicorn"})


def handlers(kind: bytes, asynchronous: bool) -> grpc.GenericRpcHandler:
    def answer(request: bytes, _: object) -> bytes:
        return kind + b":" + request

    async def answer_later(request: bytes, _: object) -> bytes:
        return kind + b":" + request

    method = grpc.unary_unary_rpc_method_handler(answer_later if asynchronous else answer)
    return grpc.method_handlers_generic_handler("app.Echo", {"Say": method})


async def main(ports: list[int]) -> int:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    streams, page, aio, asgi_port, rpc, rpc_aio = ports

    await asyncio.start_server(echo, "0.0.0.0", streams)
    server = http.server.ThreadingHTTPServer(("", page), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    application = web.Application()
    application.router.add_get("/", aiohttp_page)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "localhost", aio).start()  # two sockets, IPv4 and IPv6
    uvicorn_server = uvicorn.Server(
        uvicorn.Config(asgi, host="0.0.0.0", port=asgi_port, loop="uvloop", log_config=None, lifespan="off")
    )
    threading.Thread(target=uvicorn_server.run, daemon=True).start()
    blocking = grpc.server(ThreadPoolExecutor(2), handlers=(handlers(b"grpc", False),))
    bound = [blocking.add_insecure_port(f"[::]:{rpc}")]
    blocking.start()
    later = grpc.aio.server(handlers=(handlers(b"grpc.aio", True),))
    bound.append(later.add_insecure_port(f"0.0.0.0:{rpc_aio}"))
    await later.start()

    itself = await asyncio.to_thread(lambda: urllib.request.urlopen(f"http://localhost:{page}/").read().decode())
    print(json.dumps({"event": "app listening", "itself": itself, "bound": bound}), file=sys.stderr, flush=True)
    await ended.wait()
    blocking.stop(0)
    await later.stop(0)
    await runner.cleanup()
    return STATUS


if __name__ == "__main__":
    sys.exit(asyncio.run(main([int(port) for port in sys.argv[1:]])))
