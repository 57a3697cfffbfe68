# SPDX-License-Identifier: Apache-2.0
"""GET status, quote and update log: open to all."""

from __future__ import annotations

from http import HTTPStatus

from sds.attestation.report_data import MAX_NONCE
from xds_server.client_api_replies import bad_request, deprecated, refused, refused_v1
from xds_server.errors import CoordinatorError
from xds_server.http_dispatch import Request, Route, Routes
from xds_server.http_json import BadRequest, Reply, b64, decode_nonce, success
from xds_server.operations import Operations

_MAX_NONCE_TEXT = 4 * MAX_NONCE


def routes(operations: Operations) -> Routes:
    api = _State(operations)
    return {
        ("GET", "/api/v2/status"): Route(api.status),
        ("GET", "/status"): Route(api.status_v1),
        ("GET", "/api/v2/quote"): Route(api.quote),
        ("GET", "/quote"): Route(api.quote_v1),
        ("GET", "/api/v2/update"): Route(api.update_log),
        ("GET", "/update"): Route(api.update_log_v1),
    }


class _State:
    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def status(self, _: Request) -> Reply:
        status = self._operations.status()
        mark = _mark(status.simulation, status.insecure)
        return success({"code": int(status.code), "message": status.message, **mark})

    async def status_v1(self, _: Request) -> Reply:
        deprecated("/status")
        status = self._operations.status()
        return success({"StatusCode": int(status.code), "StatusMessage": status.message})

    async def quote(self, request: Request) -> Reply:
        try:
            nonce = _nonce(next(iter(request.values("nonce")), ""))
            quote = await self._operations.quote(nonce)
        except BadRequest as e:
            return bad_request(e)
        except CoordinatorError as e:
            return refused(e)
        cert = quote.chain_pem.decode("ascii")
        return success({"cert": cert, "quote": b64(quote.quote), **_mark(quote.simulation, quote.insecure)})

    async def quote_v1(self, _: Request) -> Reply:
        deprecated("/quote")
        try:
            quote = await self._operations.quote(b"")
        except CoordinatorError as e:
            return refused_v1(e, HTTPStatus.INTERNAL_SERVER_ERROR)
        return success({"Cert": quote.chain_pem.decode("ascii"), "Quote": b64(quote.quote)})

    async def update_log(self, _: Request) -> Reply:
        try:
            return success({"updateLog": list(self._operations.update_log())})
        except CoordinatorError as e:
            return refused(e)

    async def update_log_v1(self, _: Request) -> Reply:
        deprecated("/update")
        try:
            return success("".join(f"{entry}\n" for entry in self._operations.update_log()))
        except CoordinatorError as e:
            return refused_v1(e, HTTPStatus.INTERNAL_SERVER_ERROR)


def _nonce(text: str) -> bytes:
    if len(text) > _MAX_NONCE_TEXT:
        raise BadRequest(f"invalid query: nonce of {len(text)} characters")
    nonce = decode_nonce(text)
    if len(nonce) > MAX_NONCE:
        raise BadRequest(f"invalid query: nonce of {len(nonce)} bytes, at most {MAX_NONCE}")
    return nonce


def _mark(simulation: bool, insecure: bool) -> dict[str, bool]:
    return ({"simulation": True} if simulation else {}) | ({"insecure": True} if insecure else {})
