# SPDX-License-Identifier: Apache-2.0
"""aiohttp's low-level server, except that what is no HTTP gets Go's short answer and no traceback in the log."""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest

SERVER = "marblemesh"


class QuietProtocol(RequestHandler):
    """aiohttp would send the stranger's bytes back to him, escaped, and log where its parser was."""

    __slots__ = ()

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return super().handle_error(request, status, exc, message)
        headers = {"Content-Type": "text/plain; charset=utf-8", "Server": SERVER}
        response = web.Response(status=status, body=b"400 Bad Request", headers=headers)
        response.force_close()
        return response


class QuietServer(web.Server):
    """Makes one protocol per connection."""

    def __call__(self) -> RequestHandler:
        return QuietProtocol(self, loop=self._loop, **self._kwargs)
