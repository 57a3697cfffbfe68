# SPDX-License-Identifier: Apache-2.0
"""GET and POST of secrets, for users of the manifest."""

from __future__ import annotations

from collections.abc import Mapping

from sds.secrets import Secret
from xds_server.client_api_replies import admitted, admitted_v1, bad_request, bad_request_v1, refused, refused_v1
from xds_server.errors import CoordinatorError
from xds_server.http_dispatch import Request, Route, Routes
from xds_server.http_json import BadRequest, Reply, decode_map, decode_object, map_member, success
from xds_server.operations import Operations
from xds_server.secret_upload import to_json

# A Marble cannot be given more than 4 MiB in all: one activation is one gRPC message.
SECRETS_BODY = 8 * 1024 * 1024


def routes(operations: Operations) -> Routes:
    api = _Secrets(operations)
    return {
        ("GET", "/api/v2/secrets"): Route(api.get, admitted(api.check, refused)),
        ("GET", "/secrets"): Route(api.get_v1, admitted_v1(api.check, "/secrets")),
        ("POST", "/api/v2/secrets"): Route(api.set, admitted(api.check, refused), SECRETS_BODY),
        ("POST", "/secrets"): Route(api.set_v1, admitted_v1(api.check, "/secrets"), SECRETS_BODY),
    }


class _Secrets:
    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def check(self, request: Request) -> None:
        self._operations.check_user(request.certificates)

    async def get(self, request: Request) -> Reply:
        try:
            secrets = self._operations.secrets_get(_names(request), request.certificates)
        except BadRequest as e:
            return bad_request(e)
        except CoordinatorError as e:
            return refused(e)
        return success({"secrets": _shown(secrets)})

    async def get_v1(self, request: Request) -> Reply:
        try:
            secrets = self._operations.secrets_get(_names(request), request.certificates)
        except BadRequest as e:
            return bad_request_v1(e)
        except CoordinatorError as e:
            return refused_v1(e)
        return success(_shown(secrets))

    async def set(self, request: Request) -> Reply:
        try:
            payload = map_member(decode_object(request.body), "secrets")
            await self._operations.secrets_set(payload, request.certificates)
        except BadRequest as e:
            return bad_request(e)
        except CoordinatorError as e:
            return refused(e)
        return success(None)

    async def set_v1(self, request: Request) -> Reply:
        try:
            await self._operations.secrets_set(decode_map(request.body), request.certificates)
        except BadRequest as e:
            return bad_request_v1(e)
        except CoordinatorError as e:
            return refused_v1(e)
        return success(None)


def _names(request: Request) -> tuple[str, ...]:
    names = request.values("s")
    if not names:
        raise BadRequest("invalid query: endpoint requires at least one query parameter")
    if not all(names):
        raise BadRequest("malformed query string: empty query parameter")
    return names


def _shown(secrets: Mapping[str, Secret]) -> dict[str, object]:
    return {name: to_json(secrets[name]) for name in sorted(secrets)}
