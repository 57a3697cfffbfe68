# SPDX-License-Identifier: Apache-2.0
"""What each path of the client API answers, v2 and the v1 forms beside it, in MarbleRun's words.

The v1 forms differ in names (`StatusCode` for `code`) and in what is whose mistake: a refused manifest is a 500 error
in v2 and a 400 error in v1. Beyond MarbleRun, v2 status and quote say `"simulation": true` when attestation is
simulated.
"""

from __future__ import annotations

from http import HTTPStatus

from sds.attestation.report_data import MAX_NONCE
from sds.logs import get_logger
from xds_server.client_api import Request, Route, Routes
from xds_server.coordinator import MAX_MANIFEST, Coordinator
from xds_server.errors import CoordinatorError, NotSet, QuoteUnavailable
from xds_server.http_json import BadRequest, Reply, b64, bytes_member, decode_nonce, decode_object, error, fail, success

_MAX_NONCE_TEXT = 4 * MAX_NONCE

_log = get_logger(__name__)


def routes(coordinator: Coordinator) -> Routes:
    """All routes of this version; other endpoints of the protocol are unknown paths until they come."""
    api = _Api(coordinator)
    return {
        ("GET", "/api/v2/status"): Route(api.status),
        ("GET", "/api/v2/quote"): Route(api.quote),
        ("GET", "/api/v2/manifest"): Route(api.manifest),
        ("POST", "/api/v2/manifest"): Route(api.set_manifest, lambda: api.admit(HTTPStatus.INTERNAL_SERVER_ERROR)),
        ("GET", "/status"): Route(api.status_v1),
        ("GET", "/quote"): Route(api.quote_v1),
        ("GET", "/manifest"): Route(api.manifest_v1),
        ("POST", "/manifest"): Route(api.set_manifest_v1, lambda: api.admit(HTTPStatus.BAD_REQUEST)),
    }


class _Api:
    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    # --- v2

    async def status(self, _: Request) -> Reply:
        status = self._coordinator.status()
        return success({"code": int(status.code), "message": status.message, **_mark(status.simulation)})

    async def quote(self, request: Request) -> Reply:
        text = request.query.get("nonce", "")
        if len(text) > _MAX_NONCE_TEXT:
            return fail(HTTPStatus.BAD_REQUEST, f"invalid query: nonce of {len(text)} characters")
        try:
            nonce = decode_nonce(text)
        except BadRequest as e:
            return fail(HTTPStatus.BAD_REQUEST, str(e))
        if len(nonce) > MAX_NONCE:
            return fail(HTTPStatus.BAD_REQUEST, f"invalid query: nonce of {len(nonce)} bytes, at most {MAX_NONCE}")
        try:
            quote = await self._coordinator.quote(nonce)
        except QuoteUnavailable as e:
            return error(HTTPStatus.INTERNAL_SERVER_ERROR, str(e))
        cert = quote.chain_pem.decode("ascii")
        return success({"cert": cert, "quote": b64(quote.quote), **_mark(quote.simulation)})

    async def manifest(self, _: Request) -> Reply:
        try:
            manifest = self._coordinator.manifest()
        except NotSet as e:
            return error(HTTPStatus.INTERNAL_SERVER_ERROR, str(e))
        return success(
            {
                "manifestSignatureRootECDSA": b64(manifest.signature),
                "manifestFingerprint": manifest.fingerprint,
                "manifest": b64(manifest.raw),
            }
        )

    async def set_manifest(self, request: Request) -> Reply:
        try:
            raw = bytes_member(decode_object(request.body), "manifest")
        except BadRequest as e:
            return fail(HTTPStatus.BAD_REQUEST, str(e))
        if len(raw) > MAX_MANIFEST:
            return fail(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"manifest larger than {MAX_MANIFEST} bytes")
        refused = self._set(raw, HTTPStatus.INTERNAL_SERVER_ERROR)
        return refused or success({"RecoverySecrets": {}})

    # --- v1

    async def status_v1(self, _: Request) -> Reply:
        _deprecated("status")
        status = self._coordinator.status()
        return success({"StatusCode": int(status.code), "StatusMessage": status.message})

    async def quote_v1(self, _: Request) -> Reply:
        _deprecated("quote")
        try:
            quote = await self._coordinator.quote(b"")
        except QuoteUnavailable as e:
            return error(HTTPStatus.INTERNAL_SERVER_ERROR, str(e))
        return success({"Cert": quote.chain_pem.decode("ascii"), "Quote": b64(quote.quote)})

    async def manifest_v1(self, _: Request) -> Reply:
        _deprecated("manifest")
        try:
            manifest = self._coordinator.manifest()
        except NotSet:
            return success({"ManifestSignatureRootECDSA": None, "ManifestSignature": "", "Manifest": None})
        return success(
            {
                "ManifestSignatureRootECDSA": b64(manifest.signature),
                "ManifestSignature": manifest.fingerprint,
                "Manifest": b64(manifest.raw),
            }
        )

    async def set_manifest_v1(self, request: Request) -> Reply:
        _deprecated("manifest")
        if len(request.body) > MAX_MANIFEST:
            return error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"manifest larger than {MAX_MANIFEST} bytes")
        return self._set(request.body, HTTPStatus.BAD_REQUEST) or success(None)

    def admit(self, status: HTTPStatus) -> Reply | None:
        """Once a manifest is set nobody can make us read another."""
        try:
            self._coordinator.check_accepts_manifest()
        except CoordinatorError as e:
            return error(status, str(e))
        return None

    def _set(self, raw: bytes, status: HTTPStatus) -> Reply | None:
        try:
            self._coordinator.set_manifest(raw)
        except CoordinatorError as e:
            return error(status, str(e))
        return None


def _mark(simulation: bool) -> dict[str, bool]:
    return {"simulation": True} if simulation else {}


def _deprecated(name: str) -> None:
    _log.info("Usage of deprecated API endpoint. Consider using /api/v2/ instead", path=f"/{name}")
