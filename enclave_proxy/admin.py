# SPDX-License-Identifier: Apache-2.0
"""The admin port: plain HTTP for probes, Prometheus and people. Read only, loopback by default, no secret behind it.

Where the host can read loopback (Gramine/SGX) it serves numbers and health alone: who talks to whom under which name is
nobody's business there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Self

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from enclave_proxy.cluster_views import cluster_dump
from enclave_proxy.config import ADMIN, HostPort
from enclave_proxy.dump import certificates, config_dump
from enclave_proxy.errors import StartError
from enclave_proxy.health import Health
from enclave_proxy.metrics import make_registry

# GET without body; a few hundred bytes of header are normal.
_MAX_HEADER = 8190

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

    def __init__(self, runner: web.AppRunner, address: HostPort) -> None:
        self._runner = runner
        self.address = address

    @classmethod
    async def start(cls, health: Health, address: HostPort, *, numbers_only: bool) -> Self:
        """Listen on `address` (port 0: any). Raises StartError if that cannot be."""
        runner = web.AppRunner(make_app(health, numbers_only=numbers_only), access_log=None, max_line_size=_MAX_HEADER)
        await runner.setup()
        site = web.TCPSite(runner, address.host, address.port)
        try:
            await site.start()
        except OSError as error:
            await runner.cleanup()
            raise StartError(
                f"cannot listen on admin address {address}: {error.strerror}: give another {ADMIN.names}, or `off`"
            ) from error
        return cls(runner, HostPort(address.host, runner.addresses[0][1]))

    async def stop(self) -> None:
        """Stop listening and end open requests."""
        await self._runner.cleanup()


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
