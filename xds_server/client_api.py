# SPDX-License-Identifier: Apache-2.0
"""The client API's HTTP: routes, bodies within bounds, metrics, and what happens to everything else.

Paths match exactly; whatever is no route is a 405 with one fixed body, because clients take a 405 (not a 404) as the
sign of an older server. What the routes answer stands in `client_api_routes`.

Bounds: a body of `max_body` bytes within `body_timeout` seconds, `BODY_BUDGET` bytes of bodies at once; before a body
is read, a POST that cannot succeed is answered. Request heads are bounded by aiohttp, the wait for them by the TLS
front.
"""

from __future__ import annotations

import asyncio
import logging
import posixpath
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import web
from aiohttp.web_request import BaseRequest

from sds.logs import get_logger
from xds_server.coordinator import MAX_MANIFEST
from xds_server.http_json import Reply, error, fail
from xds_server.http_server import SERVER, QuietServer
from xds_server.metrics import CoordinatorMetrics
from xds_server.tls_front import TlsTransport

# A manifest in base64, with room for line breaks in it and the JSON around it.
MAX_BODY = MAX_MANIFEST * 3 // 2
# Anybody may upload until a manifest is set: four of the largest at once.
BODY_BUDGET = 4 * MAX_BODY
_METHODS = frozenset({"GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"})

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """What a route sees of a request."""

    query: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Route:
    """`answer` makes the reply; `admit` may give it before the body is read."""

    answer: Callable[[Request], Awaitable[Reply]]
    admit: Callable[[], Reply | None] | None = None


Routes = dict[tuple[str, str], Route]


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """Seconds and bytes."""

    max_body: int = MAX_BODY
    body_budget: int = BODY_BUDGET
    body_timeout: float = 60.0
    keepalive: float = 60.0


class ClientApi:
    """One per process; `connect` makes the protocol for a connection of the TLS front."""

    def __init__(self, routes: Routes, metrics: CoordinatorMetrics, limits: HttpLimits | None = None) -> None:
        self._routes = routes
        self._paths = frozenset(path for _, path in routes)
        self._metrics = metrics
        self._limits = limits or HttpLimits()
        self._buffered = 0
        self._server = QuietServer(
            self._handle,
            access_log=None,
            logger=logging.getLogger("xds_server.http"),
            keepalive_timeout=self._limits.keepalive,
            lingering_time=2.0,
            tcp_keepalive=False,
            auto_decompress=False,  # Go's server does not either, and 1 MiB could become a gigabyte
        )

    def connect(self, _transport: TlsTransport) -> asyncio.Protocol:
        return self._server()

    async def stop(self, grace: float) -> None:
        """Finish the requests in flight, close the idle connections."""
        self._server.pre_shutdown()
        await self._server.shutdown(grace)

    async def _handle(self, request: BaseRequest) -> web.StreamResponse:
        transport = request.transport
        if not isinstance(transport, TlsTransport):
            return web.Response(status=HTTPStatus.BAD_REQUEST)  # the connection is gone, nobody reads this
        with transport.in_use():
            path = request.rel_url.path
            clean = _clean(path)
            if clean != path:
                return web.Response(
                    status=HTTPStatus.TEMPORARY_REDIRECT,
                    headers={"Location": _location(clean, request), "Server": SERVER},
                )
            label = path if path in self._paths else "unknown"
            method = request.method.lower() if request.method in _METHODS else "other"
            start = time.perf_counter()
            with self._metrics.http_in_flight.labels(label).track_inprogress():
                reply, size = await self._reply(request, path)
            self._metrics.http_seconds.labels(label, method).observe(time.perf_counter() - start)
            self._metrics.http_requests.labels(label, str(int(reply.status)), method).inc()
            self._metrics.http_request_bytes.labels(label).observe(size)
            self._metrics.http_response_bytes.labels(label).observe(len(reply.body))
            response = web.Response(status=reply.status, body=reply.body, headers=reply.headers | {"Server": SERVER})
            if reply.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                response.force_close()  # the rest of the body is not worth reading
            return response

    async def _reply(self, request: BaseRequest, path: str) -> tuple[Reply, int]:
        route = self._routes.get((request.method, path))
        if route is None:
            return error(HTTPStatus.METHOD_NOT_ALLOWED), 0
        early = route.admit() if route.admit is not None else None
        if early is not None:
            return early, 0
        body = b""
        try:
            if request.method == "POST":
                body = await self._body(request)
            return await route.answer(Request(dict(request.rel_url.query), body)), len(body)
        except _BodyRefused as refused:
            return refused.reply, 0
        except Exception:  # a bug: the client learns nothing of it, the log everything
            _log.exception("request failed", path=path)
            return error(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error"), len(body)
        finally:
            self._buffered -= len(body)

    async def _body(self, request: BaseRequest) -> bytes:
        """The whole body, counted against the budget; the caller gives the bytes back."""
        limit = self._limits.max_body
        if (request.content_length or 0) > limit:
            raise _BodyRefused(_too_large(limit))
        if request.headers.get("Expect", "").lower() == "100-continue":
            transport = request.transport
            if transport is not None:
                transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = bytearray()
        kept = False
        try:
            async with asyncio.timeout(self._limits.body_timeout):
                async for chunk in request.content.iter_any():
                    if len(body) + len(chunk) > limit:
                        raise _BodyRefused(_too_large(limit))
                    if self._buffered + len(chunk) > self._limits.body_budget:
                        raise _BodyRefused(error(HTTPStatus.SERVICE_UNAVAILABLE, "too many uploads at once: try again"))
                    self._buffered += len(chunk)
                    body += chunk
            kept = True
        except (ConnectionError, web.RequestPayloadError) as e:
            raise _BodyRefused(error(HTTPStatus.BAD_REQUEST, "request body is cut short or badly framed")) from e
        except TimeoutError:
            text = f"request body did not arrive within {self._limits.body_timeout:g} s"
            raise _BodyRefused(error(HTTPStatus.REQUEST_TIMEOUT, text)) from None
        finally:
            if not kept:
                self._buffered -= len(body)
        return bytes(body)


class _BodyRefused(Exception):
    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        super().__init__(f"request body refused with {reply.status}")


def _too_large(limit: int) -> Reply:
    return fail(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"request body larger than {limit} bytes")


def _clean(path: str) -> str:
    """The path without empty, `.` and `..` elements, as Go's server redirects to it; a trailing slash stays."""
    if not path.startswith("/"):
        return path  # "*" and authorities: no route has such a name
    clean = posixpath.normpath(path).replace("//", "/", 1)
    return clean + "/" if path.endswith("/") and clean != "/" else clean


def _location(clean: str, request: BaseRequest) -> str:
    query = request.rel_url.raw_query_string
    quoted = request.rel_url.with_path(clean).raw_path
    return f"{quoted}?{query}" if query else quoted
