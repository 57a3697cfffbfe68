# SPDX-License-Identifier: Apache-2.0
"""What Marbles and those around them may ask, where the manifest enables it: sign-quote and monotonic counters."""

from __future__ import annotations

from http import HTTPStatus

from xds_server.client_api_replies import admitted, bad_request, refused
from xds_server.errors import CoordinatorError, QuoteNotVerified
from xds_server.http_dispatch import Request, Route, Routes
from xds_server.http_json import (
    BadRequest,
    Reply,
    b64,
    bytes_member,
    decode_object,
    fail,
    string_member,
    success,
    uint_member,
)
from xds_server.operations import Operations

_BAD_JSON = "failed to parse JSON data"
_NOT_VERIFIED = "quote verification failed"


def routes(operations: Operations) -> Routes:
    api = _Marbles(operations)
    return {
        ("POST", "/api/v2/sign-quote"): Route(api.sign_quote, admitted(api.check_sign_quote, refused)),
        ("POST", "/api/v2/monotonic-counter"): Route(api.set_counter, admitted(api.check_counter, refused)),
    }


class _Marbles:
    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def check_sign_quote(self, _: Request) -> None:
        self._operations.check_sign_quote()

    def check_counter(self, request: Request) -> None:
        self._operations.check_counter(request.certificates)

    async def sign_quote(self, request: Request) -> Reply:
        try:
            quote = bytes_member(decode_object(request.body), "sgxQuote")
            signed = await self._operations.sign_quote(quote)
        except BadRequest as e:
            return fail(HTTPStatus.BAD_REQUEST, str(e), {"sgxQuote": _BAD_JSON})
        except QuoteNotVerified as e:
            return fail(HTTPStatus.BAD_REQUEST, _NOT_VERIFIED, {"sgxQuote": f"{_NOT_VERIFIED}: {e}"})
        except CoordinatorError as e:
            return refused(e)
        return success({"tcbStatus": signed.tcb_status, "verificationSignature": b64(signed.signature)})

    async def set_counter(self, request: Request) -> Reply:
        try:
            members = decode_object(request.body)
            name, value = string_member(members, "name"), uint_member(members, "value")
            before = await self._operations.set_counter(request.certificates, name, value)
        except BadRequest as e:
            return bad_request(e)
        except CoordinatorError as e:
            return refused(e)
        return success({"value": before})
