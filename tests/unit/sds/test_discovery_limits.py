# SPDX-License-Identifier: Apache-2.0
"""A client gone wild hurts only itself: what it makes us hold is bounded, and its stream ends with a reason."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable

import pytest

from sds.discovery import ProtocolError
from sds.discovery_types import MAX_NAMES, MAX_NAMES_IN_ALL
from sds.resources import CLUSTER, SECRET
from sds.wire import discovery_pb2
from tests.kit.discovery import IncrementalClient, SotwClient, resource, view

Client = SotwClient | IncrementalClient
both = pytest.mark.parametrize("kind", [SotwClient, IncrementalClient], ids=["sotw", "delta"])
FLOOD = [f"name-{number}" for number in range(100_000)]


def refusal(call: Callable[[], object]) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        call()
    return caught.value


@both
def test_a_hundred_thousand_names_in_one_request_end_the_stream(kind: type[Client]) -> None:
    client = kind(view())
    fault = refusal(lambda: client.ask("SDS", *FLOOD))
    assert (fault.status, str(fault)) == ("RESOURCE_EXHAUSTED", "100000 resource names in one request, limit is 4096")


@both
def test_a_hundred_thousand_names_over_several_types_end_the_stream(kind: type[Client]) -> None:
    client = kind(view())
    kinds = [f"type{number}" for number in range(20)]

    def flood() -> None:
        for type_url in kinds:
            client.ask(type_url, *FLOOD[:MAX_NAMES])

    fault = refusal(flood)
    assert (fault.status, str(fault)) == (
        "RESOURCE_EXHAUSTED",
        f"more than {MAX_NAMES_IN_ALL} subscribed resource names",
    )


def test_a_hundred_thousand_names_one_after_the_other_end_the_stream() -> None:
    client = IncrementalClient(view())

    def flood() -> None:
        for name in FLOOD:
            client.ask("SDS", name)

    assert "more than 4096 subscribed resource names" in str(refusal(flood))


def test_names_that_come_and_go_without_any_answer_taken_end_the_stream() -> None:
    """Each of them is owed an answer while the wildcard covers it."""
    client = IncrementalClient(view())
    client.ask("CDS")

    def flood() -> None:
        for start in range(0, len(FLOOD), 1000):
            names = FLOOD[start : start + 1000]
            client.ask("CDS", *names)
            client.ask("CDS", drop=names)

    assert refusal(flood).status == "RESOURCE_EXHAUSTED"


def test_what_a_client_says_that_it_holds_is_bounded_and_foreign_versions_are_not_kept() -> None:
    assert refusal(lambda: IncrementalClient(view()).ask("CDS", holds=dict.fromkeys(FLOOD, "1"))).status == (
        "RESOURCE_EXHAUSTED"
    )
    client = IncrementalClient(view(CDS={"a": "1"}))
    client.ask("CDS", holds={"a": "x" * 100_000, "gone": "y" * 100_000})
    assert client.stream.status[CLUSTER].sent == {"a": "", "gone": ""}
    said = client.hear()
    assert said is not None
    assert said.content == ("a@1",)


@both
def test_whoever_may_see_more_than_the_limit_may_ask_for_it(kind: type[Client]) -> None:
    """A gateway in front of thousands of ports, which comes back and names them all."""
    names = [f"cluster-{number:05}" for number in range(6000)]
    clusters = {name: resource(CLUSTER, name, "1") for name in names}
    client = kind({CLUSTER: clusters})
    client.ask("EDS", *names[:MAX_NAMES])
    client.ask("CDS", *names)
    assert sum(len(said.content) for said in client.hear_all() if said.type == "CDS") == 6000
    back = IncrementalClient({CLUSTER: clusters})
    back.ask("CDS", holds=dict.fromkeys(names, "1"))
    said = back.hear()
    assert said is not None
    assert said.content == (), "it has them all"


@both
def test_a_client_that_floods_within_the_limits_and_answers_nothing_makes_us_hold_a_few_megabytes(
    kind: type[Client],
) -> None:
    names = [f"{number:04}{'x' * 508}" for number in range(MAX_NAMES)]
    client = kind(view())
    requests = [request(client, type_url, names) for type_url in (SECRET, CLUSTER) for _ in range(3)]
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for data in requests:
            client.stream.receive_bytes(data)
            client.stream.take()
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert held < 8 * 1024 * 1024


def request(client: Client, type_url: str, names: list[str]) -> bytes:
    if isinstance(client, SotwClient):
        return discovery_pb2.DiscoveryRequest(type_url=type_url, resource_names=names).SerializeToString()
    return discovery_pb2.DeltaDiscoveryRequest(type_url=type_url, resource_names_subscribe=names).SerializeToString()


def test_looking_for_what_is_due_costs_as_much_as_there_is_not_as_much_as_was_asked_for() -> None:
    class Counted(dict[str, object]):
        looked = 0

        def __contains__(self, name: object) -> bool:
            self.looked += 1
            return super().__contains__(name)

    client = IncrementalClient(view())
    client.ask("SDS", *FLOOD[:MAX_NAMES])
    while (said := client.hear()) is not None:
        client.ask("SDS", nonce=said.nonce)
    content = Counted(view(SDS={"name-7": "1"})[SECRET])
    client.stream.update({SECRET: content})  # type: ignore[dict-item]
    said = client.hear()
    assert said is not None
    assert said.content == ("name-7@1",)
    assert content.looked < 20


@both
def test_answers_of_nonsense_change_nothing(kind: type[Client]) -> None:
    client = kind(view(SDS={"a": "1"}))
    client.ask("SDS", "a")
    said = client.hear()
    assert said is not None
    for nonce in ("nonsense", said.nonce + "0", said.nonce.upper() + " ", "\0", "x" * 100_000):
        client.ask("SDS", "a", nonce=nonce) if kind is SotwClient else client.ask("SDS", nonce=nonce)
    assert client.stream.status[SECRET].awaiting_ack
    assert client.hear() is None
