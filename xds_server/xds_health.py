# SPDX-License-Identifier: Apache-2.0
"""`grpc.health.v1` on the xDS port: it serves while there is a manifest to serve, and not while it stops.

A Coordinator that waits for its first manifest, or for the recovery of its state, has nothing to say to a proxy: it is
alive and NOT_SERVING, so that load balancers send clients to another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from google.protobuf.message import DecodeError

from sds.wire.health_pb2 import HealthCheckRequest, HealthCheckResponse
from xds_server.descriptors import Method
from xds_server.mesh import Mesh
from xds_server.rpc import Call, Handler, RpcError
from xds_server.xds_gate import stopping

SERVICE = "grpc.health.v1.Health"
_REQUEST, _RESPONSE = "grpc.health.v1.HealthCheckRequest", "grpc.health.v1.HealthCheckResponse"
METHODS = {
    "Check": Method(_REQUEST, _RESPONSE, asks=False, answers=False),
    "Watch": Method(_REQUEST, _RESPONSE, asks=False),
}


class Health:
    """What is said of `services` and of the server as a whole (the empty name)."""

    def __init__(self, mesh: Mesh, services: Collection[str]) -> None:
        self._mesh = mesh
        self._services = frozenset({"", *services})
        self._stopping = False
        self._watchers: set[asyncio.Event] = set()
        self._unwatch: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Follow the mesh."""
        self._unwatch = self._mesh.watch(self._wake)

    def stop(self) -> None:
        """Tell all watchers that this server goes."""
        self._unwatch()
        self._stopping = True
        self._wake()

    def handlers(self) -> dict[str, Handler]:
        """By full method path."""
        return {f"/{SERVICE}/Check": self._check, f"/{SERVICE}/Watch": self._watch}

    def _status(self, service: str) -> HealthCheckResponse.ServingStatus:
        if service not in self._services:
            return HealthCheckResponse.SERVICE_UNKNOWN
        serving = self._mesh.ca is not None and not self._stopping
        return HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING

    def _wake(self, _who: object = None) -> None:
        for event in self._watchers:
            event.set()

    async def _check(self, call: Call) -> None:
        status = self._status(await _service(call))
        if status == HealthCheckResponse.SERVICE_UNKNOWN:
            raise RpcError("NOT_FOUND", "unknown service")
        await _say(call, status)

    async def _watch(self, call: Call) -> None:
        service = await _service(call)
        changed = asyncio.Event()
        self._watchers.add(changed)
        said: HealthCheckResponse.ServingStatus | None = None
        try:
            while True:
                changed.clear()
                if (status := self._status(service)) != said:
                    said = status
                    await _say(call, status)
                elif self._stopping:
                    raise stopping()
                else:
                    await changed.wait()
        finally:
            self._watchers.discard(changed)


async def _service(call: Call) -> str:
    body = await call.read()
    if body is None:
        raise RpcError("INVALID_ARGUMENT", "no request")
    try:
        return HealthCheckRequest.FromString(body).service
    except DecodeError:
        raise RpcError("INVALID_ARGUMENT", "request is not a valid health check request") from None


async def _say(call: Call, status: HealthCheckResponse.ServingStatus) -> None:
    await call.write(HealthCheckResponse(status=status).SerializeToString())
