# SPDX-License-Identifier: Apache-2.0
"""Make before break, over several types on one aggregated stream: what points at something never arrives before it,
and nothing goes that something may still point at."""

from __future__ import annotations

import pytest

from sds.resources import SECRET, Resource
from tests.kit.discovery import IncrementalClient, Said, SotwClient, view

Client = SotwClient | IncrementalClient
both = pytest.mark.parametrize("kind", [SotwClient, IncrementalClient], ids=["sotw", "delta"])
NAMED = {"SDS": ("s",), "EDS": ("e",), "RDS": ("r",), "LDS": (), "CDS": ()}


def take(client: Client) -> Said:
    said = client.hear()
    assert said is not None
    return said


def answer(client: Client, said: Said, error: str | None = None) -> None:
    names = NAMED[said.type] if isinstance(client, SotwClient) else ()
    client.ask(said.type, *names, nonce=said.nonce, error=error)


def rest(client: Client) -> list[Said]:
    """Everything that is due, each acknowledged at once."""
    heard = []
    while (said := client.hear()) is not None:
        heard.append(said)
        answer(client, said)
    return heard


def settled(kind: type[Client], **types: dict[str, str]) -> Client:
    client = kind(view(**types))
    for type_, names in NAMED.items():
        client.ask(type_, *names)
    rest(client)
    return client


def everything(version: str) -> dict[str, dict[str, str]]:
    return {
        "CDS": {"c": f"{version} e s"},
        "EDS": {"e": version},
        "SDS": {"s": version},
        "LDS": {"l": f"{version} s r"},
        "RDS": {"r": version},
    }


@both
def test_clusters_endpoints_secrets_listeners_routes_whatever_was_asked_for_first(kind: type[Client]) -> None:
    client = kind(view(**everything("1")))
    for type_ in ("RDS", "LDS", "SDS", "EDS", "CDS"):
        client.ask(type_, *NAMED[type_])
    assert [said.type for said in rest(client)] == ["CDS", "EDS", "SDS", "LDS", "SDS", "RDS"], "secrets once more"


@both
def test_a_change_of_everything_keeps_the_order(kind: type[Client]) -> None:
    client = settled(kind, **everything("1"))
    client.stream.update(view(**everything("2")))
    assert [said.type for said in rest(client)] == ["CDS", "EDS", "SDS", "LDS", "SDS", "RDS"]


@both
def test_the_next_type_is_written_without_waiting_for_an_acknowledgement_of_the_last(kind: type[Client]) -> None:
    """One stream keeps the order of what is written on it."""
    client = settled(kind, **everything("1"))
    client.stream.update(view(**everything("2")))
    assert [said.type for said in client.hear_all()] == ["CDS", "EDS", "SDS", "LDS", "RDS"]


@both
def test_a_listener_waits_for_what_is_due_but_cannot_be_written_yet(kind: type[Client]) -> None:
    client = settled(kind, **everything("1"))
    client.stream.update(view(**{**everything("1"), "CDS": {"c": "2 e s"}}))
    under_way = take(client)
    client.stream.update(view(**{**everything("2"), "CDS": {"c": "3 e s"}}))
    assert [said.type for said in rest(client)] == ["EDS", "SDS"], "neither listener nor route overtakes c@3"
    answer(client, under_way)
    assert [said.type for said in rest(client)] == ["CDS", "EDS", "SDS", "LDS", "SDS", "RDS"]


@both
def test_a_listener_does_not_overtake_together_with_one_that_is_gone(kind: type[Client]) -> None:
    client = settled(kind, CDS={"c": "1"}, LDS={"a": "1", "b": "1"})
    client.stream.update(view(CDS={"c": "2"}, LDS={"a": "1", "b": "1"}))
    under_way = take(client)
    client.stream.update(view(CDS={"c": "3"}, LDS={"a": "2 c"}))
    assert [said.content for said in rest(client)] == ([()] if kind is IncrementalClient else []), "b may go, a@2 waits"
    answer(client, under_way)
    heard = [(said.type, said.content) for said in rest(client)]
    assert heard == [("CDS", ("c@3",)), ("LDS", ("a@2",))]


@both
def test_a_route_does_not_overtake_its_listener(kind: type[Client]) -> None:
    client = settled(kind, **everything("1"))
    client.stream.update(view(**{**everything("1"), "LDS": {"l": "2 s r"}}))
    under_way = take(client)
    assert under_way.type == "LDS"
    client.stream.update(view(**{**everything("1"), "LDS": {"l": "3 s r"}, "RDS": {"r": "2"}}))
    assert [said.type for said in client.hear_all()] == ["SDS"]
    answer(client, under_way)
    assert [said.type for said in client.hear_all()] == ["LDS", "RDS"]


