# SPDX-License-Identifier: Apache-2.0
"""Reading a stranger's HTTP answer without trusting its length."""

from __future__ import annotations

import aiohttp

from sds.attestation.errors import Malformed


async def read_body(response: aiohttp.ClientResponse, limit: int, what: str) -> bytes:
    """The body, decompressed.

    :raises Malformed: if it is longer than ``limit`` bytes; reading stops there.
    """
    body = bytearray()
    async for piece in response.content.iter_chunked(64 * 1024):
        body += piece
        if len(body) > limit:
            raise Malformed(f"{what}: answer is larger than {limit} bytes")
    return bytes(body)
