# SPDX-License-Identifier: Apache-2.0
"""A bound on the connections of an HTTP server that anybody may connect to.

Connecting and saying nothing costs a stranger nothing; a server that then took no more would be silenced by it, one
that took all would run out of descriptors. So the oldest connection makes room that has no request under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Set
from typing import cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler


class HttpGate(asyncio.Protocol):
    """A new connection, handed to `http`. `asked`: those whose request is there, kept by the handlers."""

    def __init__(self, http: web.Server, asked: Set[RequestHandler], limit: int) -> None:
        self._http = http
        self._asked = asked
        self._limit = limit

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)
        present = self._http.connections
        if len(present) >= self._limit:
            waiting = (other.transport for other in present if other not in self._asked)
            oldest = next((other for other in waiting if _is_open(other)), None)
            (oldest or transport).abort()
            if oldest is None:
                return
        handler = self._http()
        transport.set_protocol(handler)
        handler.connection_made(transport)


def _is_open(transport: asyncio.Transport | None) -> bool:
    return transport is not None and not transport.is_closing()
