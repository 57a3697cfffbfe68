# SPDX-License-Identifier: Apache-2.0
"""What counts as refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from marblemesh.demo.errors import CheckFailedError
from marblemesh.demo.refusal import no_certificate_probe, plaintext_probe

HOST = "127.0.0.1"


@asynccontextmanager
async def server(answer: bytes) -> AsyncIterator[int]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(handle, HOST, 0) as listening:
        yield listening.sockets[0].getsockname()[1]


@pytest.mark.parametrize("answer", [b"", bytes.fromhex("15030100020246")])
async def test_silence_and_a_tls_alert_are_refusals(answer: bytes) -> None:
    async with server(answer) as port:
        assert (await plaintext_probe(HOST, port)).refused


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes.fromhex("15030100020246") + b"x"])
async def test_any_other_byte_is_none(answer: bytes) -> None:
    async with server(answer) as port:
        assert not (await plaintext_probe(HOST, port)).refused


async def test_a_handshake_that_fails_is_a_refusal() -> None:
    async with server(b"") as port:
        assert (await no_certificate_probe(HOST, port)).refused


async def test_a_door_that_is_not_there_refuses_nobody() -> None:
    async with server(b"") as port:
        pass
    with pytest.raises(CheckFailedError, match=str(port)):
        await plaintext_probe(HOST, port)
