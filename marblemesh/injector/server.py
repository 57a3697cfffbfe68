# SPDX-License-Identifier: Apache-2.0
"""HTTPS around the review: `POST /mutate`, `GET /healthz`, `GET /metrics`. Bounded in size, time and connections.

No pod starts while the API server gets no connection, and any pod may reach the port: see `sds.http_gate`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from http import HTTPStatus

from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from marblemesh.inject.settings import Settings
from marblemesh.injector.certificate import ServedCertificate
from marblemesh.injector.metrics import InjectorMetrics
from marblemesh.injector.review import MAX_BODY, Verdict, review
from sds.http_gate import HttpGate
from sds.logs import get_logger

# An API server has a handful of connections; there are a few of those, kubelets and Prometheus.
MAX_CONNECTIONS = 256
# API servers wait ten seconds by default, and a pod that waits is seen.
DEADLINE = 5.0
# Longer than an API server keeps an idle connection: who closes second races with nobody.
_IDLE_SECONDS = 120.0
_GRACE = 5.0
# The largest body takes 50 MB as a value.
_AT_ONCE = 4

_log = get_logger("injector")


class InjectorServer:
    """Serves on an already bound socket. What it serves follows the certificate files."""

    def __init__(self, settings: Settings, certificate: ServedCertificate, metrics: InjectorMetrics) -> None:
        self._settings = settings
        self._certificate = certificate
        self._metrics = metrics
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._asked: set[RequestHandler] = set()
        self._http: web.Server | None = None
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        http = web.Server(
            self._handle,
            access_log=None,
            logger=logging.getLogger("injector.http"),
            keepalive_timeout=_IDLE_SECONDS,
            lingering_time=0.0,
            auto_decompress=False,
        )
        self._http = http
        self._server = await asyncio.get_running_loop().create_server(
            lambda: HttpGate(http, self._asked, MAX_CONNECTIONS),
            sock=listener,
            ssl=self._certificate.context,
            ssl_handshake_timeout=DEADLINE,
        )

    async def stop(self) -> None:
        """Answer what is being asked, and end."""
        if self._server is not None:
            self._server.close()
        if self._http is not None:
            self._http.pre_shutdown()
            await self._http.shutdown(_GRACE)

    async def _handle(self, request: BaseRequest) -> web.StreamResponse:
        match request.method, request.rel_url.path:
            case "POST", "/mutate":
                return await self._mutate(request)
            case (("GET" | "HEAD"), "/healthz"):
                return web.Response(text="ok\n")
            case (("GET" | "HEAD"), "/metrics"):
                self._metrics.certificate_failures.set(self._certificate.failures)
                body = generate_latest(self._metrics.registry)
                return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})
            case _, "/mutate" | "/healthz" | "/metrics":
                return _plain(HTTPStatus.METHOD_NOT_ALLOWED)
        return _plain(HTTPStatus.NOT_FOUND)

    async def _mutate(self, request: BaseRequest) -> web.Response:
        if request.content_type != "application/json":
            return self._malformed(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        if request.content_length is not None and request.content_length > MAX_BODY:
            return self._malformed(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        try:
            async with asyncio.timeout(DEADLINE):
                body = await _read(request)
        except TimeoutError:
            return self._malformed(HTTPStatus.REQUEST_TIMEOUT)
        if body is None:
            return self._malformed(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        started = time.perf_counter()
        self._asked.add(request.protocol)
        try:
            # In a thread: half a second for the largest body must not hold up the health check.
            async with self._turns:
                answer = await asyncio.to_thread(review, body, self._settings)
        finally:
            self._asked.discard(request.protocol)
        self._metrics.seconds.observe(time.perf_counter() - started)
        self._metrics.reviews.labels(answer.verdict.value).inc()
        if answer.reason:
            _log.info("pod not injected", verdict=answer.verdict.value, reason=answer.reason)
        kind = "text/plain" if answer.verdict is Verdict.MALFORMED else "application/json"
        return web.Response(status=answer.status, body=answer.body, content_type=kind)

    def _malformed(self, status: HTTPStatus) -> web.Response:
        self._metrics.reviews.labels(Verdict.MALFORMED.value).inc()
        return _plain(status)


async def _read(request: BaseRequest) -> bytes | None:
    """The body; None if it is too long."""
    parts, size = [], 0
    async for part in request.content.iter_any():
        size += len(part)
        if size > MAX_BODY:
            return None
        parts.append(part)
    return b"".join(parts)


def _plain(status: HTTPStatus) -> web.Response:
    response = web.Response(status=status, text=f"{status.phrase.lower()}\n")
    response.force_close()  # what is left of the body is not read
    return response
