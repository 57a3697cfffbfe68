# SPDX-License-Identifier: Apache-2.0
"""What a client refuses: told by the error alone, never repeated blindly, tried once more after a long while."""

from __future__ import annotations

import math

import pytest

from sds.discovery import Kind, Retry
from sds.discovery_retry import PAUSE_SECONDS
from sds.resources import CLUSTER, LISTENER, SECRET
from tests.kit.discovery import IncrementalClient, Said, SotwClient, view

Client = SotwClient | IncrementalClient
both = pytest.mark.parametrize("kind", [SotwClient, IncrementalClient], ids=["sotw", "delta"])


def take(client: Client) -> Said:
    said = client.hear()
    assert said is not None
    return said


def again(client: Client, *names: str) -> tuple[str, ...]:
    """The names of an answer: state of the world repeats them all, incremental says nothing."""
    return names if isinstance(client, SotwClient) else ()


def refused(kind: type[Client], type_: str = "SDS") -> Client:
    """A client that has refused a@1."""
    client = kind(view(**{type_: {"a": "1"}}))
    client.ask(type_, "a")
    client.ask(type_, *again(client, "a"), nonce=take(client).nonce, error="bad")
    return client


@both
def test_an_error_is_a_nack_even_if_the_client_returns_the_new_version_or_asks_for_more(kind: type[Client]) -> None:
    client = kind(view(SDS={"a": "1", "b": "1"}))
    client.ask("SDS", "a")
    receipt = client.ask("SDS", "a", "b", nonce=take(client).nonce, error="no such curve")
    assert (receipt.kind, receipt.error) == (Kind.NACK, "no such curve")
    assert take(client).content == (("a@1",) if kind is IncrementalClient else ("b@1",)), (
        "what it asked for is answered"
    )


@both
def test_an_error_without_text_is_still_a_nack(kind: type[Client]) -> None:
    client = kind(view(SDS={"a": "1"}))
    client.ask("SDS", "a")
    receipt = client.ask("SDS", "a", nonce=take(client).nonce, error="")
    assert (receipt.kind, receipt.error) == (Kind.NACK, "rejected with code 13")


@both
def test_no_error_is_no_nack_even_if_the_client_returns_another_version(kind: type[Client]) -> None:
    client = kind(view(SDS={"a": "2"}))
    client.ask("SDS", "a")
    version = {"version": "1"} if kind is SotwClient else {}
    receipt = client.ask("SDS", *again(client, "a"), nonce=take(client).nonce, **version)  # type: ignore[arg-type]
    assert receipt.kind is Kind.ACK
    assert client.stream.status[SECRET].acked == {"a": "2"}


@both
def test_every_response_is_answered_once_a_second_answer_counts_as_neither(kind: type[Client]) -> None:
    client = kind(view(LDS={"a": "1"}))
    client.ask("LDS")
    nonce = take(client).nonce
    assert client.ask("LDS", nonce=nonce, error="cannot bind").kind is Kind.NACK
    assert client.ask("LDS", nonce=nonce).kind is Kind.SUBSCRIBE, "a later request, not an ACK of what was refused"
    assert client.ask("LDS", nonce=nonce, error="cannot bind").kind is Kind.STALE
    assert client.stream.status[LISTENER].nacked == {"a": "1"}
    assert client.stream.status[LISTENER].acked == {}


@both
def test_an_error_about_an_older_response_refuses_nothing(kind: type[Client]) -> None:
    client = kind(view(CDS={"a": "1"}))
    client.ask("CDS")
    first = take(client)
    client.ask("CDS", nonce=first.nonce)
    client.stream.update(view(CDS={"a": "2"}))
    second = take(client)
    assert client.ask("CDS", nonce=first.nonce, error="late").kind is Kind.STALE
    assert client.stream.status[CLUSTER].awaiting_ack
    assert client.ask("CDS", nonce=second.nonce).kind is Kind.ACK


@both
def test_a_refused_version_is_not_sent_again_however_often_the_view_is_rebuilt(kind: type[Client]) -> None:
    client = refused(kind)
    for _ in range(3):
        client.stream.update(view(SDS={"a": "1"}))
        assert client.hear() is None
    client.stream.update(view(SDS={"a": "2"}))
    assert take(client).content == ("a@2",)


@both
def test_a_refused_version_that_comes_back_before_another_was_sent_is_still_refused(kind: type[Client]) -> None:
    client = refused(kind)
    client.stream.update(view(SDS={"a": "2"}))
    client.stream.update(view(SDS={"a": "1"}))
    assert client.hear() is None


@both
def test_a_client_that_asks_for_a_refused_version_again_gets_it(kind: type[Client]) -> None:
    client = refused(kind)
    client.ask("SDS", "a")
    assert take(client).content == ("a@1",)


