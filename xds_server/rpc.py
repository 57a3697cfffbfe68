# SPDX-License-Identifier: Apache-2.0
"""What a service of the xDS port and the gRPC transport under it say to each other. No I/O, and no gRPC library.

    transport ─ one Call per stream ─► Handler ─ returns None: OK, raises RpcError: that status
                                          └──── returns a Receiver: the stream is the Receiver's from there on

A unary method is a Handler that reads once and writes once. A stream that lives for hours is a Receiver's: it is called
when something happens, and while nothing does there is no task that waits. The transport bounds messages, streams and
silence; it shows a client nothing of an exception that is not an RpcError.
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

    # For a Receiver, which does not read and write:

    def send(self, body: bytes) -> bool:
        """Send a message. False: some of it waits, and no other may be sent before `Receiver.writable`."""

    def pause(self) -> None:
        """Receive no more until `resume`; the client is held back by flow control."""

    def resume(self) -> None:
        """Receive again; what has come meanwhile is received before this returns."""

    def finish(self, error: RpcError | None = None) -> None:
        """End with this status, None: OK. `Receiver.closed` follows before this returns."""


class Receiver(Protocol):
    """Who serves a stream without a task. Methods return at once; one that raises ends the stream, as a Handler does.

    `closed` comes once, whatever ended the stream, and nothing after it; it must not raise.
    """

    def received(self, body: bytes) -> None:
        """A message."""

    def half_closed(self) -> None:
        """The client sends no more."""

    def writable(self) -> None:
        """What waited has been sent."""

    def closed(self) -> None:
        """The stream is over."""


Handler = Callable[[Call], Awaitable[Receiver | None]]


class RpcServer(Protocol):
    """A listening transport. `start` once, `stop` once."""

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port (useful with 0). Raises OSError if the address cannot be had."""

    async def stop(self, grace: float) -> None:
        """Take no new call; handlers get `grace` seconds to end, then they are cancelled."""


# Handlers by full method path (any other is UNIMPLEMENTED), and the server's side of TLS, which may change meanwhile.
Transport = Callable[[Mapping[str, Handler], ServerTls], RpcServer]
