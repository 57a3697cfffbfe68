# SPDX-License-Identifier: Apache-2.0
"""The xDS port with real gRPC clients over mutual TLS on loopback."""

from __future__ import annotations

import asyncio
import ssl
import uuid as uuids
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from prometheus_client import CollectorRegistry

from sds.discovery import View
from sds.discovery_types import REVOKED
from sds.identity import COORDINATOR_DNS_NAME
from sds.material import Identity, TrustBundle, check_identity, check_issued_by
from sds.resources import CLUSTER, ENDPOINT, LISTENER, SECRET, read_secret
from sds.tls import client_context
from tests.kit.xds_mesh import Town, gateway_certificate, manifest
from tests.kit.xds_port import ADS, SDS, TLS, Place, Wire, connected, end_of, opened, refusal, xds_server
from xds_server.mesh import Client, Mesh
from xds_server.xds_limits import XdsLimits


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with opened() as it:
        yield it


async def test_a_marble_gets_its_secrets_and_follows_a_rotation(place: Place) -> None:
    web = place.town.activate("web")
    async with connected(place.of(web.identity)) as wire:
        wire.client.subscribe(SECRET, ["default"])
        (secret,) = (await wire.hear()).resources
        assert read_secret(secret.body) == ("default", web.identity)
        renewed = place.town.identity("web", web.uuid)
        place.town.mesh.replace_identities({("web", web.uuid): renewed})
        (secret,) = (await wire.hear()).resources
        assert read_secret(secret.body) == ("default", renewed)
    assert place.metric("marblemesh_xds_pushes_total", type="secret") == 2


async def test_a_burst_of_changes_is_one_push(place: Place) -> None:
    web = place.town.activate("web")
    async with connected(place.of(web.identity)) as wire:
        wire.client.subscribe(SECRET, ["default"])
        await wire.hear()
        renewed = [place.town.identity("web", web.uuid) for _ in range(5)]
        for identity in renewed:
            place.town.mesh.replace_identities({("web", web.uuid): identity})
        (secret,) = (await wire.hear()).resources
        assert read_secret(secret.body) == ("default", renewed[-1])
    assert place.metric("marblemesh_xds_pushes_total", type="secret") == 2


async def test_an_instance_becomes_an_endpoint_when_it_has_acknowledged_its_listeners(place: Place) -> None:
    web, voting = place.town.activate("web"), place.town.activate("voting", dns="localhost")
    async with connected(place.of(web.identity)) as caller:
        caller.client.subscribe(ENDPOINT, ["outbound|voting|8081"])
        before = (await caller.hear()).resources[0]
        async with connected(place.of(voting.identity), advertise="localhost") as called:
            called.client.subscribe(LISTENER, ["*"])
            await called.hear()
            after = (await caller.hear()).resources[0]
    assert b"127.0.0.1" not in before.body
    assert b"127.0.0.1" in after.body


async def test_a_gateway_gets_endpoints_and_clusters_and_no_secret(place: Place) -> None:
    async with connected(place.edge()) as wire:
        wire.client.subscribe(CLUSTER, ["*"])
        assert {r.name for r in (await wire.hear()).resources} == {"outbound|web|8080", "outbound|voting|8081"}
        wire.client.subscribe(SECRET, ["default", "ROOTCA"])
        update = await wire.hear()
        assert (update.resources, set(update.removed)) == ((), {"default", "ROOTCA"})
        assert {code for code, _ in update.errors.values()} == {7}


async def test_a_client_without_certificate_does_not_get_through_the_handshake(place: Place) -> None:
    credentials = grpc.ssl_channel_credentials(place.town.ca.chain_pem)
    options = (("grpc.ssl_target_name_override", COORDINATOR_DNS_NAME),)
    async with connected(grpc.aio.secure_channel(f"127.0.0.1:{place.port}", credentials, options)) as wire:
        assert (await refusal(wire)).code() is grpc.StatusCode.UNAVAILABLE


async def test_a_certificate_of_another_mesh_does_not_get_through_the_handshake(place: Place) -> None:
    stranger = Town(place.town.manifest).activate("web")
    async with connected(place.of(stranger.identity)) as wire:
        assert (await refusal(wire)).code() is grpc.StatusCode.UNAVAILABLE


async def test_an_instance_that_is_not_activated_is_told_so(place: Place) -> None:
    stranger = place.town.identity("web", str(uuids.uuid4()))
    async with connected(place.of(stranger)) as wire:
        error = await refusal(wire)
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert error.details() == "this instance is not activated: activate it again"
    assert place.metric("marblemesh_xds_denied_total", reason="not_activated") >= 1


