# SPDX-License-Identifier: Apache-2.0
"""The client's end of incremental discovery."""

from __future__ import annotations

import pytest

from sds.discovery import DeltaStream, ProtocolError
from sds.discovery_client import DeltaClient, Update
from sds.resources import LISTENER, SECRET
from sds.wire import discovery_pb2
from tests.kit.discovery import view

NODE = discovery_pb2.Node(id="me")


def request(client: DeltaClient) -> discovery_pb2.DeltaDiscoveryRequest:
    body = client.take()
    assert body is not None
    return discovery_pb2.DeltaDiscoveryRequest.FromString(body)


def talk(client: DeltaClient, stream: DeltaStream) -> list[Update]:
    """Deliver everything in both directions, ACK everything."""
    heard: list[Update] = []
    while True:
        while (body := client.take()) is not None:
            stream.receive_bytes(body)
        if (answer := stream.take()) is None:
            return heard
        heard.append(client.receive_bytes(answer))
        client.ack(heard[-1])


def test_the_node_is_on_the_first_request_of_a_stream_only() -> None:
    client = DeltaClient(NODE)
    client.subscribe(LISTENER, ["*"])
    client.subscribe(SECRET, ["default"])
    client.connected()
    assert [request(client).node.id, request(client).node.id] == ["me", ""]
    assert client.take() is None


def test_only_acknowledged_versions_are_named_after_a_reconnect() -> None:
    client = DeltaClient(NODE)
    client.subscribe(SECRET, ["a", "b"])
    stream = DeltaStream(identifier="t", nonce_prefix="1-")
    stream.update(view(SDS={"a": "1", "b": "1"}))
    client.connected()
    while (body := client.take()) is not None:
        stream.receive_bytes(body)
    answer = stream.take()
    assert answer is not None
    update = client.receive_bytes(answer)
    client.nack(update, "no")
    assert request(client).error_detail.message == "no"
    client.connected()
    assert dict(request(client).initial_resource_versions) == {}
    later = DeltaStream(identifier="t", nonce_prefix="2-")
    later.update(view(SDS={"a": "1", "b": "1"}))
    client.connected()
    talk(client, later)
    client.connected()
    assert dict(request(client).initial_resource_versions) == {"a": "1", "b": "1"}


def test_names_that_do_not_exist_come_as_removed_with_a_reason() -> None:
    client = DeltaClient(NODE)
    client.subscribe(SECRET, ["missing"])
    client.connected()
    stream = DeltaStream(identifier="t", nonce_prefix="1-")
    (update,) = talk(client, stream)
    assert update.removed == ("missing",)
    assert update.errors["missing"][0] == 5


def test_want_says_only_what_differs() -> None:
    client = DeltaClient(NODE)
    client.subscribe(SECRET, ["a", "b"])
    client.connected()
    request(client)
    client.want(SECRET, ["b", "c"])
    added, dropped = request(client), request(client)
    assert (list(added.resource_names_subscribe), list(dropped.resource_names_unsubscribe)) == (["c"], ["a"])
    client.want(SECRET, ["b", "c"])
    assert client.take() is None


def test_what_is_wanted_after_the_stream_began_is_asked_for_too() -> None:
    client = DeltaClient(NODE)
    assert client.take() is None
    client.connected()
    client.subscribe(LISTENER, ["*"])
    assert request(client).node.id == "me"


def test_a_type_may_be_added_while_the_stream_runs() -> None:
    client = DeltaClient(NODE)
    client.subscribe(LISTENER, ["*"])
    client.connected()
    request(client)
    client.subscribe(SECRET, ["default"])
    assert list(request(client).resource_names_subscribe) == ["default"]
    assert client.take() is None


@pytest.mark.parametrize(
    "response",
    [
        discovery_pb2.DeltaDiscoveryResponse(type_url="other", nonce="1"),
        discovery_pb2.DeltaDiscoveryResponse(type_url=SECRET),
        discovery_pb2.DeltaDiscoveryResponse(type_url=SECRET, nonce="1", resources=[{"name": "a"}]),
    ],
    ids=["type", "nonce", "wrong payload"],
)
def test_responses_that_cannot_be_followed(response: discovery_pb2.DeltaDiscoveryResponse) -> None:
    client = DeltaClient(NODE)
    client.subscribe(SECRET, ["a"])
    with pytest.raises(ProtocolError):
        client.receive_bytes(response.SerializeToString())


def test_a_resource_that_comes_twice_in_one_response_is_refused() -> None:
    client = DeltaClient(NODE)
    client.subscribe(SECRET, ["a"])
    response = discovery_pb2.DeltaDiscoveryResponse(type_url=SECRET, nonce="1")
    for _ in range(2):
        response.resources.add(name="a", version="1").resource.type_url = SECRET
    with pytest.raises(ProtocolError, match="repeated"):
        client.receive_bytes(response.SerializeToString())
