# SPDX-License-Identifier: Apache-2.0
"""Recovery: the ephemeral public key, and one owner's secret after the other. Open to all: the secret is the proof."""

from __future__ import annotations

from http import HTTPStatus

from xds_server.client_api_replies import bad_request, deprecated, refused
from xds_server.errors import CoordinatorError
from xds_server.http_dispatch import Request, Route, Routes
from xds_server.http_json import BadRequest, Reply, b64, bytes_member, decode_object, error, success
from xds_server.operations import Operations
from xds_server.recovery_keys import RecoveryError, SecretNotDecrypted

MAX_BODY = 20480  # MarbleRun reads no more; what is longer is JSON that does not end
_GONE = (
    "Recovering the Coordinator using the /recover API endpoint has been disabled. "
    "Use the /api/v2/recover endpoint instead."
)


def routes(operations: Operations) -> Routes:
    api = _Recovery(operations)
    return {
        ("GET", "/api/v2/recover/public-key"): Route(api.public_key),
        ("POST", "/api/v2/recover"): Route(api.recover, max_body=MAX_BODY, too_large=HTTPStatus.BAD_REQUEST),
        ("POST", "/recover"): Route(_gone, _refuse),
    }


class _Recovery:
    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def public_key(self, _: Request) -> Reply:
        try:
            key = await self._operations.recovery_public_key()
        except CoordinatorError as e:
            return refused(e)
        return success({"algorithm": "RSA", "ephemeralPublicKey": b64(key)})

    async def recover(self, request: Request) -> Reply:
        try:
            members = decode_object(request.body)
            secret = bytes_member(members, "recoverySecret")
            signature = bytes_member(members, "recoverySecretSignature")
            answer = await self._operations.recover(secret, signature)
        except BadRequest as e:
            return bad_request(e)
        except SecretNotDecrypted as e:
            return refused(e)
        except RecoveryError as e:
            return error(HTTPStatus.INTERNAL_SERVER_ERROR, f"setting recovery key: {e}")
        except CoordinatorError as e:
            return refused(e)
        return success({"remaining": answer.remaining, "message": answer.message})


def _refuse(_: Request) -> Reply:
    deprecated("/recover")
    return error(HTTPStatus.GONE, _GONE)


async def _gone(request: Request) -> Reply:
    return _refuse(request)
