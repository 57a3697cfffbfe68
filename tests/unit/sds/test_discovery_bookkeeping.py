# SPDX-License-Identifier: Apache-2.0
"""What a stream tells its owner beside the responses: names that do not exist, the node, how much is asked for."""

from __future__ import annotations

import pytest

from sds.discovery import ProtocolError, SotwStream
from sds.discovery_types import MAX_NODE_BYTES
from sds.resources import CLUSTER, SECRET
from sds.wire.discovery_pb2 import DiscoveryRequest, Node
from tests.kit.discovery import IncrementalClient, SotwClient, view

Clients = type[SotwClient] | type[IncrementalClient]
both = pytest.mark.parametrize("client", [SotwClient, IncrementalClient])


@both
def test_names_that_do_not_exist_are_counted_when_they_are_asked_for_and_not_again(client: Clients) -> None:
    one = client(view(SDS={"default": "1"}))
    assert one.ask("SDS", "default", "ROOTCA", "nobody").missing == 2
    said = one.hear()
    assert said is not None
    answer = one.ask("SDS", *(("default", "ROOTCA", "nobody") if client is SotwClient else ()), nonce=said.nonce)
    assert (answer.missing, answer.forbidden) == (0, False)


@both
def test_names_of_a_type_that_the_client_may_not_see_are_told_apart(client: Clients) -> None:
    receipt = client(view(SDS={"default": "1"}), entitled=[CLUSTER]).ask("SDS", "default")
    assert (receipt.missing, receipt.forbidden) == (1, True)


@both
def test_the_status_says_what_there_is_now_beside_what_was_sent(client: Clients) -> None:
    one = client(view(SDS={"default": "1", "other": "1"}))
    one.ask("SDS", "default")
    one.hear()
    one.stream.update(view(SDS={"default": "2", "other": "1"}))
    status = one.stream.status[SECRET]
    assert (dict(status.current), dict(status.sent)) == ({"default": "2"}, {"default": "1"})


@both
def test_subscriptions_count_names_and_a_wildcard_as_one(client: Clients) -> None:
    one = client(view(SDS={"default": "1"}))
    one.ask("CDS")
    one.ask("SDS", "default", "ROOTCA")
    assert dict(one.stream.subscriptions) == {CLUSTER: 1, SECRET: 2}


def test_what_a_client_says_of_itself_is_kept_without_the_fields_that_nobody_reads() -> None:
    stream = SotwStream(identifier="test", nonce_prefix="n")
    node = Node(id="envoy")
    node.MergeFromString(b"\x4a" + b"\xe0\xd4\x03" + bytes(60_000))  # field 9, Node.extensions of a stock Envoy
    stream.receive_bytes(DiscoveryRequest(type_url=SECRET, node=node).SerializeToString())
    assert stream.node == Node(id="envoy")
    assert stream.node.ByteSize() < 100


def test_a_node_of_any_size_is_refused() -> None:
    stream = SotwStream(identifier="test", nonce_prefix="n")
    request = DiscoveryRequest(type_url=SECRET, node=Node(id="x" * MAX_NODE_BYTES))
    with pytest.raises(ProtocolError, match="node of") as caught:
        stream.receive_bytes(request.SerializeToString())
    assert caught.value.status == "INVALID_ARGUMENT"
