# SPDX-License-Identifier: Apache-2.0
"""The admin port: plain HTTP for probes, Prometheus and people. Read only, loopback by default, no secret behind it.

Where the host can read loopback (Gramine/SGX) it serves numbers and health alone: who talks to whom under which name is
nobody's business there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Self

from aiohttp import web
from aiohttp.typedefs import Handler as AnyHandler
from aiohttp.typedefs import Middleware
from aiohttp.web_protocol import RequestHandler
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from enclave_proxy.cluster_views import cluster_dump
from enclave_proxy.config import ADMIN, HostPort
from enclave_proxy.dump import certificates, config_dump
from enclave_proxy.errors import StartError
from enclave_proxy.health import Health
from enclave_proxy.metrics import make_registry
from sds.http_gate import HttpGate

# GET without body; a few hundred bytes of header are normal.
_MAX_HEADER = 8190
# Kubelet, a few Prometheus servers, people. The port may be open to every pod, and each connection is a descriptor.
MAX_CONNECTIONS = 64
# Longer than the usual time between two scrapes.
_IDLE_SECONDS = 75.0

Handler = Callable[[web.Request], Awaitable[web.Response]]


def make_app(health: Health, *, numbers_only: bool) -> web.Application:
    """The admin as an application; `numbers_only` leaves out what names peers."""
    app = web.Application(client_max_size=0)
    app.router.add_get("/metrics", _metrics(make_registry(health)))
    app.router.add_get("/livez", _livez)
    app.router.add_get("/readyz", _readyz(health))
    if not numbers_only:
        app.router.add_get("/certs", _certs(health))
        app.router.add_get("/clusters", _clusters(health))
        app.router.add_get("/config_dump", _config_dump(health))
    return app


class Admin:
    """A running admin port. Make it with `start`."""

    def __init__(self, runner: web.AppRunner, server: asyncio.Server, address: HostPort) -> None:
        self._runner = runner
        self._server = server
        self.address = address

    @classmethod
    async def start(cls, health: Health, address: HostPort, *, numbers_only: bool) -> Self:
        """Listen on `address` (port 0: any). Raises StartError if that cannot be."""
        app = make_app(health, numbers_only=numbers_only)
        asked: set[RequestHandler] = set()
        app.middlewares.append(_remembering(asked))
        runner = web.AppRunner(app, access_log=None, max_line_size=_MAX_HEADER, keepalive_timeout=_IDLE_SECONDS)
        await runner.setup()
        http = runner.server
        if http is None:
            raise RuntimeError("an application that is set up has a server")
        try:
            server = await asyncio.get_running_loop().create_server(
                lambda: HttpGate(http, asked, MAX_CONNECTIONS), address.host, address.port
            )
        except OSError as error:
            await runner.cleanup()
            raise StartError(
                f"cannot listen on admin address {address}: {error.strerror}: give another {ADMIN.names}, or `off`"
            ) from error
        return cls(runner, server, HostPort(address.host, server.sockets[0].getsockname()[1]))

    async def stop(self) -> None:
        """Stop listening and end open requests."""
        self._server.close()
        await self._runner.cleanup()


def _remembering(asked: set[RequestHandler]) -> Middleware:
    @web.middleware
    async def remember(request: web.Request, handler: AnyHandler) -> web.StreamResponse:
        asked.add(request.protocol)
        try:
            return await handler(request)
        finally:
            asked.discard(request.protocol)

    return remember


def _metrics(registry: CollectorRegistry) -> Handler:
    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return metrics


async def _livez(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")


def _readyz(health: Health) -> Handler:
    async def readyz(_: web.Request) -> web.Response:
        reason = health.not_ready()
        return web.Response(text="ok\n") if reason is None else web.Response(status=503, text=reason + "\n")

    return readyz


def _certs(health: Health) -> Handler:
    async def certs(_: web.Request) -> web.Response:
        return web.json_response({} if health.store is None else certificates(health.store))

    return certs


def _clusters(health: Health) -> Handler:
    async def clusters(_: web.Request) -> web.Response:
        return web.json_response([] if health.clusters is None else cluster_dump(await health.clusters.look()))

    return clusters


def _config_dump(health: Health) -> Handler:
    async def dump(_: web.Request) -> web.Response:
        return web.json_response(config_dump(health))

    return dump
