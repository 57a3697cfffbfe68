# SPDX-License-Identifier: Apache-2.0
"""Incremental, server side: each test is a transcript of one stream."""

from __future__ import annotations

import pytest

from sds.discovery import Kind, ProtocolError
from sds.discovery_types import MAX_RESPONSE_BYTES, NOT_FOUND, PERMISSION_DENIED
from sds.resources import CLUSTER, LISTENER, SECRET, Resource
from sds.wire import discovery_pb2
from tests.kit.discovery import IncrementalClient, Said, view


def take(client: IncrementalClient) -> Said:
    said = client.hear()
    assert said is not None
    return said


def take_and_ack(client: IncrementalClient) -> Said:
    said = take(client)
    client.ask(said.type, nonce=said.nonce)
    return said


def settled(**types: dict[str, str]) -> IncrementalClient:
    """A client that has asked for all listeners and clusters, and for every secret and endpoint by name."""
    client = IncrementalClient(view(**types))
    for kind in ("CDS", "EDS", "SDS", "LDS"):
        if kind in types:
            client.ask(kind, *(types[kind] if kind in ("EDS", "SDS") else ()))
    while (said := client.hear()) is not None:
        client.ask(said.type, nonce=said.nonce)
    return client


def test_a_first_request_without_names_gets_all_listeners_and_no_secrets() -> None:
    client = IncrementalClient(view(LDS={"b": "1", "a": "1"}, SDS={"default": "1"}))
    client.ask("LDS")
    client.ask("SDS")
    assert [s.content for s in client.hear_all()] == [("a@1", "b@1")]


def test_the_first_wildcard_is_answered_even_if_there_is_nothing() -> None:
    client = IncrementalClient(view())
    client.ask("CDS")
    assert take(client).content == ()


def test_only_what_changed_is_sent() -> None:
    client = settled(CDS={"a": "1", "b": "1"})
    client.stream.update(view(CDS={"a": "1", "b": "2"}))
    assert take(client).content == ("b@2",)


def test_what_does_not_exist_is_answered_at_once_and_stays_subscribed() -> None:
    client = IncrementalClient(view())
    client.ask("SDS", "late")
    said = take_and_ack(client)
    assert (said.content, said.removed, said.errors) == ((), ("late",), (("late", NOT_FOUND),))
    assert client.hear() is None
    client.stream.update(view(SDS={"late": "1"}))
    assert take(client).content == ("late@1",)


def test_a_forbidden_type_is_answered_with_permission_denied_and_the_stream_lives_on() -> None:
    client = IncrementalClient(view(SDS={"default": "1"}, CDS={"a": "1"}), entitled=(CLUSTER,))
    client.ask("SDS", "default")
    assert take_and_ack(client).errors == (("default", PERMISSION_DENIED),)
    client.ask("CDS")
    assert take(client).content == ("a@1",)


def test_a_name_that_is_subscribed_to_again_is_answered_again() -> None:
    client = settled(SDS={"a": "1"})
    client.ask("SDS", "a")
    assert take(client).content == ("a@1",)


def test_dropped_names_are_not_pushed_and_not_answered() -> None:
    client = settled(SDS={"a": "1"})
    client.ask("SDS", drop=["a"])
    client.stream.update(view(SDS={"a": "2"}))
    assert client.hear() is None


def test_a_name_in_both_lists_is_dropped() -> None:
    """Some clients say so that they want nothing, not everything."""
    client = IncrementalClient(view(CDS={"a": "1"}))
    client.ask("CDS", "*", drop=["*"])
    assert client.hear() is None


def test_changes_of_the_subscription_count_although_the_nonce_is_stale() -> None:
    client = settled(SDS={"a": "1"})
    client.stream.update(view(SDS={"a": "1", "b": "1"}))
    assert client.ask("SDS", "b", nonce="stale").kind is Kind.STALE
    assert take(client).content == ("b@1",)


