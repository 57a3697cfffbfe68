# SPDX-License-Identifier: Apache-2.0
"""Everything else that the xDS port serves, with clients that are not ours: grpcio's own, its stubs for health and
reflection, and Envoy's own messages for client status."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from sds.identity import COORDINATOR_DNS_NAME
from sds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET
from sds.wire.csds_pb2 import ClientStatusRequest
from sds.wire.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, Node
from tests.kit.xds_mesh import Town, manifest
from tests.kit.xds_port import ADS, EDGE, TLS, Place, ask_whole, connected, opened, xds_server
from xds_server.mesh import Mesh
from xds_server.xds_streams import SERVICES

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
PER_TYPE = {LISTENER: "Listeners", CLUSTER: "Clusters", ENDPOINT: "Endpoints", SECRET: "Secrets"}
CSDS = "/envoy.service.status.v3.ClientStatusDiscoveryService"


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with opened() as it:
        yield it


def method(noun: str, variant: str) -> str:
    service = next(name for name, methods in SERVICES.items() if f"{variant}{noun}" in methods)
    return f"/{service}/{variant}{noun}"


# ---- per-type discovery


@pytest.mark.parametrize("type_url", PER_TYPE, ids=PER_TYPE.values())
async def test_every_type_has_a_state_of_the_world_stream_that_gives_what_the_aggregated_one_gives(
    place: Place, type_url: str
) -> None:
    web = place.town.activate("web")
    names = {ENDPOINT: ["outbound|voting|8081"], SECRET: ["default"]}.get(type_url, [])
    async with place.of(web.identity) as channel:
        own = await ask_whole(channel.stream_stream(method(PER_TYPE[type_url], "Stream"))(), "", names)
        aggregated = await ask_whole(channel.stream_stream(f"/{ADS}/StreamAggregatedResources")(), type_url, names)
    assert own.type_url == type_url
    assert len(own.resources) >= 1
    assert (own.version_info, own.resources) == (aggregated.version_info, aggregated.resources)


@pytest.mark.parametrize("type_url", PER_TYPE, ids=PER_TYPE.values())
async def test_every_type_has_an_incremental_stream(place: Place, type_url: str) -> None:
    web = place.town.activate("web")
    names = {ENDPOINT: ["outbound|voting|8081"], SECRET: ["default"]}.get(type_url, ["*"])
    async with connected(place.of(web.identity), method=method(PER_TYPE[type_url], "Delta")) as wire:
        wire.client.subscribe(type_url, names)
        assert len((await wire.hear()).resources) >= 1


async def test_there_are_no_routes_so_each_name_is_answered_as_not_found(place: Place) -> None:
    web = place.town.activate("web")
    async with connected(place.of(web.identity), method=method("Routes", "Delta")) as wire:
        wire.client.subscribe(ROUTE, ["main"])
        update = await wire.hear()
        assert (update.resources, update.removed) == ((), ("main",))
        assert update.errors["main"][0] == grpc.StatusCode.NOT_FOUND.value[0]


async def test_fetch_methods_are_not_implemented(place: Place) -> None:
    web = place.town.activate("web")
    async with place.of(web.identity) as channel:
        call = channel.unary_unary("/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets")(b"")
        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_forbidden_name_is_answered_as_such_and_the_stream_goes_on(place: Place) -> None:
    async with place.edge() as channel:
        call = channel.stream_stream(f"/{ADS}/DeltaAggregatedResources")()
        request = DeltaDiscoveryRequest(type_url=SECRET, resource_names_subscribe=["default"])
        await call.write(request.SerializeToString())
        denied = DeltaDiscoveryResponse.FromString(await asyncio.wait_for(call.read(), 10))
        (error,) = denied.resource_errors
        assert (error.resource_name.name, error.error_detail.code) == (
            "default",
            grpc.StatusCode.PERMISSION_DENIED.value[0],
        )
        await call.write(DeltaDiscoveryRequest(type_url=CLUSTER).SerializeToString())
        given = DeltaDiscoveryResponse.FromString(await asyncio.wait_for(call.read(), 10))
        assert {resource.name for resource in given.resources} == {"outbound|web|8080", "outbound|voting|8081"}
    assert place.metric("marblemesh_xds_forbidden_total", type="secret") == 1


# ---- health


async def test_health_is_serving_for_the_server_and_for_each_of_its_services(place: Place) -> None:
    async with place.edge() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", ADS, "grpc.health.v1.Health"):
            assert (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="no.such.Service"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        unknown = await stub.Watch(health_pb2.HealthCheckRequest(service="no.such.Service")).read()
        assert unknown.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


async def test_a_coordinator_without_a_manifest_is_not_serving_until_there_is_one() -> None:
    town = Town(manifest(TLS, {"web": ["web"], "voting": ["voting"]}, {"edge": EDGE}))
    web = town.identity("web", "4b7f3c0e-0000-4000-8000-000000000001")
    fresh = Mesh(lambda: town.time)  # what a Coordinator has before its first manifest, and while it needs recovery
    server = xds_server(fresh)
    place = Place(town, server, await server.start("127.0.0.1", 0, town.ca), None)  # type: ignore[arg-type]
    try:
        async with place.of(web) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == NOT_SERVING
            fresh.configure(town.manifest, town.ca)
            assert (await asyncio.wait_for(watch.read(), 10)).status == SERVING
            await server.stop()
            assert (await asyncio.wait_for(watch.read(), 10)).status == NOT_SERVING
            assert await watch.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        await server.stop()


# ---- reflection


def reflected(place: Place) -> tuple[list[str], DescriptorPool, Any]:
    """What a tool finds out that knows nothing but the address and its certificate (blocking)."""
    web = place.town.activate("web")
    credentials = grpc.ssl_channel_credentials(place.town.ca.chain_pem, web.identity.key.pem, web.identity.chain)
    options = (("grpc.ssl_target_name_override", COORDINATOR_DNS_NAME),)
    with grpc.secure_channel(f"127.0.0.1:{place.port}", credentials, options) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = list(database.get_services())
        pool = DescriptorPool(database)
        for symbol in (*services, "envoy.config.listener.v3.Listener"):
            database.FindFileContainingSymbol(symbol)
            pool.FindFileContainingSymbol(symbol)
        found = pool.FindServiceByName(ADS).methods_by_name["DeltaAggregatedResources"]
        request = GetMessageClass(found.input_type)(type_url=CLUSTER)
        response = GetMessageClass(found.output_type)
        call = channel.stream_stream(f"/{ADS}/{found.name}")(iter([request.SerializeToString()]))
        return services, pool, response.FromString(next(call))


async def test_a_tool_that_knows_nothing_can_list_describe_and_call(place: Place) -> None:
    services, pool, answer = await asyncio.to_thread(reflected, place)
    assert set(services) == {
        *SERVICES,
        "envoy.service.status.v3.ClientStatusDiscoveryService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert [resource.name for resource in answer.resources] == ["app|8080", "outbound|voting|8081"]
    assert pool.FindMessageTypeByName("envoy.config.listener.v3.Listener").fields_by_name["traffic_direction"]
    watch = pool.FindServiceByName("grpc.health.v1.Health").methods_by_name["Watch"]
    assert (watch.client_streaming, watch.server_streaming) == (False, True)


async def test_reflection_says_what_it_does_not_have(place: Place) -> None:
    async with place.edge() as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        for request, code in (
            ({"file_containing_symbol": "no.such.Symbol"}, 5),
            ({"file_by_filename": "no/such.proto"}, 5),
            ({"file_containing_extension": {"containing_type": "google.protobuf.Any", "extension_number": 1}}, 5),
            ({"all_extension_numbers_of_type": "no.such.Type"}, 5),
            ({}, 12),
        ):
            await call.write(reflection_pb2.ServerReflectionRequest(**request))
            assert (await asyncio.wait_for(call.read(), 10)).error_response.error_code == code
        await call.write(
            reflection_pb2.ServerReflectionRequest(all_extension_numbers_of_type="envoy.config.core.v3.Node")
        )
        response = (await asyncio.wait_for(call.read(), 10)).all_extension_numbers_response
        assert (response.base_type_name, list(response.extension_number)) == ("envoy.config.core.v3.Node", [])


# ---- client status


def envoys_own(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # generated code, not ours to warn about
        from envoy_data_plane.envoy.service.status import v3

        return getattr(v3, name)


async def client_status(channel: grpc.aio.Channel) -> Any:
    call = channel.unary_unary(f"{CSDS}/FetchClientStatus")(b"")
    return envoys_own("ClientStatusResponse").parse(await call)


async def test_a_client_sees_the_state_of_its_own_streams_and_of_nobody_elses(place: Place) -> None:
    web, voting = place.town.activate("web"), place.town.activate("voting")
    async with place.of(voting.identity) as other, place.of(web.identity) as channel:
        foreign = other.stream_stream(f"/{ADS}/StreamAggregatedResources")()
        await ask_whole(foreign, LISTENER)
        call = channel.stream_stream(f"/{ADS}/StreamAggregatedResources")()
        secret = await ask_whole(call, SECRET, ["default"])
        await call.write(
            DiscoveryRequest(
                type_url=SECRET,
                resource_names=["default"],
                response_nonce=secret.nonce,
                error_detail={"code": 13, "message": f"cannot use {web.identity.key.pem.decode()}"},
            ).SerializeToString()
        )
        await ask_whole(call, ENDPOINT, ["outbound|voting|8081"])
        (config,) = (await client_status(channel)).config
    found = {(entry.type_url, entry.name): entry for entry in config.generic_xds_configs}
    assert set(found) == {(SECRET, "default"), (ENDPOINT, "outbound|voting|8081")}
    rejected, waiting = found[SECRET, "default"], found[ENDPOINT, "outbound|voting|8081"]
    assert (rejected.config_status.name, rejected.client_status.name) == ("ERROR", "NACKED")
    assert rejected.error_state.details == "cannot use [redacted]"
    assert rejected.error_state.version_info == secret.version_info
    assert (waiting.config_status.name, waiting.client_status.name) == ("STALE", "REQUESTED")
    assert all(entry.xds_config is None for entry in found.values())
    assert rejected.last_updated is not None


async def test_client_status_on_a_stream_is_answered_request_by_request(place: Place) -> None:
    web = place.town.activate("web")
    async with place.of(web.identity) as channel:
        discovery = channel.stream_stream(f"/{ADS}/StreamAggregatedResources")()
        await ask_whole(discovery, SECRET, ["nobody", "default"])
        call = channel.stream_stream(f"{CSDS}/StreamClientStatus")()
        await call.write(b"")
        (config,) = envoys_own("ClientStatusResponse").parse(await asyncio.wait_for(call.read(), 10)).config
        states = {entry.name: entry.client_status.name for entry in config.generic_xds_configs}
        assert states == {"nobody": "DOES_NOT_EXIST", "default": "REQUESTED"}
        await call.write(b"\x0a\x00")  # a node matcher
        assert await asyncio.wait_for(call.code(), 10) is grpc.StatusCode.INVALID_ARGUMENT


async def test_client_status_for_somebody_else_is_refused(place: Place) -> None:
    web, other = place.town.activate("web"), place.town.activate("web")
    async with place.of(web.identity) as channel:
        request = ClientStatusRequest(node=Node(id=f"web/{other.uuid}"))
        call = channel.unary_unary(f"{CSDS}/FetchClientStatus")(request.SerializeToString())
        assert await call.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_client_status_needs_an_identity_of_the_mesh(place: Place) -> None:
    stranger = place.town.identity("web", "4b7f3c0e-0000-4000-8000-000000000001")
    async with place.of(stranger) as channel:
        call = channel.unary_unary(f"{CSDS}/FetchClientStatus")(b"")
        assert await call.code() is grpc.StatusCode.PERMISSION_DENIED
