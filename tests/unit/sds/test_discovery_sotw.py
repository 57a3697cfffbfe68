# SPDX-License-Identifier: Apache-2.0
"""State of the world, server side: each test is a transcript of one stream."""

from __future__ import annotations

import pytest

from sds.discovery import Kind, ProtocolError
from sds.discovery_types import NOT_FOUND, PERMISSION_DENIED
from sds.resources import CLUSTER, SECRET
from tests.kit.discovery import SotwClient, view


def heard(client: SotwClient) -> tuple[str, tuple[str, ...]]:
    said = client.hear()
    assert said is not None
    return said.type, said.content


def take_and_ack(client: SotwClient, *names: str) -> tuple[str, ...]:
    said = client.hear()
    assert said is not None
    client.ask(said.type, *names, nonce=said.nonce, version=said.version)
    return said.content


def test_a_first_request_without_names_gets_all_clusters() -> None:
    client = SotwClient(view(CDS={"b": "1", "a": "1"}))
    client.ask("CDS")
    assert heard(client) == ("CDS", ("a@1", "b@1"))


def test_a_first_request_for_listeners_is_answered_even_if_there_are_none() -> None:
    client = SotwClient(view())
    client.ask("LDS")
    assert heard(client) == ("LDS", ())


def test_no_name_means_nothing_for_secrets() -> None:
    client = SotwClient(view(SDS={"default": "1"}))
    client.ask("SDS")
    assert client.hear() is None


def test_an_ack_is_not_answered() -> None:
    client = SotwClient(view(SDS={"default": "1"}))
    client.ask("SDS", "default")
    assert take_and_ack(client, "default") == ("default@1",)
    assert client.hear() is None
    assert client.stream.status[SECRET].acked == {"default": "1"}


def test_the_first_request_of_a_stream_is_answered_although_the_client_names_our_version_and_an_old_nonce() -> None:
    client = SotwClient(view(SDS={"default": "1"}))
    assert client.ask("SDS", "default", nonce="of another stream", version="1").kind is Kind.SUBSCRIBE
    assert heard(client) == ("SDS", ("default@1",))


def test_a_change_is_pushed_and_an_unchanged_view_is_not() -> None:
    client = SotwClient(view(SDS={"default": "1"}))
    client.ask("SDS", "default")
    take_and_ack(client, "default")
    client.stream.update(view(SDS={"default": "1"}))
    assert client.hear() is None
    client.stream.update(view(SDS={"default": "2"}))
    assert heard(client) == ("SDS", ("default@2",))


def test_every_secret_travels_in_a_response_of_its_own_one_after_the_other() -> None:
    client = SotwClient(view(SDS={"a": "1", "b": "1", "c": "1"}))
    client.ask("SDS", "c", "b", "a")
    said = client.hear()
    assert said is not None
    assert said.content == ("a@1",)
    assert client.hear() is None, "the second one waits for the ACK of the first"
    client.ask("SDS", "a", "b", "c", nonce=said.nonce)
    assert take_and_ack(client, "a", "b", "c") == ("b@1",)
    assert take_and_ack(client, "a", "b", "c") == ("c@1",)
    assert client.hear() is None


def test_a_name_that_does_not_exist_is_answered_with_an_error_alone_and_pushed_when_it_appears() -> None:
    """An empty response is a no-op to clients that do not know the field (xDS TP3)."""
    client = SotwClient(view())
    client.ask("SDS", "late")
    said = client.hear()
    assert said is not None
    assert (said.content, said.errors) == ((), (("late", NOT_FOUND),))
    client.ask("SDS", "late", nonce=said.nonce)
    assert client.hear() is None, "said once"
    assert client.stream.status[SECRET].missing == ("late",)
    client.stream.update(view(SDS={"late": "1"}))
    assert heard(client) == ("SDS", ("late@1",))


def test_an_added_name_is_answered_and_the_known_one_is_not_repeated() -> None:
    client = SotwClient(view(SDS={"a": "1", "b": "1"}))
    client.ask("SDS", "a")
    said = client.hear()
    assert said is not None
    client.ask("SDS", "a", "b", nonce=said.nonce)
    assert heard(client) == ("SDS", ("b@1",))


