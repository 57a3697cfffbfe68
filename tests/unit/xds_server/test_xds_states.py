# SPDX-License-Identifier: Apache-2.0
"""What is said of a client's resources, for each way in which versions can differ; and when a change has arrived."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from sds.discovery import Kind, Receipt, Response, TypeStatus
from sds.logs import get_logger
from sds.resources import LISTENER, SECRET
from tests.kit.xds_mesh import Town
from tests.kit.xds_port import MANIFEST
from xds_server.mesh import Client, Role
from xds_server.xds_convergence import Change
from xds_server.xds_metrics import XdsMetrics
from xds_server.xds_record import StreamRecord
from xds_server.xds_states import State, resource_states, worst

WANTED = ("a",)


@pytest.mark.parametrize(
    ("current", "sent", "acked", "nacked", "state"),
    [
        ("2", "2", "2", "", State.SYNCED),
        ("2", "", "", "", State.NOT_SENT),
        ("2", "2", "", "", State.STALE),
        ("2", "1", "1", "", State.STALE),
        ("2", "2", "1", "", State.STALE),
        ("2", "", "1", "2", State.REJECTED),
        ("3", "", "1", "2", State.STALE),
        ("", "", "", "", State.NOT_FOUND),
        ("", "1", "1", "", State.STALE),
    ],
)
def test_the_state_of_a_resource(current: str, sent: str, acked: str, nacked: str, state: State) -> None:
    def of(version: str) -> dict[str, str]:
        return {"a": version} if version else {}

    status = TypeStatus(
        type_url=SECRET, subscribed=WANTED, current=of(current), sent=of(sent), acked=of(acked), nacked=of(nacked)
    )
    (found,) = resource_states(status)
    assert (found.name, found.state) == ("a", state)


def test_the_worst_state_stands_for_all() -> None:
    assert worst(iter([State.SYNCED, State.REJECTED, State.NOT_SENT])) is State.REJECTED
    assert worst(iter(())) is State.SYNCED


class Stream:
    """A StreamRecord with short ways to move it."""

    def __init__(self, metrics: XdsMetrics) -> None:
        client = Client(Role.MARBLE, "web", "u")
        self.record = StreamRecord(client, "StreamSecrets", "sotw", Town(MANIFEST).time, get_logger("test"), metrics)

    def sent(self, type_url: str = SECRET) -> None:
        self.record.sent(Response(type_url, "n", ("default",), (), (), b"body"), 0.0)

    def received(self, kind: Kind, type_url: str = SECRET) -> None:
        self.record.received(Receipt(type_url, kind, "why" if kind is Kind.NACK else ""))


@pytest.fixture
def two() -> tuple[Stream, Stream, Change, list[float]]:
    metrics, took = XdsMetrics(CollectorRegistry()), list[float]()
    one, other, change = Stream(metrics), Stream(metrics), Change(0.0, took.append)
    for stream in (one, other):
        stream.record.told(change)
    change.all_told()
    return one, other, change, took


Two = tuple[Stream, Stream, Change, list[float]]


def test_a_change_has_arrived_with_the_last_answer_of_the_last_client(two: Two) -> None:
    one, other, _, took = two
    for stream in (one, other):
        stream.sent()
        stream.sent(LISTENER)
        stream.record.idle()
    one.received(Kind.ACK)
    one.received(Kind.ACK, LISTENER)
    one.record.idle()
    other.received(Kind.ACK)
    other.record.idle()
    assert took == []
    other.received(Kind.NACK, LISTENER)
    other.record.idle()
    assert len(took) == 1


def test_a_client_that_has_nothing_to_get_or_leaves_holds_no_change_up(two: Two) -> None:
    one, other, _, took = two
    one.record.idle()
    other.sent()
    other.record.idle()
    assert took == []
    other.record.closed()
    assert len(took) == 1


def test_a_stale_answer_is_none(two: Two) -> None:
    one, other, _, took = two
    other.record.idle()
    one.sent()
    one.received(Kind.STALE)
    one.record.idle()
    assert (took, one.record.pending) == ([], 1)
