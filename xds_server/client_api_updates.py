# SPDX-License-Identifier: Apache-2.0
"""Updates of the manifest: submit, look at the pending one, acknowledge, cancel. For users, but for looking."""

from __future__ import annotations

from http import HTTPStatus

from xds_server.answers import UpdateAnswer
from xds_server.client_api_manifest import recovery_secrets
from xds_server.client_api_replies import MANIFEST_BODY, admitted, admitted_v1, bad_request, refused, refused_v1
from xds_server.errors import CoordinatorError
from xds_server.http_dispatch import Request, Route, Routes
from xds_server.http_json import BadRequest, Reply, b64, bytes_member, decode_object, success
from xds_server.operations import Operations


def routes(operations: Operations) -> Routes:
    api = _Updates(operations)
    v2, v1 = admitted(api.check, refused), admitted(api.check, refused_v1)
    return {
        ("POST", "/api/v2/update"): Route(api.apply, v2, MANIFEST_BODY),
        ("POST", "/update"): Route(api.apply_v1, admitted_v1(api.check, "/update"), MANIFEST_BODY),
        ("GET", "/api/v2/update-manifest"): Route(api.pending),
        ("GET", "/update-manifest"): Route(api.pending),
        ("POST", "/api/v2/update-manifest"): Route(api.acknowledge, v2, MANIFEST_BODY),
        ("POST", "/update-manifest"): Route(api.acknowledge_v1, v1, MANIFEST_BODY),
        ("POST", "/api/v2/update-cancel"): Route(api.cancel, v2),
        ("POST", "/update-cancel"): Route(api.cancel_v1, v1),
    }


class _Updates:
    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def check(self, request: Request) -> None:
        self._operations.check_user(request.certificates)

    async def apply(self, request: Request) -> Reply:
        try:
            raw = bytes_member(decode_object(request.body), "manifest")
            update = await self._operations.update_apply(raw, request.certificates)
        except BadRequest as e:
            return bad_request(e)
        except CoordinatorError as e:
            return refused(e)
        missing = {"missingAcknowledgments": update.missing_acknowledgments, "missingUsers": _missing(update)}
        return success(missing | _recovery(update))

    async def apply_v1(self, request: Request) -> Reply:
        try:
            await self._operations.update_apply(request.body, request.certificates)
        except CoordinatorError as e:
            return refused_v1(e)
        return success(None)

    async def pending(self, _: Request) -> Reply:
        try:
            pending = self._operations.update_get()
        except CoordinatorError as e:
            return refused(e)
        return success(
            {
                "manifest": b64(pending.manifest),
                "message": pending.message,
                "missingUsers": list(pending.missing_users) or None,
            }
        )

    async def acknowledge(self, request: Request) -> Reply:
        try:
            raw = bytes_member(decode_object(request.body), "manifest")
            answer = await self._operations.update_acknowledge(raw, request.certificates)
        except BadRequest as e:
            return bad_request(e)
        except CoordinatorError as e:
            return refused(e)
        update = answer.update
        missing = {"missingUsers": _missing(update), "missingAcknowledgments": update.missing_acknowledgments}
        return success({"message": answer.message} | missing | _recovery(update))

    async def acknowledge_v1(self, request: Request) -> Reply:
        try:
            answer = await self._operations.update_acknowledge(request.body, request.certificates)
        except CoordinatorError as e:
            return refused_v1(e, HTTPStatus.INTERNAL_SERVER_ERROR)
        return success(answer.message)

    async def cancel(self, request: Request) -> Reply:
        try:
            return success({"message": await self._operations.update_cancel(request.certificates)})
        except CoordinatorError as e:
            return refused(e)

    async def cancel_v1(self, request: Request) -> Reply:
        try:
            return success(await self._operations.update_cancel(request.certificates))
        except CoordinatorError as e:
            return refused_v1(e, HTTPStatus.INTERNAL_SERVER_ERROR)


def _missing(update: UpdateAnswer) -> list[str] | None:
    return None if update.missing_users is None else list(update.missing_users)


def _recovery(update: UpdateAnswer) -> dict[str, object]:
    """Only there if this call changed the recovery keys."""
    secrets = update.recovery_secrets
    return {} if secrets is None else {"recoverySecrets": recovery_secrets(secrets)}