def test_a_dropped_name_that_the_wildcard_covers_is_answered() -> None:
    client = IncrementalClient(view(CDS={"a": "1"}))
    client.ask("CDS", "*", "a", "gone")
    take_and_ack(client)
    client.ask("CDS", drop=["a"])
    assert take_and_ack(client).content == ("a@1",)
    client.ask("CDS", drop=["gone"])
    assert take(client).removed == ("gone",)


def test_adding_a_name_keeps_the_legacy_wildcard_until_it_is_dropped() -> None:
    client = IncrementalClient(view(CDS={"a": "1", "b": "1"}))
    client.ask("CDS")
    take_and_ack(client)
    client.ask("CDS", "a")
    take_and_ack(client)
    client.stream.update(view(CDS={"a": "1", "b": "2"}))
    assert take_and_ack(client).content == ("b@2",)
    client.ask("CDS", drop=["*"])
    client.stream.update(view(CDS={"a": "2", "b": "3"}))
    assert take(client).content == ("a@2",)


def test_a_reconnecting_client_is_not_sent_clusters_that_it_holds_and_told_what_is_gone() -> None:
    client = IncrementalClient(view(CDS={"same": "1", "new": "2"}))
    client.ask("CDS", "*", holds={"same": "1", "new": "1", "gone": "1"})
    said = take_and_ack(client)
    assert said.content == ("new@2",)
    assert take(client).removed == ("gone",)


def test_a_reconnecting_client_is_always_sent_its_secrets() -> None:
    """It may hold them and still have a listener that waits for them."""
    client = IncrementalClient(view(SDS={"default": "1"}))
    client.ask("SDS", "default", holds={"default": "1"})
    assert take(client).content == ("default@1",)


def test_every_secret_travels_in_a_response_of_its_own() -> None:
    client = IncrementalClient(view(SDS={"a": "1", "b": "1"}))
    client.ask("SDS", "a", "b", "missing")
    assert take_and_ack(client).content == ("a@1",)
    assert take_and_ack(client).content == ("b@1",)
    assert client.hear() is None


def test_a_refused_secret_is_not_repeated_and_its_neighbours_arrive() -> None:
    client = IncrementalClient(view(SDS={"a": "1", "b": "1"}))
    client.ask("SDS", "a", "b")
    said = take(client)
    assert client.ask("SDS", nonce=said.nonce, error="bad").kind is Kind.NACK
    assert take_and_ack(client).content == ("b@1",)
    assert client.hear() is None
    assert client.stream.status[SECRET].nacked == {"a": "1"}
    client.stream.update(view(SDS={"a": "2", "b": "1"}))
    assert take_and_ack(client).content == ("a@2",)
    assert client.stream.status[SECRET].nacked == {}


def test_a_refused_response_is_taken_apart_once_to_find_the_bad_resource() -> None:
    client = IncrementalClient(view(CDS={"a": "1", "bad": "1", "c": "1"}))
    client.ask("CDS")
    client.ask("CDS", nonce=take(client).nonce, error="bad is bad")
    heard = []
    while (said := client.hear()) is not None:
        heard.append(said.content)
        client.ask("CDS", nonce=said.nonce, error="no" if said.content == ("bad@1",) else None)
    assert heard == [("a@1",), ("bad@1",), ("c@1",)]
    status = client.stream.status[CLUSTER]
    assert (status.acked, status.nacked) == ({"a": "1", "c": "1"}, {"bad": "1"})


def test_removals_in_a_refused_response_are_tried_once_more_alone() -> None:
    client = settled(LDS={"a": "1", "b": "1"})
    client.stream.update(view(LDS={"a": "2"}))
    said = take(client)
    assert (said.content, said.removed) == (("a@2",), ("b",))
    client.ask("LDS", nonce=said.nonce, error="a is bad")
    again = take_and_ack(client)
    assert (again.content, again.removed) == ((), ("b",))
    alone = take(client)
    client.ask("LDS", nonce=alone.nonce, error="a is bad")
    assert client.hear() is None
    assert client.stream.status[LISTENER].nacked == {"a": "2"}


