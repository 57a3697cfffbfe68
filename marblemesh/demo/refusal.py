# SPDX-License-Identifier: Apache-2.0
"""Strangers at the door of a Marble: one who speaks plaintext, and one who speaks TLS and shows no certificate."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from dataclasses import dataclass

from marblemesh.demo.errors import CheckFailedError

REQUEST = b"GET / HTTP/1.1\r\nHost: stranger\r\nConnection: close\r\n\r\n"
# Longer than a worker waits for a handshake; a door that neither answers nor closes is an answer, too: not refused.
TIMEOUT = 15.0
# A refusal may come as a TLS alert: type 21, version, two bytes of length, level, description (RFC 8446, 5.1 and 6).
_ALERT = 0x15


@dataclass(frozen=True, slots=True)
class Probe:
    """What a stranger got. `answer` says it in words; `refused` is whether no byte of an app was among it."""

    port: int
    stranger: str
    refused: bool
    answer: str


async def plaintext_probe(host: str, port: int) -> Probe:
    """Ask over plain HTTP."""
    data, closed = await _ask(host, port, None)
    alert = len(data) == 7 and data[0] == _ALERT
    answer = "a TLS alert" if alert else f"{len(data)} bytes" if data else "nothing"
    return Probe(port, "plaintext", closed and (alert or not data), answer + ("" if closed else " and no end"))


async def no_certificate_probe(host: str, port: int) -> Probe:
    """Ask over TLS without a certificate of one's own. Whose certificate the other shows is not looked at."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    data, closed = await _ask(host, port, context)
    answer = f"{len(data)} bytes" if data else "nothing"
    return Probe(port, "tls without a certificate", closed and not data, answer + ("" if closed else " and no end"))


async def _ask(host: str, port: int, tls: ssl.SSLContext | None) -> tuple[bytes, bool]:
    """Send the request; what came back (at most 4 KiB), and whether the other side ended the connection.

    Raises CheckFailedError when nobody listens: a door that is not there refuses nobody.
    """
    received = bytearray()
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        raise CheckFailedError(f"nobody listens on port {port}: {error}") from error
    try:
        async with asyncio.timeout(TIMEOUT):
            with suppress(OSError):  # a reset, or ssl.SSLError: the refusal itself
                if tls:
                    await writer.start_tls(tls)
                writer.write(REQUEST)
                while len(received) < 4096 and (data := await reader.read(4096)):
                    received += data
    except TimeoutError:
        return bytes(received), False
    finally:
        writer.transport.abort()
    return bytes(received), True