def test_a_name_that_is_dropped_and_asked_for_again_is_sent_again() -> None:
    client = SotwClient(view(SDS={"a": "1", "b": "1"}))
    client.ask("SDS", "a")
    first = client.hear()
    assert first is not None
    client.ask("SDS", "b", nonce=first.nonce)
    second = client.hear()
    assert second is not None
    assert second.content == ("b@1",)
    client.ask("SDS", "a", "b", nonce=second.nonce)
    assert heard(client) == ("SDS", ("a@1",))


def test_a_stale_nonce_is_no_ack_but_its_names_count() -> None:
    client = SotwClient(view(SDS={"a": "1", "b": "1"}))
    client.ask("SDS", "a")
    said = client.hear()
    assert said is not None
    assert client.ask("SDS", "a", "b", nonce="stale").kind is Kind.STALE
    assert client.hear() is None, "the first response is not acknowledged yet"
    client.ask("SDS", "a", "b", nonce=said.nonce)
    assert heard(client) == ("SDS", ("b@1",))


def test_an_error_makes_a_nack_whatever_the_version_says() -> None:
    client = SotwClient(view(SDS={"a": "1"}))
    client.ask("SDS", "a")
    said = client.hear()
    assert said is not None
    receipt = client.ask("SDS", "a", nonce=said.nonce, version=said.version, error="no such curve")
    assert (receipt.kind, receipt.error) == (Kind.NACK, "no such curve")


def test_a_refused_version_is_not_sent_again_until_the_content_changes() -> None:
    client = SotwClient(view(SDS={"a": "1"}))
    client.ask("SDS", "a")
    take_and_ack(client, "a")
    client.stream.update(view(SDS={"a": "2"}))
    said = client.hear()
    assert said is not None
    client.ask("SDS", "a", nonce=said.nonce, version="1", error="bad")
    client.stream.update(view(SDS={"a": "2"}))
    assert client.hear() is None
    status = client.stream.status[SECRET]
    assert (status.acked, status.nacked, status.error) == ({"a": "1"}, {"a": "2"}, "bad")
    client.stream.update(view(SDS={"a": "3"}))
    assert heard(client) == ("SDS", ("a@3",))


def test_going_back_to_the_last_good_version_is_sent_because_a_rejecting_client_may_hold_anything() -> None:
    client = SotwClient(view(CDS={"a": "1"}))
    client.ask("CDS")
    take_and_ack(client)
    client.stream.update(view(CDS={"a": "2"}))
    said = client.hear()
    assert said is not None
    client.ask("CDS", nonce=said.nonce, error="bad")
    client.stream.update(view(CDS={"a": "1"}))
    assert heard(client) == ("CDS", ("a@1",))


def test_many_changes_while_a_response_is_under_way_make_one_push() -> None:
    client = SotwClient(view(CDS={"a": "1"}))
    client.ask("CDS")
    said = client.hear()
    assert said is not None
    for version in "2345":
        client.stream.update(view(CDS={"a": version}))
        assert client.hear() is None
    client.ask("CDS", nonce=said.nonce)
    assert [s.content for s in client.hear_all()] == [("a@5",)]


def test_the_same_request_again_after_its_ack_asks_for_the_secrets_again() -> None:
    """Envoy does so when a listener changed and its new subscription is still empty."""
    client = SotwClient(view(SDS={"a": "1"}))
    client.ask("SDS", "a")
    said = client.hear()
    assert said is not None
    client.ask("SDS", "a", nonce=said.nonce)
    assert client.hear() is None
    client.ask("SDS", "a", nonce=said.nonce)
    assert take_and_ack(client, "a") == ("a@1",)
    assert client.hear() is None


