# SPDX-License-Identifier: Apache-2.0
"""One call of a local client, as a service sees it: messages in and out with bounds in size and time.

Before anything goes out the kernel is asked whether the process that connected still lives (see `local_peer`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError
from grpclib.exceptions import ProtocolError as BrokenMessage
from grpclib.server import Stream

from enclave_proxy.grpc_channel import read_message
from enclave_proxy.local_counters import LocalCounters
from enclave_proxy.local_peer import Peer

# An Envoy's first request is 60 kB, the list of what it was built with.
MAX_REQUEST = 256 * 1024
# Clients send their first message with the call itself, and a message in one go.
REQUEST_SECONDS = 10.0
# A client that takes nothing for so long is not waited for.
SEND_SECONDS = 30.0


class Log(Protocol):
    """Where the sockets report; a structlog logger fits."""

    def info(self, event: str, **fields: object) -> object: ...
    def warning(self, event: str, **fields: object) -> object: ...
    def error(self, event: str, **fields: object) -> object: ...


class PeerGone(GRPCError):
    """The process that connected has ended: whoever holds the connection now gets nothing."""

    def __init__(self) -> None:
        super().__init__(Status.PERMISSION_DENIED, "the process that connected has ended")


class Call:
    """What a method gets. `counters` are those of the whole socket."""

    def __init__(self, stream: Stream[bytes, bytes], peer: Peer, method: str, counters: LocalCounters) -> None:
        self.counters = counters
        self._stream = stream
        self._peer = peer
        self._method = method

    def metadata(self, name: str) -> Sequence[object]:
        """All values of a metadata key (of our own choosing, lower case)."""
        found = self._stream.metadata
        return [] if found is None else found.getall(name, [])

    async def first(self) -> bytes | None:
        """The message that comes with the call; None if there is none. Raises GRPCError."""
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                return await self.receive()
        except TimeoutError:
            raise GRPCError(Status.DEADLINE_EXCEEDED, "the request did not arrive in time") from None

    async def receive(self) -> bytes | None:
        """The next message, None at the end. Raises GRPCError if it is longer than MAX_REQUEST, or cut short."""
        try:
            return await read_message(self._stream._stream, MAX_REQUEST)
        except BrokenMessage as error:
            raise GRPCError(Status.RESOURCE_EXHAUSTED, str(error)) from None

    async def send(self, body: bytes) -> None:
        """Give the client a message. Raises GRPCError if it does not take it, PeerGone if it is no longer there."""
        if not self._peer.alive:
            raise PeerGone
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self._stream.send_message(body)
        except TimeoutError:
            raise GRPCError(Status.DEADLINE_EXCEEDED, "the client does not read its responses") from None
        self.counters.sent[self._method] += 1


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a service; `name` is its label in metrics. `run` ends the call by returning or by GRPCError."""

    name: str
    cardinality: Cardinality
    run: Callable[[Call], Awaitable[None]]


# By path, such as "/SpiffeWorkloadAPI/FetchX509SVID".
Methods = Mapping[str, Method]
