# SPDX-License-Identifier: Apache-2.0
"""The Coordinator's own answers about an xDS port, behind the fake Coordinator's client API."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from aiohttp import web

from tests.kit.fake_envelope import Refusal, Route
from tests.kit.fake_operations import FakeOperations
from tests.kit.fake_users import FakeUsers
from xds_server import client_api_xds
from xds_server.client_api_xds import XdsView
from xds_server.errors import Unauthorized
from xds_server.http_dispatch import Request
from xds_server.http_dispatch import Route as ApiRoute
from xds_server.tls_connection import TlsTransport


@dataclass
class FakeXds:
    """`view` is the port; without one there are no such calls, as in MarbleRun."""

    view: XdsView | None = None

    def routes(self, users: FakeUsers) -> dict[Route, Callable[[web.Request], Awaitable[object]]]:
        if self.view is None:
            return {}
        known = client_api_xds.routes(_Operations(users=set(users.certificates.values())), self.view)
        return {key: _answering(route) for key, route in known.items()}


class _Operations(FakeOperations):
    def check_user(self, certificates: Sequence[bytes]) -> None:
        if not set(certificates[:1]) & (self.users or set()):
            raise Unauthorized("unauthorized user: client certificate did not match any MarbleRun users")


def _answering(route: ApiRoute) -> Callable[[web.Request], Awaitable[object]]:
    async def handle(request: web.Request) -> object:
        assert isinstance(request.transport, TlsTransport)
        asked = Request(tuple(request.query.items()), b"", tuple(request.transport.peer_certificates))
        reply = (route.admit(asked) if route.admit else None) or await route.answer(asked)
        envelope = json.loads(reply.body)
        if reply.status != 200:
            raise Refusal(reply.status, envelope["message"], fail=True)
        return envelope["data"]

    return handle