def test_secrets_that_a_pushed_listener_names_are_sent_again_after_it() -> None:
    client = SotwClient(view(LDS={"l": "1 default"}, SDS={"default": "1", "other": "1"}))
    client.ask("LDS")
    take_and_ack(client)
    client.ask("SDS", "default", "other")
    take_and_ack(client, "default", "other")
    take_and_ack(client, "default", "other")
    client.stream.update(view(LDS={"l": "2 default"}, SDS={"default": "1", "other": "1"}))
    assert [(s.type, s.content) for s in client.hear_all()] == [("LDS", ("l@2",)), ("SDS", ("default@1",))]


def test_clusters_go_before_endpoints_before_secrets_before_listeners() -> None:
    before = view(LDS={"l": "1"}, CDS={"c": "1"}, EDS={"e": "1"}, SDS={"s": "1"})
    client = SotwClient(before)
    for kind, names in (("LDS", ()), ("SDS", ("s",)), ("EDS", ("e",)), ("CDS", ())):
        client.ask(kind, *names)
    assert [s.type for s in client.hear_all()] == ["CDS", "EDS", "SDS", "LDS"]


def test_a_listener_does_not_overtake_a_cluster_that_waits_for_an_ack() -> None:
    client = SotwClient(view(LDS={"l": "1"}, CDS={"c": "1"}))
    client.ask("CDS")
    under_way = client.hear()
    client.ask("LDS")
    take_and_ack(client)
    client.stream.update(view(LDS={"l": "2"}, CDS={"c": "2"}))
    assert client.hear() is None
    assert under_way is not None
    client.ask("CDS", nonce=under_way.nonce)
    assert [s.type for s in client.hear_all()] == ["CDS", "LDS"]


def test_a_listener_comes_after_all_secrets_that_are_due() -> None:
    """It is acknowledged only when it can serve, so that nobody is sent to a port without a certificate."""
    client = SotwClient(view(LDS={"l": "1"}, SDS={"ROOTCA": "1", "default": "1"}))
    client.ask("SDS", "ROOTCA", "default")
    client.ask("LDS")
    said = client.hear()
    assert said is not None
    assert said.content == ("ROOTCA@1",)
    assert client.hear() is None
    client.ask("SDS", "ROOTCA", "default", nonce=said.nonce)
    assert [s.content for s in client.hear_all()] == [("default@1",), ("l@1",)]


def test_a_cluster_goes_only_after_the_listener_that_used_it_was_replaced_and_acknowledged() -> None:
    client = SotwClient(view(LDS={"l": "1"}, CDS={"old": "1"}))
    client.ask("CDS")
    take_and_ack(client)
    client.ask("LDS")
    take_and_ack(client)
    client.stream.update(view(LDS={"l": "2"}, CDS={"new": "1"}))
    assert take_and_ack(client) == ("new@1", "old@1")
    listener = client.hear()
    assert listener is not None
    assert listener.content == ("l@2",)
    assert client.hear() is None
    client.ask("LDS", nonce=listener.nonce)
    assert take_and_ack(client) == ("new@1",)
    assert client.hear() is None


def test_a_rejected_listener_keeps_the_cluster_that_the_client_still_uses() -> None:
    client = SotwClient(view(LDS={"l": "1"}, CDS={"old": "1"}))
    client.ask("CDS")
    take_and_ack(client)
    client.ask("LDS")
    take_and_ack(client)
    client.stream.update(view(LDS={"l": "2"}, CDS={}))
    listener = client.hear()
    assert listener is not None
    client.ask("LDS", nonce=listener.nonce, error="no")
    assert client.hear() is None


def test_a_listener_that_is_gone_is_left_out_at_once() -> None:
    client = SotwClient(view(LDS={"a": "1", "b": "1"}))
    client.ask("LDS")
    take_and_ack(client)
    client.stream.update(view(LDS={"b": "1"}))
    assert take_and_ack(client) == ("b@1",)
    assert client.hear() is None