@both
def test_secrets_and_routes_that_a_pushed_listener_names_are_sent_again_and_no_others(kind: type[Client]) -> None:
    """Envoy makes an empty subscription for them when the bytes of a ConfigSource change, and does not say so."""
    client = settled(kind, **everything("1"))
    client.stream.update(view(**{**everything("1"), "LDS": {"l": "2 s r"}}))
    assert [(said.type, said.content) for said in rest(client)] == [
        ("LDS", ("l@2",)),
        ("SDS", ("s@1",)),
        ("RDS", ("r@1",)),
    ]
    client.stream.update(view(**{**everything("1"), "LDS": {"l": "3 nothing"}}))
    assert [said.type for said in rest(client)] == ["LDS"]


@both
def test_endpoints_and_secrets_that_a_pushed_cluster_names_are_sent_again(kind: type[Client]) -> None:
    client = settled(kind, **everything("1"))
    client.stream.update(view(**{**everything("1"), "CDS": {"c": "2 e s"}}))
    assert [said.type for said in rest(client)] == ["CDS", "EDS", "SDS"]


@both
def test_where_looking_for_names_would_take_too_long_everything_is_sent_again(kind: type[Client]) -> None:
    content = view(LDS={"l": "1 s"}, SDS={"s": "1"})
    listener = next(iter(content))
    client = kind(content)
    for type_ in ("LDS", "SDS"):
        client.ask(type_, *NAMED[type_])
    rest(client)
    big = Resource(listener, "l", "2", bytes(65 * 1024 * 1024))
    client.stream.update({listener: {"l": big}, SECRET: content[SECRET]})
    response = client.stream.take_response()
    assert response is not None
    assert response.type_url == listener
    assert [said.content for said in client.hear_all()] == [("s@1",)], "although it is not named"


@both
def test_a_cluster_goes_after_its_listener_and_after_its_route(kind: type[Client]) -> None:
    client = settled(kind, CDS={"c": "1", "old": "1"}, LDS={"l": "1 r"}, RDS={"r": "1 old"})
    client.stream.update(view(CDS={"c": "1"}, LDS={"l": "2 r"}, RDS={"r": "2 c"}))
    listener, route = client.hear_all()
    assert (listener.type, route.type) == ("LDS", "RDS")
    answer(client, listener)
    assert "CDS" not in [said.type for said in client.hear_all()], "the old route may still point at it"
    answer(client, route)
    last = [said for said in rest(client) if said.type == "CDS"]
    assert (
        [said.content for said in last] == [("c@1",)]
        if kind is SotwClient
        else [said.removed for said in last] == [("old",)]
    )


@both
def test_endpoints_of_a_cluster_that_is_gone_go_last(kind: type[Client]) -> None:
    client = settled(kind, CDS={"c": "1"}, EDS={"e": "1"}, LDS={"l": "1"})
    client.stream.update(view(CDS={}, LDS={}))
    heard = [(said.type, said.removed) for said in rest(client)]
    gone = {"LDS": ("l",), "CDS": ("c",), "EDS": ("e",)}
    # State of the world says the first two by an empty response, and has no words for the third.
    expected = list(gone.items()) if kind is IncrementalClient else [("LDS", ()), ("CDS", ())]
    assert heard == expected


@both
def test_a_cluster_that_comes_back_before_it_was_taken_away_is_neither_removed_nor_sent(kind: type[Client]) -> None:
    client = settled(kind, CDS={"c": "1"}, LDS={"l": "1"})
    client.stream.update(view(CDS={}, LDS={"l": "2"}))
    listener = take(client)
    assert listener.type == "LDS"
    client.stream.update(view(CDS={"c": "1"}, LDS={"l": "2"}))
    answer(client, listener)
    assert client.hear() is None


@both
def test_what_a_refused_listener_points_at_stays_until_the_listener_is_mended(kind: type[Client]) -> None:
    client = settled(kind, CDS={"old": "1"}, LDS={"l": "1"})
    client.stream.update(view(CDS={}, LDS={"l": "2"}))
    answer(client, take(client), error="cannot bind")
    assert client.hear() is None
    client.stream.update(view(CDS={}, LDS={"l": "3"}))
    assert [said.type for said in rest(client)] == ["LDS", "CDS"]


@both
def test_roots_go_before_identities_whatever_they_are_called(kind: type[Client]) -> None:
    roots = Resource(SECRET, "spiffe://td.test", "1", b"spiffe://td.test@1<", rank=0)
    identity = Resource(SECRET, "default", "1", b"default@1<")
    client = kind({SECRET: {"default": identity, "spiffe://td.test": roots}})
    names = ("default", "spiffe://td.test")
    client.ask("SDS", *names)
    first = take(client)
    assert first.content == ("spiffe://td.test@1",)
    assert client.hear() is None, "not before the roots are acknowledged"
    client.ask("SDS", *(names if kind is SotwClient else ()), nonce=first.nonce)
    assert take(client).content == ("default@1",)


@both
def test_streams_of_a_single_type_know_nothing_of_others(kind: type[Client]) -> None:
    client = kind(view(LDS={"l": "1 s"}, SDS={"s": "1"}), implied_type=SECRET)
    client.ask("", "s")
    assert [(said.type, said.content) for said in rest(client)] == [("SDS", ("s@1",))]