@both
def test_the_text_of_a_refusal_is_kept_until_a_good_answer(kind: type[Client]) -> None:
    client = refused(kind)
    assert client.stream.status[SECRET].error == "bad"
    client.stream.update(view(SDS={"a": "2"}))
    client.ask("SDS", *again(client, "a"), nonce=take(client).nonce)
    status = client.stream.status[SECRET]
    assert (status.error, status.nacked, status.acked) == ("", {}, {"a": "2"})


@both
def test_a_client_is_not_up_to_date_while_it_refuses(kind: type[Client]) -> None:
    client = refused(kind)
    assert not client.stream.is_current(SECRET)
    client.stream.update(view(SDS={"a": "2"}))
    said = take(client)
    assert not client.stream.is_current(SECRET), "not before the answer"
    client.ask("SDS", *again(client, "a"), nonce=said.nonce)
    assert client.stream.is_current(SECRET)


@both
def test_a_refused_type_does_not_hold_back_the_others(kind: type[Client]) -> None:
    client = refused(kind, "CDS")
    client.stream.update(view(CDS={"a": "1"}, LDS={"l": "1"}))
    client.ask("LDS")
    assert take(client).content == ("l@1",)


@both
def test_after_minutes_a_refused_version_is_tried_once_more(kind: type[Client]) -> None:
    client, retry = refused(kind), Retry(jitter=lambda: 0.5)
    assert retry.step(client.stream, 1000.0) == PAUSE_SECONDS
    assert client.hear() is None
    assert retry.step(client.stream, 1000.0 + PAUSE_SECONDS - 1) == 1
    assert client.hear() is None
    assert retry.step(client.stream, 1000.0 + PAUSE_SECONDS) == math.inf
    said = take(client)
    assert said.content == ("a@1",)
    client.ask("SDS", *again(client, "a"), nonce=said.nonce, error="still bad")
    assert client.hear() is None
    assert retry.step(client.stream, 2000.0) == PAUSE_SECONDS, "and again as long after that"


def test_the_pause_is_spread_over_a_fleet_and_forgotten_when_nothing_is_refused() -> None:
    low, high = Retry(jitter=lambda: 0.0), Retry(jitter=lambda: 1.0)
    client = refused(IncrementalClient)
    assert low.step(client.stream, 0.0) == pytest.approx(0.8 * PAUSE_SECONDS)
    assert high.step(client.stream, 0.0) == pytest.approx(1.2 * PAUSE_SECONDS)
    client.stream.update(view(SDS={"a": "2"}))
    client.ask("SDS", nonce=take(client).nonce)
    assert low.step(client.stream, 10_000.0) == math.inf
    assert client.hear() is None


@both
def test_a_removal_that_was_refused_is_tried_once_more_too(kind: type[Client]) -> None:
    client = kind(view(LDS={"a": "1"}))
    client.ask("LDS")
    client.ask("LDS", nonce=take(client).nonce)
    client.stream.update(view(LDS={}))
    client.ask("LDS", nonce=take(client).nonce, error="still draining")
    assert client.hear() is None
    assert client.stream.has_refused
    client.stream.retry_refused()
    said = take(client)
    assert (said.content, said.removed) == ((), ("a",) if kind is IncrementalClient else ())
    client.ask("LDS", nonce=said.nonce)
    assert not client.stream.has_refused
    assert client.hear() is None


def test_a_state_that_was_refused_is_tried_once_more_even_if_it_is_empty() -> None:
    """A client that comes back may hold what is gone since, and refuse to let it go."""
    client = SotwClient(view())
    client.ask("CDS")
    client.ask("CDS", nonce=take(client).nonce, error="in use")
    assert client.hear() is None
    assert client.stream.has_refused
    client.stream.retry_refused()
    assert take(client).content == ()
    assert not client.stream.has_refused


def test_a_state_that_is_taken_with_what_was_refused_before_makes_it_taken() -> None:
    client = SotwClient(view(CDS={"a": "1"}))
    client.ask("CDS")
    client.ask("CDS", nonce=take(client).nonce, error="no room")
    client.stream.update(view(CDS={"a": "1", "b": "1"}))
    said = take(client)
    assert said.content == ("a@1", "b@1")
    client.ask("CDS", nonce=said.nonce)
    status = client.stream.status[CLUSTER]
    assert (status.acked, status.nacked, status.error) == ({"a": "1", "b": "1"}, {}, "")


def test_a_resource_whose_removal_was_refused_is_taken_away_once_more_when_it_came_back_unsent_and_went_again() -> None:
    client = IncrementalClient(view(CDS={"a": "1"}))
    client.ask("CDS", "a")
    client.ask("CDS", nonce=take(client).nonce)
    client.stream.update(view())
    client.ask("CDS", nonce=take(client).nonce, error="in use")
    assert client.hear() is None, "a refused removal is not repeated blindly"
    client.stream.update(view(CDS={"a": "1"}))
    client.stream.update(view())
    assert take(client).removed == ("a",)
