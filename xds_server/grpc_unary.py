# SPDX-License-Identifier: Apache-2.0
"""Unary gRPC calls over HTTP/2: collect a request, call the handler, send one message and the trailers.

Beyond the limits of every HTTP/2 connection (`h2_session`): `max_message` bytes per request, and `timeout` seconds, or
what the client's own deadline says, for a call from its first header to its last byte.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from grpclib.const import Status
from grpclib.metadata import encode_grpc_message

from sds.logs import get_logger
from xds_server.byte_budget import ByteBudget
from xds_server.h2_session import Call, H2Limits, H2Port, H2Session, Headers, Limit
from xds_server.rpc import RpcError
from xds_server.tls_front import TlsTransport

# What clients take for granted before they have read our settings; the activations at once are bounded elsewhere.
MAX_STREAMS = 100
MAX_HEADERS = 16 * 1024
# What every gRPC implementation accepts by default, in both directions.
MAX_MESSAGE = 4 * 1024 * 1024
# Sixteen requests of the largest size, or 10 000 of a usual one (5 KiB).
BUDGET = 16 * MAX_MESSAGE
_PREFIX = 5  # flag and length before a message
_HEAD: Headers = ((b":status", b"200"), (b"content-type", b"application/grpc"))
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}

_log = get_logger(__name__)


Handler = Callable[[bytes, TlsTransport], Awaitable[bytes]]


@dataclass(slots=True)
class UnaryService:
    """The methods of one port (path → handler) and its limits; `finished` hears how each call to a handler ended."""

    handlers: dict[bytes, Handler]
    finished: Callable[[Status], None]
    timeout: float = 20.0
    max_message: int = MAX_MESSAGE
    budget: int = BUDGET
    port: H2Port = field(init=False)

    def __post_init__(self) -> None:
        limits = H2Limits(
            streams=MAX_STREAMS, headers=MAX_HEADERS, body=self.max_message + _PREFIX, call_seconds=self.timeout
        )
        self.port = H2Port(limits, ByteBudget(self.budget))

    def connect(self, transport: TlsTransport) -> UnaryProtocol:
        """The protocol for a new connection."""
        return UnaryProtocol(self)

    def stop(self) -> None:
        """Tell every client to go away; connections close after the call in flight."""
        self.port.stop()


class UnaryProtocol(H2Session):
    """One connection."""

    goodbye = False

    def __init__(self, service: UnaryService) -> None:
        super().__init__(service.port)
        self._service = service

    def begun(self, call: Call) -> None:
        http = _http_fault(call.headers)
        if http is not None:
            self.respond(call, [(b":status", http)])
        elif call.headers[b":path"] not in self._service.handlers:
            self._refuse(call, Status.UNIMPLEMENTED, "Method not found")

    def ended(self, call: Call) -> None:
        if call.task is None and call.head is None:
            call.task = self.loop.create_task(self._run(call))

    def limited(self, call: Call, limit: Limit) -> None:
        match limit:
            case Limit.LEAVING:
                self._refuse(call, Status.UNAVAILABLE, "coordinator stops: try again")
            case Limit.TOO_LARGE:
                text = f"message larger than {self._service.max_message} bytes"
                self._refuse(call, Status.RESOURCE_EXHAUSTED, text)
            case Limit.NO_ROOM:
                self._refuse(call, Status.RESOURCE_EXHAUSTED, limit.value)
            case Limit.TOO_LATE:
                text = f"call took longer than {self._service.timeout:g} s"
                self._refuse(call, Status.DEADLINE_EXCEEDED, text)

    async def _run(self, call: Call) -> None:
        try:
            timeout = min(self._service.timeout, _client_timeout(call.headers))
            async with asyncio.timeout(timeout):
                handler = self._service.handlers[call.headers[b":path"]]
                reply = await handler(_message(call.body, self._service.max_message), self.transport)
        except RpcError as error:
            self._refuse(call, Status[error.status], str(error))
        except TimeoutError:
            self._refuse(call, Status.DEADLINE_EXCEEDED, "deadline exceeded")
        except Exception:  # a bug: the client learns nothing of it, the log everything
            _log.exception("call failed", path=call.headers[b":path"].decode("ascii", "replace"))
            self._refuse(call, Status.INTERNAL, "internal error")
        else:
            if self.alive(call):
                self._service.finished(Status.OK)
            self.respond(call, _HEAD, b"\0" + len(reply).to_bytes(4, "big") + reply, [(b"grpc-status", b"0")])
        self.flush()

    def _refuse(self, call: Call, status: Status, text: str) -> None:
        if not self.alive(call):
            return
        if call.task is not None and call.head is None:
            self._service.finished(status)
        trailers = [(b"grpc-status", str(status.value).encode()), (b"grpc-message", encode_grpc_message(text).encode())]
        self.finish_early(call, _HEAD, trailers)


def _http_fault(headers: dict[bytes, bytes]) -> bytes | None:
    """The HTTP status for what is no gRPC request at all."""
    if headers.get(b":method") != b"POST":
        return b"405"
    media_type = headers.get(b"content-type", b"").split(b";")[0].strip()
    if media_type not in (b"application/grpc", b"application/grpc+proto"):
        return b"415"
    return None


def _client_timeout(headers: dict[bytes, bytes]) -> float:
    text = headers.get(b"grpc-timeout")
    if text is None:
        return float("inf")
    match = _TIMEOUT.fullmatch(text)
    if match is None:
        raise RpcError("INTERNAL", "malformed grpc-timeout")
    return int(match[1]) * _UNITS[match[2]]


def _message(body: bytearray, limit: int) -> bytes:
    """The one message of a unary request."""
    if len(body) < _PREFIX:
        raise RpcError("INTERNAL", "request ends before its first message")
    if body[0] != 0:
        raise RpcError("UNIMPLEMENTED", "compressed messages are not accepted")
    length = int.from_bytes(body[1:_PREFIX], "big")
    if length > limit:
        raise RpcError("RESOURCE_EXHAUSTED", f"message of {length} bytes, at most {limit} are accepted")
    if length != len(body) - _PREFIX:
        raise RpcError("INTERNAL", f"message of {len(body) - _PREFIX} bytes announced as {length}")
    return bytes(body[_PREFIX:])
