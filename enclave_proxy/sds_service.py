# SPDX-License-Identifier: Apache-2.0
"""SDS on a local socket for an Envoy in the same TEE: the worker's secrets, rotated as they change.

    Latest[View] ─► one pure stream per call (sds.discovery) ─► gRPC

State of the world and incremental. All names of a request are served, each secret in a response of its own; a name that
does not exist is answered as such where the protocol can (incremental), and the stream stays open.
"""

from __future__ import annotations

import asyncio
import secrets

from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError

from enclave_proxy.local_call import Call, Log, Method, Methods
from sds.discovery import DeltaStream, Kind, ProtocolError, SotwStream, Stream, View
from sds.latest import Latest
from sds.resources import SECRET

SERVICE = "/envoy.service.secret.v3.SecretDiscoveryService"
IDENTIFIER = "marblemesh-worker"
# A worker has five names and one for each certificate that its ports present.
MAX_NAMES = 256


class SdsService:
    """Serves the secrets of the newest view."""

    def __init__(self, views: Latest[View], log: Log) -> None:
        self._views = views
        self._log = log

    @property
    def methods(self) -> Methods:
        """What a local server is given."""
        both = Cardinality.STREAM_STREAM
        return {
            f"{SERVICE}/StreamSecrets": Method("StreamSecrets", both, lambda call: self._serve(call, SotwStream)),
            f"{SERVICE}/DeltaSecrets": Method("DeltaSecrets", both, lambda call: self._serve(call, DeltaStream)),
        }

    async def _serve(self, call: Call, kind: type[Stream]) -> None:
        stream = kind(
            identifier=IDENTIFIER, nonce_prefix=f"{secrets.token_hex(4)}-", implied_type=SECRET, entitled=(SECRET,)
        )
        try:
            await _Conversation(call, stream, self._views, self._log).run()
        except ProtocolError as error:
            raise GRPCError(Status[error.status], str(error)) from None


class _Conversation:
    """One stream: a reader, a follower of the view, and the writer."""

    def __init__(self, call: Call, stream: Stream, views: Latest[View], log: Log) -> None:
        self._call = call
        self._stream = stream
        self._views = views
        self._log = log
        self._wake = asyncio.Event()
        self._ended = False

    async def run(self) -> None:
        if (first := await self._call.first()) is None:
            return
        self._stream.update(self._views.value)  # before the first answer, or everything would not exist
        self._take(first)
        loop = asyncio.get_running_loop()
        tasks = (loop.create_task(self._read()), loop.create_task(self._follow()))
        try:
            await self._write()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled() and (fault := task.exception()) is not None:
                raise fault

    async def _read(self) -> None:
        try:
            while (data := await self._call.receive()) is not None:
                self._take(data)
        finally:
            self._ended = True
            self._wake.set()

    def _take(self, data: bytes) -> None:
        receipt = self._stream.receive_bytes(data)
        if sum(count for _, count in self._stream.subscriptions) > MAX_NAMES:
            raise ProtocolError("RESOURCE_EXHAUSTED", f"more than {MAX_NAMES} names on one stream")
        self._call.counters.missing += receipt.missing
        if receipt.kind is Kind.NACK:
            self._call.counters.nacks += 1
            self._log.warning("secret rejected by the local client", error=receipt.error)
        self._wake.set()

    async def _follow(self) -> None:
        async for view in self._views.changes():
            self._stream.update(view)
            self._wake.set()

    async def _write(self) -> None:
        while not self._ended:
            if (body := self._stream.take()) is not None:
                await self._call.send(body)
                continue
            await self._wake.wait()
            self._wake.clear()
