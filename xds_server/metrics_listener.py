# SPDX-License-Identifier: Apache-2.0
"""The plain-HTTP listener for Prometheus: `/metrics`, and `/events` beside it. Nothing secret is behind either."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from http import HTTPStatus
from typing import cast

from aiohttp import web
from aiohttp.web_request import BaseRequest
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0

from xds_server.events import EventLog
from xds_server.http_server import QuietServer
from xds_server.metrics import CoordinatorMetrics
from xds_server.tls_front import source_of

# A few Prometheus servers scrape; a connection without a complete request ends after the idle time. Half of them from
# one source at most, so that one machine that holds connections open does not keep Prometheus out.
MAX_CONNECTIONS = 64
_IDLE_SECONDS = 30.0


class MetricsListener:
    """Serves on an already bound socket."""

    def __init__(self, metrics: CoordinatorMetrics, events: EventLog) -> None:
        self._metrics = metrics
        self._events = events
        self._http: web.Server | None = None
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        http = QuietServer(
            self._handle,
            access_log=None,
            logger=logging.getLogger("xds_server.http"),
            keepalive_timeout=_IDLE_SECONDS,
            lingering_time=0.0,
            auto_decompress=False,
        )

        self._http = http
        self._server = await asyncio.get_running_loop().create_server(lambda: _Gate(http), sock=listener)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._http is not None:
            self._http.pre_shutdown()
            await self._http.shutdown(1.0)

    async def _handle(self, request: BaseRequest) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=HTTPStatus.METHOD_NOT_ALLOWED, text="use GET\n")
        match request.rel_url.path:
            case "/metrics":
                with self._metrics.scrapes_in_flight.track_inprogress():
                    return self._scrape()
            case "/events":
                text = json.dumps(self._events.to_json(), separators=(",", ":"))
                return web.Response(text=text + "\n", content_type="application/json")
            case _:
                return web.Response(status=HTTPStatus.NOT_FOUND, text="paths are /metrics and /events\n")

    def _scrape(self) -> web.Response:
        metrics = self._metrics
        try:
            body = generate_latest(metrics.registry)
        except ValueError:  # a label or value that cannot be shown: a bug, but no reason to drop the connection
            metrics.scrapes.labels("500").inc()
            metrics.scrape_errors.labels("gathering").inc()
            return web.Response(status=HTTPStatus.INTERNAL_SERVER_ERROR, text="metrics cannot be gathered\n")
        metrics.scrapes.labels("200").inc()
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_PLAIN_1_0_0})


class _Gate(asyncio.Protocol):
    """Hands a new connection to HTTP, or closes it if it is one too many."""

    def __init__(self, http: web.Server) -> None:
        self._http = http

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)
        open_ones = [handler.transport for handler in self._http.connections]
        own = sum(_source(other) == _source(transport) for other in open_ones if other is not None)
        if len(open_ones) >= MAX_CONNECTIONS or own >= MAX_CONNECTIONS // 2:
            transport.abort()
            return
        handler = self._http()
        transport.set_protocol(handler)
        handler.connection_made(transport)


def _source(transport: asyncio.BaseTransport) -> str:
    peer = transport.get_extra_info("peername")
    return source_of(str(peer[0])) if peer else ""
