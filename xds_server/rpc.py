# SPDX-License-Identifier: Apache-2.0
"""What a service of the xDS port and the gRPC transport under it say to each other. No I/O, and no gRPC library.

    transport ─ one Call per stream ─► Handler ─ returns: OK, raises RpcError: that status ─► transport

A unary method is a Handler that reads once and writes once. The transport bounds messages, streams and silence; it
shows a client nothing of an exception that is not an RpcError.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from xds_server.xds_credentials import ServerTls


class RpcError(Exception):
    """The call ends with this status (its gRPC name, `UNAVAILABLE`); the text goes to the client."""

    def __init__(self, status: str, text: str) -> None:
        self.status = status
        super().__init__(text)


class CallEnded(Exception):
    """The client is gone: nothing more can be written, and nobody hears the status."""


class Call(Protocol):
    """One stream of one client. A handler may be cancelled while it waits, once the client is gone."""

    @property
    def method(self) -> str:
        """`/package.Service/Method`."""

    @property
    def peer(self) -> str:
        """The client's address, for logs."""

    @property
    def certificate_der(self) -> bytes | None:
        """The leaf that the client proved to hold; the TLS layer found a chain from it to something trusted."""

    async def read(self) -> bytes | None:
        """The next message; None when the client sends no more (it half-closed, or is gone)."""

    async def write(self, body: bytes) -> None:
        """Send a message; returns when flow control lets the next one in. Raises CallEnded."""


Handler = Callable[[Call], Awaitable[None]]


class RpcServer(Protocol):
    """A listening transport. `start` once, `stop` once."""

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port (useful with 0). Raises OSError if the address cannot be had."""

    async def stop(self, grace: float) -> None:
        """Take no new call; handlers get `grace` seconds to end, then they are cancelled."""


# Handlers by full method path (any other is UNIMPLEMENTED), and the server's side of TLS, which may change meanwhile.
Transport = Callable[[Mapping[str, Handler], ServerTls], RpcServer]
