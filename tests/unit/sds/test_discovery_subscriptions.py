# SPDX-License-Identifier: Apache-2.0
"""What is asked for, as transcripts: names that come, go and come again; wildcards; what a returning client holds."""

from __future__ import annotations

import pytest

from sds.discovery import Kind
from sds.discovery_types import NOT_FOUND
from sds.resources import CLUSTER, SECRET
from tests.kit.discovery import IncrementalClient, Said, SotwClient, view

Client = SotwClient | IncrementalClient
both = pytest.mark.parametrize("kind", [SotwClient, IncrementalClient], ids=["sotw", "delta"])


def take(client: Client) -> Said:
    said = client.hear()
    assert said is not None
    return said


def contents(client: Client) -> list[tuple[str, ...]]:
    return [said.content for said in client.hear_all()]


# ---- both variants


@both
def test_names_in_an_ack_count_as_much_as_in_any_other_request(kind: type[Client]) -> None:
    client = kind(view(SDS={"a": "1", "b": "1"}))
    client.ask("SDS", "a")
    said = take(client)
    names = ("a", "b") if kind is SotwClient else ("b",)
    assert client.ask("SDS", *names, nonce=said.nonce).kind is Kind.ACK
    assert contents(client) == [("b@1",)]


@both
def test_the_nonce_of_one_type_answers_no_other(kind: type[Client]) -> None:
    client = kind(view(CDS={"c": "1"}, LDS={"l": "1"}))
    client.ask("CDS")
    client.ask("LDS")
    clusters, listeners = client.hear_all()
    assert client.ask("CDS", nonce=listeners.nonce).kind is Kind.STALE
    assert client.stream.status[CLUSTER].awaiting_ack
    assert client.ask("CDS", nonce=clusters.nonce).kind is Kind.ACK


@both
def test_everything_can_be_asked_for_by_name_and_wildcard_at_once(kind: type[Client]) -> None:
    client = kind(view(CDS={"a": "1", "b": "1"}))
    client.ask("CDS", "*", "a", "missing")
    said = take(client)
    assert (said.content, said.errors) == (("a@1", "b@1"), (("missing", NOT_FOUND),))


@both
def test_an_explicit_wildcard_is_everything_that_the_client_may_see_of_any_type(kind: type[Client]) -> None:
    client = kind(view(EDS={"a": "1", "b": "1"}))
    client.ask("EDS", "*")
    assert contents(client) == [("a@1", "b@1")]


@both
def test_a_name_that_goes_away_and_comes_back_as_it_was_is_sent_again(kind: type[Client]) -> None:
    client = kind(view(CDS={"a": "1"}))
    client.ask("CDS")
    client.ask("CDS", nonce=take(client).nonce)
    client.stream.update(view())
    client.ask("CDS", nonce=take(client).nonce)
    client.stream.update(view(CDS={"a": "1"}))
    assert contents(client) == [("a@1",)]


@both
def test_only_what_changed_of_endpoints_is_sent(kind: type[Client]) -> None:
    client = kind(view(EDS={"a": "1", "b": "1"}))
    client.ask("EDS", "a", "b")
    client.ask("EDS", *(("a", "b") if kind is SotwClient else ()), nonce=take(client).nonce)
    client.stream.update(view(EDS={"a": "1", "b": "2"}))
    assert contents(client) == [("b@2",)]


@both
def test_a_subscription_of_which_nothing_is_left_is_no_wildcard(kind: type[Client]) -> None:
    client = kind(view(CDS={"a": "1"}))
    client.ask("CDS", "a")
    said = take(client)
    if isinstance(client, SotwClient):
        client.ask("CDS", nonce=said.nonce)
        assert take(client).content == ()
    else:
        client.ask("CDS", drop=["a"], nonce=said.nonce)
        client.ask("CDS")
    client.stream.update(view(CDS={"a": "2", "b": "1"}))
    assert client.hear() is None


# ---- state of the world


