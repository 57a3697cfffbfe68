# SPDX-License-Identifier: Apache-2.0
"""GET xds/status and xds/dump: who is connected to the xDS port, who has what, who rejected what. For any user.

Beyond MarbleRun's API. Query: `client` (a Marble type, `type/uuid`, a gateway; may repeat) limits it to those clients.
A Coordinator may have 5000 streams, so an answer is made piece by piece while others are served, one at a time, and has
a bound; the worst come first, and what was cut is said. `withheld` names the secrets that are not fit to be published.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator
from http import HTTPStatus
from typing import Protocol

from sds.discovery import View
from sds.publish_gate import Owner, Withheld
from xds_server.client_api_replies import refused
from xds_server.errors import CoordinatorError, Unauthorized
from xds_server.http_dispatch import Request, Route, Routes
from xds_server.http_json import Reply, encode, fail, success
from xds_server.mesh import Client
from xds_server.operations import Operations
from xds_server.xds_record import ClientStatus
from xds_server.xds_report import Json, dump_row, severity, status_row, withheld_rows

MAX_STREAMS = 1000
MAX_DUMP = 4 * 1024 * 1024
# 20 streams are some milliseconds.
_AT_ONCE = 20
WAY_OUT = (
    "connect with the certificate and the key of a user whom the manifest names under Users; "
    "a Coordinator without a manifest has no users"
)


class OpenStream(Protocol):
    """One discovery stream: whose, where it stands, and what its client may see."""

    @property
    def client(self) -> Client: ...
    @property
    def status(self) -> ClientStatus: ...
    @property
    def view(self) -> View: ...


class XdsView(Protocol):
    """The xDS server, seen from here."""

    def open_streams(self) -> Collection[OpenStream]:
        """All of them now."""

    def withheld(self) -> Iterable[tuple[Owner, Withheld]]:
        """Secrets that are not fit to be published, and for whom."""


def routes(operations: Operations, xds: XdsView) -> Routes:
    api = _Xds(operations, xds)
    return {
        ("GET", "/api/v2/xds/status"): Route(api.status, api.admit),
        ("GET", "/api/v2/xds/dump"): Route(api.dump, api.admit),
    }


class _Xds:
    def __init__(self, operations: Operations, xds: XdsView) -> None:
        self._operations = operations
        self._xds = xds
        self._one_at_a_time = asyncio.Lock()

    def admit(self, request: Request) -> Reply | None:
        try:
            self._operations.check_user(request.certificates)
        except Unauthorized as e:
            return fail(HTTPStatus.UNAUTHORIZED, f"{e}: {WAY_OUT}")
        except CoordinatorError as e:
            return refused(e)
        return None

    async def status(self, request: Request) -> Reply:
        async with self._one_at_a_time:
            rows = []
            for number, stream in enumerate(self._asked(request)):
                if number % _AT_ONCE == 0:
                    await asyncio.sleep(0)
                rows.append(status_row(stream.status))
        rows.sort(key=lambda row: (-severity(row[0]), row[1]["client"], row[1]["since"]))
        withheld = withheld_rows(self._xds.withheld())[:MAX_STREAMS]
        return success({"total": len(rows), "streams": [row for _, row in rows[:MAX_STREAMS]], "withheld": withheld})

    async def dump(self, request: Request) -> Reply:
        streams = sorted(self._asked(request), key=lambda stream: str(stream.client))
        shown: list[Json] = []
        room = MAX_DUMP
        async with self._one_at_a_time:
            for stream in streams[:MAX_STREAMS]:
                await asyncio.sleep(0)
                row = dump_row(stream.status, stream.view)
                room -= len(encode(row))
                if room < 0:
                    break
                shown.append(row)
        return success({"total": len(streams), "streams": shown})

    def _asked(self, request: Request) -> Iterator[OpenStream]:
        wanted = frozenset(request.values("client"))
        for stream in self._xds.open_streams():
            client = stream.client
            if not wanted or str(client) in wanted or client.name in wanted:
                yield stream
