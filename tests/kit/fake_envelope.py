# SPDX-License-Identifier: Apache-2.0
"""Replies of the fake Coordinator, in the envelope of the client API, byte for byte as MarbleRun writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping

from aiohttp import web

Route = tuple[str, str]
"""Method and path."""


class Refusal(Exception):
    """An `error`, or with `fail` a `fail`."""

    def __init__(self, status: int, message: str, *, fail: bool = False, data: Mapping[str, str] | None = None) -> None:
        self.status, self.message, self.fail, self.data = status, message, fail, data
        super().__init__(message)


def success(data: object) -> web.Response:
    return web.Response(text=json.dumps({"status": "success", "data": data}) + "\n", content_type="application/json")


def error(status: int, message: str) -> web.Response:
    body: dict[str, object] = {"status": "error", "data": None}
    if message:
        body["message"] = message
    headers = {"X-Content-Type-Options": "nosniff"}
    return web.Response(status=status, text=json.dumps(body) + "\n", content_type="text/plain", headers=headers)


def refused(refusal: Refusal) -> web.Response:
    if not refusal.fail:
        return error(refusal.status, refusal.message)
    body = {"status": "fail", "data": refusal.data, "message": refusal.message}
    return web.Response(status=refusal.status, text=json.dumps(body) + "\n", content_type="application/json")
