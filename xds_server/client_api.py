# SPDX-License-Identifier: Apache-2.0
"""The client API's port: HTTP/2 or HTTP/1.1, as the client's ALPN says, to the same routes with the same limits.

    TlsFront ─ ALPN h2 ─► http2.Http2Session ─┐
             └ else ────► aiohttp             ┴─► http_dispatch.Dispatcher ─► client_api_routes

Bounds: a body of the route's size within `body_timeout` seconds, `body_budget` bytes of bodies at once over all
connections. Request heads are bounded by aiohttp and h2, the wait for them by the TLS front.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import web
from aiohttp.web_request import BaseRequest

from xds_server.byte_budget import ByteBudget
from xds_server.client_api_replies import MANIFEST_BODY
from xds_server.h2_session import H2Limits, H2Port
from xds_server.http2 import Http2Session
from xds_server.http_dispatch import MAX_TARGET, SERVER, BodyRefused, BodyTooLarge, BodyTooLate, Dispatcher, NoRoom
from xds_server.http_dispatch import Routes as Routes
from xds_server.http_server import QuietServer
from xds_server.metrics import CoordinatorMetrics
from xds_server.tls_front import TlsTransport

ALPN = (b"h2", b"http/1.1")
# Anybody may upload until a manifest is set: two of the largest at once, which take as much again while decoded.
BODY_BUDGET = 2 * MANIFEST_BODY
# What clients take for granted before they have read our settings: with less, Go's loses its first requests.
MAX_STREAMS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """Seconds and bytes. An answer has `body_timeout` again until the client has taken it."""

    body_budget: int = BODY_BUDGET
    body_timeout: float = 60.0
    keepalive: float = 50.0


class ClientApi:
    """One per process; `connect` makes the protocol for a connection of the TLS front."""

    def __init__(self, routes: Routes, metrics: CoordinatorMetrics, limits: HttpLimits | None = None) -> None:
        self._limits = limits or HttpLimits()
        self._dispatch = Dispatcher(routes, metrics)
        self.budget = ByteBudget(self._limits.body_budget)
        self._http2 = H2Port(
            H2Limits(
                streams=MAX_STREAMS,
                headers=MAX_TARGET,
                body=max(route.max_body for route in routes.values()),
                call_seconds=2 * self._limits.body_timeout,
                idle_seconds=self._limits.keepalive,
            ),
            self.budget,
        )
        self._http1 = QuietServer(
            self._handle,
            access_log=None,
            logger=logging.getLogger("xds_server.http"),
            keepalive_timeout=self._limits.keepalive,
            lingering_time=2.0,
            tcp_keepalive=False,
            auto_decompress=False,  # Go's server does not either, and 1 MiB could become a gigabyte
            max_line_size=MAX_TARGET,
        )

    def connect(self, transport: TlsTransport) -> asyncio.Protocol:
        """The protocol that the client chose."""
        if transport.alpn == "h2":
            return Http2Session(self._http2, self._dispatch, self._limits.body_timeout)
        return self._http1()

    async def stop(self, grace: float) -> None:
        """Finish the requests in flight, close the idle connections."""
        self._http2.stop()
        self._http1.pre_shutdown()
        await self._http1.shutdown(grace)

    # --- HTTP/1.1

    async def _handle(self, request: BaseRequest) -> web.StreamResponse:
        transport = request.transport
        if not isinstance(transport, TlsTransport):
            return web.Response(status=HTTPStatus.BAD_REQUEST)  # the connection is gone, nobody reads this
        body = _Http1Body(request, self.budget, self._limits.body_timeout)
        try:
            with transport.in_use():
                target = _origin_form(request.raw_path)
                reply = await self._dispatch(request.method, target, transport.peer_certificates, body.read)
        finally:
            body.done()
        response = web.Response(status=reply.status, body=reply.body, headers=reply.headers | {"Server": SERVER})
        if body.refused:
            response.force_close()  # the rest of the body is not worth reading
        return response


def _origin_form(target: str) -> str:
    """Path and query; clients that take us for a proxy send the whole URL."""
    scheme, separator, rest = target.partition("://")
    if target.startswith("/") or not separator or "/" in scheme:
        return target
    return "/" + rest.partition("/")[2]


class _Http1Body:
    """The body of one request, counted against the budget until `done`."""

    def __init__(self, request: BaseRequest, budget: ByteBudget, seconds: float) -> None:
        self._request = request
        self._budget = budget
        self._seconds = seconds
        self._taken = 0
        self.refused = False

    async def read(self, limit: int) -> bytes:
        """Raises BodyRefused as soon as it is known to be too large."""
        try:
            return await self._read(limit)
        except BodyRefused:
            self.refused = True
            raise

    async def _read(self, limit: int) -> bytes:
        request = self._request
        if (request.content_length or 0) > limit:
            raise BodyTooLarge(limit)
        if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = bytearray()
        try:
            async with asyncio.timeout(self._seconds):
                async for chunk in request.content.iter_any():
                    if len(body) + len(chunk) > limit:
                        raise BodyTooLarge(limit)
                    if not self._budget.take(len(chunk)):
                        raise NoRoom
                    self._taken += len(chunk)
                    body += chunk
        except (ConnectionError, web.RequestPayloadError) as e:
            raise BodyRefused(HTTPStatus.BAD_REQUEST, "request body is cut short or badly framed") from e
        except TimeoutError:
            raise BodyTooLate(self._seconds) from None
        return bytes(body)

    def done(self) -> None:
        self._budget.give_back(self._taken)
        self._taken = 0
