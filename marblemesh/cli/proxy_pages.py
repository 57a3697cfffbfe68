# SPDX-License-Identifier: Apache-2.0
"""The pages of a worker's admin port, fetched with bounds: whatever answers at that address, this ends."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

# Seconds for one page; the worker answers in milliseconds, and asks its other processes for two seconds at most.
TIMEOUT = 10.0
# 10 000 endpoints are 1.5 MB.
MAX_PAGE = 16 * 1024 * 1024

NUMBERS, READY = "/metrics", "/readyz"
DETAILS = ("/config_dump", "/certs", "/clusters")


class NoWorker(Exception):
    """Nobody answers there, or something else does; the text says what."""


@dataclass(frozen=True, slots=True)
class Pages:
    """`details` by path without its slash; empty where the worker serves numbers only (under SGX)."""

    ready: bool
    why: str
    metrics: str
    details: dict[str, Any] = field(default_factory=dict)


def fetch(host: str, port: int) -> Pages:
    """Raises NoWorker."""
    try:
        status, why = _get(host, port, READY)
        if status not in (200, 503):
            raise NoWorker(f"{READY} answers {status}: no worker's admin port")
        numbers, metrics = _get(host, port, NUMBERS)
        if numbers != 200 or "marblemesh_worker_info" not in metrics:
            raise NoWorker(f"{NUMBERS} has no marblemesh_worker_info: no worker's admin port")
        return Pages(status == 200, "" if status == 200 else why.strip(), metrics, dict(_details(host, port)))
    except http.client.HTTPException as error:
        raise NoWorker(f"what answers is no HTTP ({type(error).__name__})") from error
    except OSError as error:
        raise NoWorker((error.strerror or str(error) or type(error).__name__).lower()) from error


def _details(host: str, port: int) -> Iterable[tuple[str, Any]]:
    for path in DETAILS:
        status, text = _get(host, port, path)
        if status != 404:
            try:
                yield path[1:], json.loads(text)
            except ValueError as error:
                raise NoWorker(f"{path} is no JSON: no worker's admin port") from error


def _get(host: str, port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        body = answer.read(MAX_PAGE + 1)
    finally:
        connection.close()
    if len(body) > MAX_PAGE:
        raise NoWorker(f"{path} has more than {MAX_PAGE} bytes: no worker's admin port")
    return answer.status, body.decode("utf-8", "replace")
