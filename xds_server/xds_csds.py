# SPDX-License-Identifier: Apache-2.0
"""Client status discovery (`envoy.service.status.v3`): what the Coordinator thinks of a client's own streams.

A client sees nobody's but its own; names, versions, verdicts and redacted reasons, never any content.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from google.protobuf.message import DecodeError

from sds.wire.csds_pb2 import ClientConfig, ClientStatusRequest, ClientStatusResponse
from sds.wire.discovery_pb2 import Node
from xds_server.descriptors import Method
from xds_server.mesh import Client, Mesh
from xds_server.rpc import Call, Handler, RpcError
from xds_server.xds_record import ClientStatus
from xds_server.xds_states import ResourceState, State, resource_states
from xds_server.xds_streams import Streams, authenticate

SERVICE = "envoy.service.status.v3.ClientStatusDiscoveryService"
_REQUEST, _RESPONSE = "envoy.service.status.v3.ClientStatusRequest", "envoy.service.status.v3.ClientStatusResponse"
METHODS = {
    "StreamClientStatus": Method(_REQUEST, _RESPONSE),
    "FetchClientStatus": Method(_REQUEST, _RESPONSE, asks=False, answers=False),
}
# What gRPC clients accept by default.
MAX_ANSWER = 4 * 1024 * 1024
# Of one client; making the largest answer takes some 50 ms, in which nobody else is served.
PAUSE_SECONDS = 1.0

# ConfigStatus, ClientResourceStatus
_CONFIG_STATUS = {State.SYNCED: 1, State.NOT_FOUND: 1, State.NOT_SENT: 2, State.STALE: 3, State.REJECTED: 4}
_REQUESTED, _DOES_NOT_EXIST, _ACKED, _NACKED = 1, 2, 3, 4
_MANY = 1024


class Csds:
    """Looks at the streams when asked."""

    def __init__(self, mesh: Mesh, streams: Streams, clock: Callable[[], float] = time.monotonic) -> None:
        self._mesh = mesh
        self._streams = streams
        self._clock = clock
        self._next: dict[Client, float] = {}  # when a client may have its next answer
        self._tidy_at = _MANY

    def handlers(self) -> dict[str, Handler]:
        """By full method path."""
        return {f"/{SERVICE}/StreamClientStatus": self._stream, f"/{SERVICE}/FetchClientStatus": self._fetch}

    async def _fetch(self, call: Call) -> None:
        client = authenticate(call, self._mesh).client
        if (body := await call.read()) is None:
            raise RpcError("INVALID_ARGUMENT", "no request")
        await call.write(await self._answer(client, body))

    async def _stream(self, call: Call) -> None:
        client = authenticate(call, self._mesh).client
        while (body := await call.read()) is not None:
            await call.write(await self._answer(client, body))

    async def _answer(self, client: Client, body: bytes) -> bytes:
        try:
            request = ClientStatusRequest.FromString(body)
        except DecodeError:
            raise RpcError("INVALID_ARGUMENT", "request is not a valid client status request") from None
        if request.node_matchers:
            raise RpcError("INVALID_ARGUMENT", "node matchers are not supported: every client is shown its own streams")
        self._mesh.check_node(client, request.node)
        await self._turn(client)
        return client_configs(self._streams.of(client))

    async def _turn(self, client: Client) -> None:
        now = self._clock()
        at = max(now, self._next.get(client, now))
        self._next[client] = at + PAUSE_SECONDS
        if len(self._next) > self._tidy_at:
            self._next = {who: at for who, at in self._next.items() if at > now}
            self._tidy_at = max(_MANY, 2 * len(self._next))
        await asyncio.sleep(at - now)


def client_configs(streams: tuple[ClientStatus, ...]) -> bytes:
    """A serialised ClientStatusResponse with one ClientConfig per stream. Raises RpcError if it is too large."""
    response = ClientStatusResponse()
    size = 0
    for stream in streams:
        config = response.config.add(node=Node(id=stream.node), client_scope=stream.method)
        for type_url, status in stream.types.items():
            for resource in resource_states(status):
                size += len(type_url) + len(resource.name.encode()) + 128
                if size > MAX_ANSWER - len(status.error):
                    raise RpcError("RESOURCE_EXHAUSTED", f"client status of more than {MAX_ANSWER} bytes")
                _add(config, stream, type_url, resource, status.error)
    return response.SerializeToString()


def _add(config: ClientConfig, stream: ClientStatus, type_url: str, resource: ResourceState, error: str) -> None:
    entry = config.generic_xds_configs.add(
        type_url=type_url,
        name=resource.name,
        version_info=resource.acked,
        config_status=_CONFIG_STATUS[resource.state],
        client_status=_client_status(resource),
    )
    if (pushed := stream.pushed.get(type_url)) is not None:
        entry.last_updated.FromDatetime(pushed)
    if resource.state is State.REJECTED:
        entry.error_state.details = error
        entry.error_state.version_info = resource.rejected
        if pushed is not None:
            entry.error_state.last_update_attempt.FromDatetime(pushed)


def _client_status(resource: ResourceState) -> int:
    match resource.state:
        case State.REJECTED:
            return _NACKED
        case State.NOT_FOUND:
            return _DOES_NOT_EXIST
        case _:
            return _ACKED if resource.acked else _REQUESTED