def test_a_request_without_a_nonce_in_mid_stream_asks_for_the_secrets_again() -> None:
    client = SotwClient(view(SDS={"a": "1"}))
    client.ask("SDS", "a")
    client.ask("SDS", "a", nonce=take(client).nonce)
    client.ask("SDS", "a")
    assert contents(client) == [("a@1",)]


def test_an_envoy_that_asks_for_one_more_name_in_each_request_gets_each_once() -> None:
    """So it does at its start, before the first answer."""
    client = SotwClient(view(SDS={"a": "1", "b": "1", "c": "1"}))
    client.ask("SDS", "a")
    client.ask("SDS", "b", "a")
    client.ask("SDS", "c", "b", "a")
    heard = []
    while (said := client.hear()) is not None:
        heard += said.content
        client.ask("SDS", "c", "b", "a", nonce=said.nonce)
    assert heard == ["a@1", "b@1", "c@1"]


# ---- incremental


def reconnected(**held: dict[str, str]) -> IncrementalClient:
    client = IncrementalClient(view(CDS={"c": "1"}, EDS={"e": "1"}, SDS={"s": "1"}, LDS={"l": "1"}))
    for kind, versions in held.items():
        client.ask(kind, *({"CDS": ("*",), "LDS": ("*",)}.get(kind) or versions), holds=versions)
    return client


def test_a_returning_client_says_for_each_type_what_it_holds_and_is_sent_endpoints_and_secrets_all_the_same() -> None:
    """It may hold a version and have a cluster or listener that still waits for it."""
    client = reconnected(CDS={"c": "1"}, EDS={"e": "1"}, SDS={"s": "1"}, LDS={"l": "1"})
    heard = [(said.type, said.content) for said in client.hear_all()]
    assert heard == [("CDS", ()), ("EDS", ("e@1",)), ("SDS", ("s@1",)), ("LDS", ())]


def test_a_returning_client_without_a_wildcard_is_told_nothing_where_nothing_changed() -> None:
    client = IncrementalClient(view(CDS={"c": "1"}))
    client.ask("CDS", "c", holds={"c": "1"})
    assert client.hear() is None
    client.ask("CDS", "c")
    assert take(client).content == ("c@1",), "every later request is answered"


def test_what_is_held_counts_only_in_the_first_request_of_a_type() -> None:
    client = IncrementalClient(view(CDS={"c": "1"}))
    client.ask("CDS")
    client.ask("CDS", nonce=take(client).nonce)
    client.ask("CDS", holds={"c": "0", "gone": "1"})
    assert client.hear() is None
    assert client.stream.status[CLUSTER].sent == {"c": "1"}


def test_a_returning_client_that_holds_what_it_does_not_want_is_not_told_of_it() -> None:
    client = IncrementalClient(view(SDS={"s": "1"}))
    client.ask("SDS", "s", holds={"s": "1", "unwanted": "1"})
    said = take(client)
    assert (said.content, said.removed) == (("s@1",), ())
    assert client.stream.status[SECRET].sent == {"s": "1"}


def test_dropping_a_name_that_was_never_wanted_needs_no_answer() -> None:
    client = IncrementalClient(view(CDS={"a": "1"}))
    client.ask("CDS")
    client.ask("CDS", nonce=take(client).nonce)
    client.ask("CDS", drop=["never", "asked", "for"])
    assert client.hear() is None


def test_asking_for_the_wildcard_again_is_asking_for_everything_again() -> None:
    client = IncrementalClient(view(CDS={"a": "1"}))
    client.ask("CDS", "*")
    client.ask("CDS", nonce=take(client).nonce)
    client.ask("CDS", "*")
    assert contents(client) == [("a@1",)]


def test_what_was_dropped_and_wanted_again_while_it_was_under_way_is_taken_away_if_it_is_gone() -> None:
    client = IncrementalClient(view(LDS={"a": "1"}))
    client.ask("LDS")
    under_way = take(client)
    client.stream.update(view())
    client.ask("LDS", drop=["*"])
    client.ask("LDS", "*")
    client.ask("LDS", nonce=under_way.nonce)
    assert [said.removed for said in client.hear_all()] == [("a",)]