async def test_a_node_that_calls_itself_somebody_else_is_refused(place: Place) -> None:
    web, other = place.town.activate("web"), place.town.activate("web")
    async with connected(place.of(web.identity), node_id=f"web/{other.uuid}") as wire:
        assert (await refusal(wire)).code() is grpc.StatusCode.PERMISSION_DENIED


async def test_revocation_ends_the_open_stream(place: Place) -> None:
    web = place.town.activate("web")
    async with connected(place.of(web.identity)) as wire:
        wire.client.subscribe(SECRET, ["default"])
        await wire.hear()
        place.town.mesh.revoke("web", web.uuid)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await wire.hear()
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert (caught.value.details() or "").startswith(REVOKED)
    async with connected(place.of(web.identity)) as wire:
        again = await refusal(wire)
    assert (again.code(), again.details()) == (caught.value.code(), caught.value.details())
    assert place.metric("marblemesh_xds_denied_total", reason="revoked") >= 2


async def heard_of(wire: Wire, *wanted: str) -> dict[str, object]:
    """Acknowledge what comes until there was a new version of each of these secrets."""
    found: dict[str, object] = {}
    while not found.keys() >= set(wanted):
        for resource in (await wire.hear()).resources:
            found[resource.name] = read_secret(resource.body)[1]
    return found


async def test_a_rotation_goes_from_bundle_to_identity_to_bundle_as_the_clients_answer(place: Place) -> None:
    town = place.town
    web, voting = town.activate("web"), town.activate("voting")
    town.renew_when_asked()
    async with connected(place.of(web.identity)) as one, connected(place.of(voting.identity)) as other:
        for wire in (one, other):
            wire.client.subscribe(SECRET, ["default", "ROOTCA"])
            await heard_of(wire, "default", "ROOTCA")
        old = town.ca
        town.update()
        both = {old.marble_root, town.ca.marble_root}
        for wire in (one, other):
            bundle = (await heard_of(wire, "ROOTCA"))["ROOTCA"]
            assert isinstance(bundle, TrustBundle)
            assert set(bundle.certificates) == both
        identities = [(await heard_of(wire, "default"))["default"] for wire in (one, other)]
        for identity in identities:
            assert isinstance(identity, Identity)
            assert town.ca.intermediate in identity.certificates
        for wire in (one, other):
            bundle = (await heard_of(wire, "ROOTCA"))["ROOTCA"]
            assert isinstance(bundle, TrustBundle)
            assert bundle.certificates == (town.ca.marble_root,)
        await town.settled()
    assert place.metric("marblemesh_rotation_phase") == 0
    for phase in ("introduce", "renew", "retire"):
        assert place.metric("marblemesh_rotation_seconds_count", phase=phase) == 1
    assert place.metric("marblemesh_rotation_behind_total") == 0


async def test_who_was_away_during_a_rotation_comes_back_with_the_old_certificate_and_gets_the_new_one(
    place: Place,
) -> None:
    town = place.town
    web = town.activate("web")
    town.renew_when_asked()
    town.update()
    await town.settled()
    shown = web.identity
    for _ in range(2):  # the second time it shows the new one
        async with connected(place.of(shown)) as wire:
            wire.client.subscribe(SECRET, ["default", "ROOTCA"])
            first = (await wire.hear()).resources[0]
            assert first.name == "ROOTCA", "the bundle that vouches for the identity comes before it"
            identity = (await heard_of(wire, "default"))["default"]
            assert isinstance(identity, Identity)
            shown = identity
    check_identity(shown, town.ca.bundle, town.time)


async def test_the_server_shows_a_certificate_of_the_new_ca_under_the_same_root(place: Place) -> None:
    town = place.town
    root = TrustBundle(town.ca.root.public_bytes(Encoding.PEM))
    town.update()
    web = town.activate("web")
    context = client_context(web.identity, root)
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("127.0.0.1", place.port, ssl=context, server_hostname="")
    tls = writer.get_extra_info("ssl_object")
    shown = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True))
    check_issued_by(shown, town.ca.intermediate)
    writer.close()
    with suppress(ConnectionError, ssl.SSLError):
        await writer.wait_closed()


async def test_a_stream_ends_with_the_certificate_that_opened_it(place: Place) -> None:
    web = place.town.activate("web")
    async with connected(place.of(web.identity)) as wire:
        wire.client.subscribe(SECRET, ["default"])
        await wire.hear()
        place.town.time += timedelta(hours=25)
        # Any change makes the stream look.
        place.town.mesh.replace_identities({("web", web.uuid): place.town.identity("web", web.uuid)})
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await wire.hear()
    assert (caught.value.code(), "expired" in caught.value.details()) == (grpc.StatusCode.UNAVAILABLE, True)


