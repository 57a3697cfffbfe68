# SPDX-License-Identifier: Apache-2.0
"""GET and POST of the manifest. Whoever comes first sets it; checking who that was is everybody's own business."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus

from xds_server.client_api_replies import (
    MANIFEST_BODY,
    admitted,
    admitted_v1,
    bad_request,
    deprecated,
    refused,
    refused_v1,
)
from xds_server.errors import CoordinatorError, NotSet
from xds_server.http_dispatch import Request, Route, Routes
from xds_server.http_json import BadRequest, Reply, b64, bytes_member, decode_object, success
from xds_server.operations import Operations


def routes(operations: Operations) -> Routes:
    api = _Manifest(operations)
    return {
        ("GET", "/api/v2/manifest"): Route(api.get),
        ("GET", "/manifest"): Route(api.get_v1),
        ("POST", "/api/v2/manifest"): Route(api.set, admitted(api.check, refused), MANIFEST_BODY),
        ("POST", "/manifest"): Route(api.set_v1, admitted_v1(api.check, "/manifest"), MANIFEST_BODY),
    }


def recovery_secrets(secrets: Mapping[str, bytes]) -> dict[str, str | None]:
    """Recovery key name → ciphertext, in Go's order of a map."""
    return {name: b64(secrets[name]) for name in sorted(secrets)}


class _Manifest:
    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        # Anybody may send manifests until one is set, and a hostile one takes 2 s of CPU to check: one at a time, so
        # that strangers keep one thread busy at most. The others wait, their bodies counted in the port's budget.
        self._turn = asyncio.Semaphore(1)

    def check(self, _: Request) -> None:
        """Once a manifest is set nobody can make us read another."""
        self._operations.check_accepts_manifest()

    async def get(self, _: Request) -> Reply:
        try:
            manifest = self._operations.manifest()
        except CoordinatorError as e:
            return refused(e)
        return success(
            {
                "manifestSignatureRootECDSA": b64(manifest.signature),
                "manifestFingerprint": manifest.fingerprint,
                "manifest": b64(manifest.raw),
            }
        )

    async def get_v1(self, _: Request) -> Reply:
        deprecated("/manifest")
        try:
            manifest = self._operations.manifest()
        except NotSet:
            return success({"ManifestSignatureRootECDSA": None, "ManifestSignature": "", "Manifest": None})
        except CoordinatorError as e:
            return refused_v1(e, HTTPStatus.INTERNAL_SERVER_ERROR)
        return success(
            {
                "ManifestSignatureRootECDSA": b64(manifest.signature),
                "ManifestSignature": manifest.fingerprint,
                "Manifest": b64(manifest.raw),
            }
        )

    async def set(self, request: Request) -> Reply:
        try:
            raw = bytes_member(decode_object(request.body), "manifest")
            async with self._turn:
                secrets = await self._operations.set_manifest(raw)
        except BadRequest as e:
            return bad_request(e)
        except CoordinatorError as e:
            return refused(e)
        return success({"RecoverySecrets": recovery_secrets(secrets)})

    async def set_v1(self, request: Request) -> Reply:
        try:
            async with self._turn:
                secrets = await self._operations.set_manifest(request.body)
        except CoordinatorError as e:
            return refused_v1(e)
        return success({"RecoverySecrets": recovery_secrets(secrets)} if secrets else None)
