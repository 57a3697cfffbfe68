# SPDX-License-Identifier: Apache-2.0
"""An xDS port as the Coordinator opens it, for a Town (see xds_mesh), and foreign gRPC clients (grpcio's) of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.struct_pb2 import Struct
from prometheus_client import CollectorRegistry

from sds.discovery_client import DeltaClient, Update
from sds.identity import COORDINATOR_DNS_NAME
from sds.logs import get_logger
from sds.material import Identity
from sds.resources import SECRET
from sds.wire.discovery_pb2 import DiscoveryRequest, DiscoveryResponse, Node
from tests.kit.xds_mesh import Town, gateway_certificate, manifest
from xds_server.ads import XdsServer
from xds_server.mesh import Mesh
from xds_server.rpc_server import RpcPort
from xds_server.xds_limits import XdsLimits
from xds_server.xds_metrics import XdsMetrics
from xds_server.xds_streams import SERVICES

MANY = 100
ADS, SDS = tuple(SERVICES)[:2]
EDGE, EDGE_KEY = gateway_certificate(x509.UniformResourceIdentifier("spiffe://edge.example/gateway"))
TLS: dict[str, object] = {
    "web": {"Incoming": [{"Port": "8080"}], "Outgoing": [{"Addr": "voting", "Port": "8081"}]},
    "voting": {"Incoming": [{"Port": "8081"}]},
}
MANIFEST = manifest(TLS, {"web": ["web"], "voting": ["voting"]}, {"edge": EDGE})


def xds_server(mesh: Mesh, registry: CollectorRegistry | None = None, limits: XdsLimits | None = None) -> XdsServer:
    metrics = XdsMetrics(registry or CollectorRegistry())
    return XdsServer(mesh, RpcPort, get_logger("test"), metrics, limits=limits)


@dataclass
class Place:
    """A Town behind a real port."""

    town: Town
    server: XdsServer
    port: int
    registry: CollectorRegistry

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    def channel(self, chain: bytes, key: bytes) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(self.town.ca.chain_pem, key, chain)
        # Connections are shared within a process unless their options differ.
        options = (
            ("grpc.ssl_target_name_override", COORDINATOR_DNS_NAME),
            ("grpc.enable_retries", 0),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_send_message_length", -1),
        )
        return grpc.aio.secure_channel(f"127.0.0.1:{self.port}", credentials, options)

    def of(self, identity: Identity) -> grpc.aio.Channel:
        return self.channel(identity.chain, identity.key.pem)

    def edge(self) -> grpc.aio.Channel:
        """The gateway of the manifest: a client without Marble identity."""
        return self.channel(EDGE.public_bytes(Encoding.PEM), EDGE_KEY)


@asynccontextmanager
async def opened(limits: XdsLimits | None = None) -> AsyncIterator[Place]:
    town = Town(MANIFEST)
    registry = CollectorRegistry()
    server = xds_server(town.mesh, registry, limits)
    port = await server.start("127.0.0.1", 0, town.ca)
    try:
        yield Place(town, server, port, registry)
    finally:
        await server.stop()


class Wire:
    """A DeltaClient on a gRPC stream; every response is acknowledged unless told otherwise."""

    def __init__(self, channel: grpc.aio.Channel, client: DeltaClient, method: str) -> None:
        self.client = client
        self._open = channel.stream_stream(method)
        self.call = self._open()

    def again(self) -> None:
        """Another stream."""
        self.client.connected()
        self.call = self._open()

    async def send(self) -> None:
        while (body := self.client.take()) is not None:
            await self.call.write(body)

    async def hear(self, nack: str | None = None) -> Update:
        await self.send()
        update = self.client.receive_bytes(await asyncio.wait_for(self.call.read(), 10))
        if nack is None:
            self.client.ack(update)
        else:
            self.client.nack(update, nack)
        await self.send()
        return update


@asynccontextmanager
async def connected(
    channel: grpc.aio.Channel,
    *,
    advertise: str = "",
    node_id: str = "",
    method: str = f"/{ADS}/DeltaAggregatedResources",
) -> AsyncIterator[Wire]:
    metadata = Struct()
    if advertise:
        metadata.update({"ADVERTISE": advertise})
    client = DeltaClient(Node(id=node_id, metadata=metadata))
    client.connected()
    async with channel:
        yield Wire(channel, client, method)


async def refusal(wire: Wire, type_url: str = SECRET) -> grpc.aio.AioRpcError:
    """How the server ends a stream on which this is asked."""
    wire.client.subscribe(type_url, ["default"])
    for _ in range(MANY):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await wire.hear()
        if not lost(caught.value.code(), caught.value.details()):
            return caught.value
        wire.again()
    raise AssertionError("grpcio lost every status")


async def end_of(open_call: Callable[[], grpc.aio.StreamStreamCall], body: bytes | None) -> tuple[grpc.StatusCode, str]:
    """How the server ends a stream on which it is given this, and what else it had written before."""
    for _ in range(MANY):
        call = open_call()
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # refused before all of it is out
            if body is not None:
                await call.write(body)
        found = await ended(call)
        if not lost(*found):
            return found
    raise AssertionError("grpcio lost every status")


async def ended(call: grpc.aio.StreamStreamCall) -> tuple[grpc.StatusCode, str]:
    """How the server ended a stream, whatever it had written before."""
    with suppress(grpc.aio.AioRpcError):
        while await asyncio.wait_for(call.read(), 10) is not grpc.aio.EOF:
            pass
    return await call.code(), await call.details() or ""


def lost(code: grpc.StatusCode, text: str | None) -> bool:
    """Whether grpcio's asyncio client made this up: it forgets a status that comes while it writes."""
    return code is grpc.StatusCode.INTERNAL and text == "Internal error from Core"


async def ask_whole(call: object, type_url: str, names: Iterable[str] = (), nonce: str = "") -> DiscoveryResponse:
    """One request and its response on a state-of-the-world stream."""
    request = DiscoveryRequest(type_url=type_url, resource_names=names, response_nonce=nonce)
    await call.write(request.SerializeToString())  # type: ignore[attr-defined]
    return DiscoveryResponse.FromString(await asyncio.wait_for(call.read(), 10))  # type: ignore[attr-defined]