async def test_a_rejected_push_is_counted_and_shown_and_not_repeated(place: Place) -> None:
    web = place.town.activate("web")
    async with connected(place.of(web.identity)) as wire:
        wire.client.subscribe(SECRET, ["default"])
        await wire.hear(nack="-----BEGIN PRIVATE KEY-----\nabc")
        wire.client.subscribe(SECRET, ["ROOTCA"])
        assert [r.name for r in (await wire.hear()).resources] == ["ROOTCA"]
        (status,) = place.server.status()
    assert (status.client, status.types[SECRET].error) == (f"web/{web.uuid}", "[redacted]")
    assert set(status.types[SECRET].nacked) == {"default"}
    assert place.metric("marblemesh_xds_nacks_total", type="secret") == 1


@pytest.mark.parametrize(
    ("method", "body", "code"),
    [
        (f"/{ADS}/StreamAggregatedResources", b"", grpc.StatusCode.INVALID_ARGUMENT),
        (f"/{ADS}/DeltaAggregatedResources", b"\x0a\x05x", grpc.StatusCode.INVALID_ARGUMENT),
        (f"/{ADS}/Unknown", b"", grpc.StatusCode.UNIMPLEMENTED),
        (f"/{SDS}/StreamSecrets", b"\x22\x01x", grpc.StatusCode.INVALID_ARGUMENT),
    ],
    ids=["no type", "no protobuf", "no such method", "wrong type"],
)
async def test_bad_requests_end_their_stream_with_a_plain_status(
    place: Place, method: str, body: bytes, code: grpc.StatusCode
) -> None:
    web = place.town.activate("web")
    async with place.of(web.identity) as channel:
        found, _ = await end_of(channel.stream_stream(method), body)
        assert found is code


async def test_one_client_cannot_open_streams_without_end(place: Place) -> None:
    web = place.town.activate("web")
    async with place.of(web.identity) as channel:
        calls = [channel.stream_stream(f"/{SDS}/DeltaSecrets")() for _ in range(XdsLimits().streams_per_client + 1)]
        ended = [asyncio.ensure_future(call.code()) for call in calls]
        done, waiting = await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED, timeout=10)
        assert {task.result() for task in done} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        for call in calls:
            call.cancel()
        await asyncio.gather(*waiting)


async def test_stopping_tells_clients_to_come_back(place: Place) -> None:
    web = place.town.activate("web")
    async with connected(place.of(web.identity)) as wire:
        wire.client.subscribe(SECRET, ["default"])
        await wire.hear()
        await place.server.stop()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await wire.hear()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_gateway_that_the_manifest_adds_while_we_run_gets_through(place: Place) -> None:
    certificate, key = gateway_certificate(x509.UniformResourceIdentifier("spiffe://new.example/gateway"))
    added = manifest(TLS, {"web": ["web"], "voting": ["voting"]}, {"new": certificate})
    place.town.mesh.configure(added, place.town.ca)
    web = place.town.activate("web")
    async with connected(place.of(web.identity)) as wire:  # the push means that the server has seen the change
        wire.client.subscribe(SECRET, ["default"])
        await wire.hear()
        place.town.mesh.replace_identities({("web", web.uuid): place.town.identity("web", web.uuid)})
        await wire.hear()
    async with connected(place.channel(certificate.public_bytes(Encoding.PEM), key)) as wire:
        wire.client.subscribe(CLUSTER, ["*"])
        assert len((await wire.hear()).resources) == 2


async def test_a_taken_port_is_said_at_once(place: Place) -> None:
    other = xds_server(place.town.mesh)
    with pytest.raises(OSError, match="cannot listen on"):
        await other.start("127.0.0.1", place.port, place.town.ca)


class Broken(Mesh):
    """Fails with a secret in its text."""

    def view(self, client: Client) -> View:
        raise RuntimeError(f"secret=hunter2 of {client}")


async def test_the_text_of_a_bug_stays_inside() -> None:
    town = Town(manifest(TLS, {"web": ["web"], "voting": ["voting"]}))
    broken = Broken(lambda: town.time)
    broken.configure(town.manifest, town.ca)
    web = town.activate("web")
    broken.activated(web)
    registry = CollectorRegistry()
    server = xds_server(broken, registry)
    here = Place(town, server, await server.start("127.0.0.1", 0, town.ca), registry)
    try:
        async with connected(here.of(web.identity)) as wire:
            error = await refusal(wire)
    finally:
        await server.stop()
    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    assert here.metric("marblemesh_xds_failures_total", reason="internal") >= 1
