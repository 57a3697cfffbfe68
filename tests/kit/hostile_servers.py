# SPDX-License-Identifier: Apache-2.0
"""Servers that no honest peer would be, for whoever dials them; each keeps what it was sent."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

from tests.kit.hostile_flights import PATIENCE
from tests.kit.hostile_identities import Shown

Received = bytearray
Server = Callable[[int, Received], AbstractAsyncContextManager[object]]


def answering(answer: bytes, *, close: bool = False) -> Server:
    """Reads a flight, says `answer` to it, and then waits for the client to go, or goes itself."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, received: Received) -> None:
        received += await reader.read(1 << 16)
        writer.write(answer)
        if not close:
            received += await reader.read()

    return _listening(serve, None)


def hanging_up() -> Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, received: Received) -> None:
        writer.transport.abort()

    return _listening(serve, None)


def presenting(shown: Shown, alpn: tuple[str, ...] = (), newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> Server:
    """Shakes hands by the book and asks for no certificate; echoes what comes, behind the protocol agreed upon."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = newest
    shown.load(context)
    if alpn:
        context.set_alpn_protocols(list(alpn))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, received: Received) -> None:
        writer.write(f"{writer.get_extra_info('ssl_object').selected_alpn_protocol()}:".encode())
        while chunk := await reader.read(4096):
            received += chunk
            writer.write(chunk)

    return _listening(serve, context)


_Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter, Received], Awaitable[None]]


def _listening(serve: _Serve, context: ssl.SSLContext | None) -> Server:
    @asynccontextmanager
    async def listening(port: int, received: Received) -> AsyncIterator[None]:
        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                with suppress(OSError):
                    async with asyncio.timeout(PATIENCE):
                        await serve(reader, writer, received)
            finally:
                writer.transport.abort()

        server = await asyncio.start_server(accepted, "127.0.0.1", port, ssl=context)
        try:
            yield
        finally:
            server.close()

    return listening


@asynccontextmanager
async def nobody(port: int, received: Received) -> AsyncIterator[None]:
    """Not even a listener."""
    yield