def test_a_secret_that_vanished_and_came_back_is_sent_again() -> None:
    client = SotwClient(view(SDS={"a": "1"}))
    client.ask("SDS", "a")
    take_and_ack(client, "a")
    client.stream.update(view())
    assert client.hear() is None
    client.stream.update(view(SDS={"a": "1"}))
    assert heard(client) == ("SDS", ("a@1",))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("*",), ("a@1", "b@1")),
        (("a",), ("a@1",)),
        (("*", "a"), ("a@1", "b@1")),
        (("missing",), ()),
    ],
)
def test_explicit_wildcards_and_names_for_clusters(names: tuple[str, ...], expected: tuple[str, ...]) -> None:
    client = SotwClient(view(CDS={"a": "1", "b": "1"}))
    client.ask("CDS", *names)
    assert heard(client) == ("CDS", expected)


def test_after_the_first_name_an_empty_list_means_nothing_any_more() -> None:
    client = SotwClient(view(CDS={"a": "1", "b": "1"}))
    client.ask("CDS")
    said = client.hear()
    assert said is not None
    client.ask("CDS", "a", nonce=said.nonce)
    assert take_and_ack(client) == ("a@1",), "the names replace the wildcard"
    assert heard(client) == ("CDS", ()), "an empty list is no wildcard now"


def test_a_wildcard_after_names_is_answered_with_everything_and_once() -> None:
    client = SotwClient(view(CDS={"a": "1", "b": "1"}))
    client.ask("CDS", "a")
    said = client.hear()
    assert said is not None
    client.ask("CDS", nonce=said.nonce)
    assert take_and_ack(client) == ()
    client.ask("CDS", "*")
    assert take_and_ack(client, "*") == ("a@1", "b@1")
    assert client.hear() is None


def test_versions_name_the_content_not_the_stream() -> None:
    versions = set()
    for _ in range(2):
        client = SotwClient(view(CDS={"a": "1", "b": "1"}))
        client.ask("CDS")
        said = client.hear()
        assert said is not None
        versions.add(said.version)
    assert len(versions) == 1


@pytest.mark.parametrize(
    ("type_url", "options", "status"),
    [
        ("", {}, "INVALID_ARGUMENT"),
        ("CDS", {"implied_type": SECRET}, "INVALID_ARGUMENT"),
        ("x" * 600, {}, "RESOURCE_EXHAUSTED"),
    ],
)
def test_requests_that_end_the_stream(type_url: str, options: dict[str, object], status: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        SotwClient(view(), **options).ask(type_url)
    assert caught.value.status == status


def test_the_type_may_be_left_out_on_a_stream_of_one_type() -> None:
    client = SotwClient(view(SDS={"a": "1"}), implied_type=SECRET)
    client.ask("", "a")
    assert heard(client) == ("SDS", ("a@1",))


def test_a_type_that_the_client_is_not_entitled_to_is_denied_and_the_stream_lives_on() -> None:
    client = SotwClient(view(SDS={"a": "1"}, CDS={"c": "1"}), entitled=(CLUSTER,))
    client.ask("SDS", "a")
    said = client.hear()
    assert said is not None
    assert (said.content, said.errors) == ((), (("a", PERMISSION_DENIED),))
    client.ask("CDS")
    assert heard(client) == ("CDS", ("c@1",))


@pytest.mark.parametrize("data", [b"\x0a\x05ab", b"\xff" * 20, b"\x0a\x01\xff"], ids=["cut", "noise", "not utf-8"])
def test_what_is_no_request_ends_the_stream(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a valid discovery request"):
        SotwClient(view()).stream.receive_bytes(data)


def test_bounds_on_names_types_and_size() -> None:
    for names in (["n" * 513], [""], [str(i) for i in range(4097)]):
        with pytest.raises(ProtocolError):
            SotwClient(view()).ask("SDS", *names)
    client = SotwClient(view())
    for number in range(32):
        client.ask(f"type{number}")
    with pytest.raises(ProtocolError):
        client.ask("one more")
    with pytest.raises(ProtocolError) as caught:
        client.stream.receive_bytes(bytes(4 * 1024 * 1024 + 1))
    assert caught.value.status == "RESOURCE_EXHAUSTED"
