# SPDX-License-Identifier: Apache-2.0
"""From a request to a reply, whatever HTTP it came by: paths, routes, bodies within bounds, metrics.

    target ─► clean path? ─► route? ─► admit (before the body) ─► body ─► answer

Paths match exactly; whatever is no route is a 405 with one fixed body, because clients take a 405 (not a 404) as the
sign of an older server. A path that needs cleaning is redirected, as by Go's server.
"""

from __future__ import annotations

import posixpath
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import quote, unquote_plus, unquote_to_bytes

from sds.logs import get_logger
from xds_server.http_json import Reply, error, fail, redirect
from xds_server.metrics import CoordinatorMetrics

SERVER = "marblemesh"
# Requests without a use for a body may have one nevertheless.
SMALL_BODY = 64 * 1024
MAX_TARGET = 64 * 1024  # a thousand secrets by name, and what clients send besides
_METHODS = frozenset({"GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"})
_MAX_PAIRS = 10_000

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """What a route sees. `certificates`: DER, leaf first, as the client sent them; only the leaf's key is proven."""

    query: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    certificates: tuple[bytes, ...] = ()

    def values(self, name: str) -> tuple[str, ...]:
        """All values of a query parameter, in their order."""
        return tuple(value for key, value in self.query if key == name)


@dataclass(frozen=True, slots=True)
class Route:
    """`answer` makes the reply; `admit` may give it before the body is read (it sees an empty one).

    A body over `max_body` is what `too_large` says: 413, or what the endpoint has always said.
    """

    answer: Callable[[Request], Awaitable[Reply]]
    admit: Callable[[Request], Reply | None] | None = None
    max_body: int = SMALL_BODY
    too_large: HTTPStatus = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


Routes = dict[tuple[str, str], Route]
ReadBody = Callable[[int], Awaitable[bytes]]


class BodyRefused(Exception):
    """The body did not come, or not within its bounds; `status` is the answer's."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        self.status = status
        super().__init__(text)


class BodyTooLarge(BodyRefused):
    def __init__(self, limit: int) -> None:
        super().__init__(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"request body larger than {limit} bytes")


class NoRoom(BodyRefused):
    def __init__(self) -> None:
        super().__init__(HTTPStatus.SERVICE_UNAVAILABLE, "too many uploads at once: try again")


class BodyTooLate(BodyRefused):
    def __init__(self, seconds: float) -> None:
        super().__init__(HTTPStatus.REQUEST_TIMEOUT, f"request body did not arrive within {seconds:g} s")


class Dispatcher:
    """The routes of one port."""

    def __init__(self, routes: Routes, metrics: CoordinatorMetrics) -> None:
        self._routes = routes
        self._paths = frozenset(path for _, path in routes)
        self._metrics = metrics

    async def __call__(self, method: str, target: str, certificates: tuple[bytes, ...], read: ReadBody) -> Reply:
        """The reply to a request. `target`: path and query as sent; `read(limit)` gives the body or BodyRefused."""
        raw_path, _, raw_query = target.partition("?")
        path = _decoded(raw_path)
        if path is None or len(target) > MAX_TARGET:
            return error(HTTPStatus.BAD_REQUEST, "malformed path")
        clean = _clean(path)
        if clean != path:
            return redirect(quote(clean, safe="/:@!$&'()*+,;=~-._") + (f"?{raw_query}" if raw_query else ""))
        label = path if path in self._paths else "unknown"
        verb = method.lower() if method in _METHODS else "other"
        counted = _Counted(read)
        start = time.perf_counter()
        with self._metrics.http_in_flight.labels(label).track_inprogress():
            reply = await self._answer(method, path, Request(_query(raw_query), b"", certificates), counted)
        self._metrics.http_seconds.labels(label, verb).observe(time.perf_counter() - start)
        self._metrics.http_requests.labels(label, str(int(reply.status)), verb).inc()
        self._metrics.http_request_bytes.labels(label).observe(counted.bytes)
        self._metrics.http_response_bytes.labels(label).observe(len(reply.body))
        return reply

    async def _answer(self, method: str, path: str, request: Request, read: ReadBody) -> Reply:
        route = self._routes.get((method, path))
        if route is None:
            return error(HTTPStatus.METHOD_NOT_ALLOWED)
        try:
            early = route.admit(request) if route.admit is not None else None
            if early is not None:
                return early
            body = await read(route.max_body) if method == "POST" else b""
            return await route.answer(Request(request.query, body, request.certificates))
        except BodyRefused as refused:
            status = route.too_large if isinstance(refused, BodyTooLarge) else refused.status
            kind = fail if status < HTTPStatus.INTERNAL_SERVER_ERROR and path.startswith("/api/v2/") else error
            return kind(status, str(refused))
        except Exception:  # a bug: the client learns nothing of it, the log everything
            _log.exception("request failed", path=path)
            return error(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error")


class _Counted:
    def __init__(self, read: ReadBody) -> None:
        self._read = read
        self.bytes = 0

    async def __call__(self, limit: int) -> bytes:
        body = await self._read(limit)
        self.bytes = len(body)
        return body


def _decoded(raw: str) -> str | None:
    """A path with its percent signs resolved, None if they are malformed."""
    if not _escapes_are_whole(raw):
        return None
    return unquote_to_bytes(raw).decode("utf-8", "replace")


def _escapes_are_whole(text: str) -> bool:
    return all(_is_hex(part[:2]) for part in text.split("%")[1:])


def _is_hex(text: str) -> bool:
    return len(text) == 2 and all(char in "0123456789abcdefABCDEF" for char in text)


def _query(raw: str) -> tuple[tuple[str, str], ...]:
    """Names and values as Go reads them: pairs with a semicolon or a malformed escape are left out."""
    pairs = []
    for part in raw.split("&", _MAX_PAIRS)[:_MAX_PAIRS]:
        if not part or ";" in part or not _escapes_are_whole(part):
            continue
        name, _, value = part.partition("=")
        pairs.append((unquote_plus(name), unquote_plus(value)))
    return tuple(pairs)


def _clean(path: str) -> str:
    """The path without empty, `.` and `..` elements, as Go's server redirects to it; a trailing slash stays."""
    if not path.startswith("/"):
        return path  # "*" and authorities: no route has such a name
    clean = posixpath.normpath(path).replace("//", "/", 1)
    return clean + "/" if path.endswith("/") and clean != "/" else clean
