# SPDX-License-Identifier: Apache-2.0
"""What users of the manifest may see of the xDS port's clients, with real streams of grpcio's client behind it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sds.resources import CLUSTER, ENDPOINT, LISTENER, SECRET
from sds.wire.discovery_pb2 import DiscoveryRequest
from tests.kit.fake_operations import FakeOperations
from tests.kit.xds_port import ADS, Place, ask_whole, connected, opened
from xds_server import client_api_xds
from xds_server.http_dispatch import Request
from xds_server.http_json import Reply

ALICE, MALLORY = b"alice's certificate", b"mallory's certificate"
SOTW = f"/{ADS}/StreamAggregatedResources"


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with opened() as it:
        yield it


async def get(place: Place, what: str, *clients: str, user: bytes | None = ALICE) -> Reply:
    table = client_api_xds.routes(FakeOperations(users={ALICE}), place.server)
    route = table["GET", f"/api/v2/xds/{what}"]
    query = tuple(("client", client) for client in clients)
    request = Request(query, b"", () if user is None else (user,))
    assert route.admit is not None
    return route.admit(request) or await route.answer(request)


async def data(place: Place, what: str, *clients: str) -> Any:
    reply = await get(place, what, *clients)
    assert reply.status == 200
    return json.loads(reply.body)["data"]


@pytest.mark.parametrize("what", ["status", "dump"])
@pytest.mark.parametrize("user", [None, MALLORY])
async def test_who_is_no_user_is_told_how_to_become_one(place: Place, what: str, user: bytes | None) -> None:
    reply = await get(place, what, user=user)
    assert reply.status == 401
    assert "connect with the certificate and the key of a user whom the manifest names" in reply.body.decode()


async def test_without_streams_there_is_nothing_to_tell(place: Place) -> None:
    assert await data(place, "status") == {"total": 0, "streams": [], "withheld": []}
    assert await data(place, "dump") == {"total": 0, "streams": []}


async def nack(call: Any, response: Any, text: str) -> None:
    request = DiscoveryRequest(
        type_url=response.type_url,
        resource_names=["default"],
        response_nonce=response.nonce,
        error_detail={"code": 13, "message": text},
    )
    await call.write(request.SerializeToString())


async def test_the_status_says_who_has_what_and_why_not_the_worst_first(place: Place) -> None:
    web, voting = place.town.activate("web"), place.town.activate("voting")
    async with connected(place.of(voting.identity), node_id="worker 7") as good, place.of(web.identity) as channel:
        good.client.subscribe(LISTENER, ["*"])
        await good.hear()
        good.client.subscribe(SECRET, ["default"])
        await good.hear()
        good.client.subscribe(ENDPOINT, ["outbound|voting|8081"])
        await good.hear()  # so that the answers before have arrived
        bad = channel.stream_stream(SOTW)()
        await ask_whole(bad, CLUSTER)
        found = await data(place, "status")
    assert found["total"] == 2
    first, second = found["streams"]
    assert (first["client"], first["role"]) == (f"web/{web.uuid}", "marble")
    assert (first["method"], second["method"]) == ("StreamAggregatedResources", "DeltaAggregatedResources")
    assert (second["client"], second["node"]) == (f"voting/{voting.uuid}", "worker 7")
    assert [(row["type"], row["state"], row["synced"]) for row in first["types"]] == [("cluster", "stale", 0)]
    types = {row["type"]: (row["state"], row["resources"], row["synced"]) for row in second["types"]}
    assert (types["listener"], types["secret"]) == (("synced", 1, 1), ("synced", 1, 1))
    assert all(row["lastPush"] is not None for row in second["types"])


async def test_a_rejection_is_shown_with_its_redacted_reason(place: Place) -> None:
    web = place.town.activate("web")
    async with place.of(web.identity) as channel:
        call = channel.stream_stream(SOTW)()
        await nack(call, await ask_whole(call, SECRET, ["default"]), f"no: {web.identity.key.pem.decode()}")
        await ask_whole(call, ENDPOINT, ["outbound|voting|8081"])  # so that the one before has arrived
        other = channel.stream_stream(SOTW)()
        await ask_whole(other, SECRET, ["nobody", "default"])
        found = await data(place, "status", f"web/{web.uuid}")
    rejected, waiting = ({row["type"]: row for row in stream["types"]}["secret"] for stream in found["streams"])
    assert (rejected["state"], rejected["rejected"], rejected["reason"]) == ("rejected", ["default"], "no: [redacted]")
    assert (waiting["state"], waiting["notFound"]) == ("stale", ["nobody"])


async def test_the_dump_has_content_but_never_that_of_a_secret(place: Place) -> None:
    web = place.town.activate("web")
    async with connected(place.of(web.identity)) as wire:
        for type_url, names in ((LISTENER, ["*"]), (CLUSTER, ["*"]), (SECRET, ["default", "ROOTCA"])):
            wire.client.subscribe(type_url, names)
            await wire.hear()
        await wire.hear()  # the second secret
        reply = await get(place, "dump")
    found = json.loads(reply.body)["data"]
    (stream,) = found["streams"]
    types = {row["type"]: {r["name"]: r for r in row["resources"]} for row in stream["types"]}
    assert set(types["secret"]) == {"default", "ROOTCA"}
    assert all("content" not in secret and secret["size"] > 0 for secret in types["secret"].values())
    assert b"PRIVATE" not in reply.body
    assert b"BEGIN" not in reply.body
    listener = types["listener"]["inbound|8080"]
    assert listener["version"] == listener["ackedVersion"]
    tls = listener["content"]["filter_chains"][0]["transport_socket"]["typed_config"]
    assert tls["@type"].endswith("tls.v3.DownstreamTlsContext")
    assert tls["require_client_certificate"] is True
    assert types["cluster"]["outbound|voting|8081"]["content"]["eds_cluster_config"]["eds_config"]["ads"] == {}


async def test_names_of_types_instances_and_gateways_limit_what_is_told(place: Place) -> None:
    one, two, other = place.town.activate("web"), place.town.activate("web"), place.town.activate("voting")
    async with (
        connected(place.of(one.identity)) as a,
        connected(place.of(two.identity)) as b,
        connected(place.of(other.identity)) as c,
        connected(place.edge()) as d,
    ):
        for wire in (a, b, c, d):
            wire.client.subscribe(CLUSTER, ["*"])
            await wire.hear()
        for clients, total in ((("web",), 2), ((f"web/{one.uuid}",), 1), (("voting", "edge"), 2), (("we",), 0)):
            for what in ("status", "dump"):
                assert (await data(place, what, *clients))["total"] == total


async def test_an_answer_has_a_bound_and_says_how_many_there_are(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_api_xds, "MAX_STREAMS", 1)
    web, voting = place.town.activate("web"), place.town.activate("voting")
    async with connected(place.of(web.identity)) as one, connected(place.of(voting.identity)) as other:
        for wire in (one, other):
            wire.client.subscribe(LISTENER, ["*"])
            await wire.hear()
        for what in ("status", "dump"):
            found = await data(place, what)
            assert (found["total"], len(found["streams"])) == (2, 1)
        monkeypatch.setattr(client_api_xds, "MAX_DUMP", 100)
        assert (await data(place, "dump"))["streams"] == []
