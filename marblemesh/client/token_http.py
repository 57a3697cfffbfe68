# SPDX-License-Identifier: Apache-2.0
"""One HTTPS exchange whose client key is on a token: GnuTLS below, the standard library's HTTP parser above.

Blocking, for a thread. One request on one connection, so HTTP/1.1 with `Connection: close` is all it takes.
"""

from __future__ import annotations

import io
import socket
import time
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from typing import cast

from marblemesh.client.errors import BadAnswer
from marblemesh.client.gnutls import GnuTlsConnection
from marblemesh.client.token import TokenIdentity


@dataclass(frozen=True, slots=True)
class Exchange:
    """What came back: HTTP status, its reason, the whole body."""

    status: int
    reason: str
    body: bytes = field(repr=False)


def exchange(
    address: str, server_certificate: bytes, identity: TokenIdentity, request: bytes, limit: int, timeout: float
) -> Exchange:
    """Send `request` (head and body) to `address` and read a reply of at most `limit` bytes.

    `server_certificate` is the DER of the only leaf that the server may show; `timeout` in seconds is for everything.
    Raises GnuTlsError, TokenError, OSError, TimeoutError and BadAnswer.
    """
    deadline = time.monotonic() + timeout
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout) as connected,
        GnuTlsConnection(connected, identity.chain, identity, server_certificate, deadline) as tls,
    ):
        tls.send(request)
        return _reply(tls, address, limit)


def _reply(tls: GnuTlsConnection, address: str, limit: int) -> Exchange:
    response = HTTPResponse(cast(socket.socket, _Stream(tls)))
    try:
        response.begin()
        body = response.read(limit + 1)
    except HTTPException as error:
        raise BadAnswer(f"{address}: the answer is no HTTP: {type(error).__name__}") from None
    finally:
        response.close()
    if len(body) > limit:
        raise BadAnswer(f"{address}: answer is larger than {limit} bytes")
    return Exchange(response.status, response.reason, body)


class _Stream(io.RawIOBase):
    """The connection as `http.client` reads one."""

    def __init__(self, tls: GnuTlsConnection) -> None:
        self._tls = tls

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self, 16 * 1024)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._tls.receive(len(buffer))
        buffer[: len(data)] = data
        return len(data)