def test_secrets_and_endpoints_named_by_a_pushed_parent_are_sent_again() -> None:
    client = settled(LDS={"l": "1 default"}, CDS={"c": "1 eds1"}, EDS={"eds1": "1"}, SDS={"default": "1"})
    client.stream.update(view(LDS={"l": "2 default"}, CDS={"c": "2 eds1"}, EDS={"eds1": "1"}, SDS={"default": "1"}))
    order = [(s.type, s.content) for s in client.hear_all()]
    assert order == [("CDS", ("c@2",)), ("EDS", ("eds1@1",)), ("LDS", ("l@2",)), ("SDS", ("default@1",))]


def test_a_removal_of_a_cluster_waits_for_the_listener_and_one_of_endpoints_for_the_cluster() -> None:
    client = settled(LDS={"l": "1"}, CDS={"c": "1"}, EDS={"c": "1"})
    client.stream.update(view(LDS={"l": "2"}))
    listener = take(client)
    assert listener.content == ("l@2",)
    assert client.hear() is None
    client.ask("LDS", nonce=listener.nonce)
    cluster = take(client)
    assert (cluster.type, cluster.removed) == ("CDS", ("c",))
    assert client.hear() is None
    client.ask("CDS", nonce=cluster.nonce)
    said = take(client)
    assert (said.type, said.removed, said.errors) == ("EDS", ("c",), (("c", NOT_FOUND),))


def test_large_sets_are_split_over_several_responses() -> None:
    body = bytes(MAX_RESPONSE_BYTES // 2)
    clusters = {name: Resource(CLUSTER, name, "1", body) for name in "abcde"}
    client = IncrementalClient({CLUSTER: clusters})
    client.ask("CDS")
    heard = []
    while (said := client.hear()) is not None:
        heard.append(len(said.content))
        client.ask("CDS", nonce=said.nonce)
    assert heard == [2, 2, 1]


def test_bounds_on_names_over_several_requests() -> None:
    client = IncrementalClient(view())
    client.ask("SDS", *(f"a{i}" for i in range(4096)))
    with pytest.raises(ProtocolError):
        client.ask("SDS", "one more")


def test_an_unknown_type_is_answered_like_an_empty_one() -> None:
    client = IncrementalClient(view())
    client.ask("?", "name")
    said = take(client)
    assert (said.removed, said.errors) == (("name",), (("name", NOT_FOUND),))


def test_a_missing_filter_is_never_called_removed() -> None:
    """An Envoy would take the filter out of its listeners, and let traffic pass without it."""
    client = IncrementalClient(view())
    client.ask("ECDS", "filter")
    said = take_and_ack(client)
    assert (said.removed, said.errors) == ((), (("filter", NOT_FOUND),))
    assert client.hear() is None


def test_a_name_that_is_somebody_elses_is_denied_whether_it_exists_or_not() -> None:
    client = IncrementalClient(view(SDS={"mine": "1"}), denied=lambda kind, name: kind == SECRET and name == "theirs")
    client.ask("SDS", "mine", "theirs", "nobodys")
    said = take(client)
    assert said.content == ("mine@1",)
    assert said.errors == (("nobodys", NOT_FOUND), ("theirs", PERMISSION_DENIED))


def test_many_missing_names_are_answered_in_responses_that_grpc_clients_accept() -> None:
    client = IncrementalClient(view())
    names = [f"{number:04}{'x' * 508}" for number in range(4096)]
    client.ask("SDS", *names)
    heard: list[str] = []
    while (body := client.stream.take()) is not None:
        assert len(body) < 4 * 1024 * 1024
        response = discovery_pb2.DeltaDiscoveryResponse.FromString(body)
        heard += response.removed_resources
        client.ask("SDS", nonce=response.nonce)
    assert heard == names
