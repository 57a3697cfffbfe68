# SPDX-License-Identifier: Apache-2.0
"""When an instance is an endpoint: after its first ACK, over a short loss of its stream, and never the last one out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from xds_server.mesh_endpoints import HEALTHY, UNKNOWN, Endpoints

T0 = datetime(2026, 1, 1, tzinfo=UTC)
GRACE = timedelta(seconds=30)
A, B = ("web", "a"), ("web", "b")


def serving(*instances: tuple[str, str]) -> Endpoints:
    endpoints = Endpoints(GRACE)
    for number, instance in enumerate(instances, start=1):
        endpoints.connected(instance, f"127.0.0.{number}")
        endpoints.ready(instance)
    return endpoints


def test_an_instance_is_a_member_only_after_it_has_its_listeners() -> None:
    endpoints = Endpoints(GRACE)
    endpoints.connected(A, "127.0.0.1")
    assert endpoints.members("web") == ()
    assert endpoints.ready(A)
    assert endpoints.members("web") == (("127.0.0.1", HEALTHY),)
    assert not endpoints.ready(A), "nothing new"


def test_a_short_loss_of_the_stream_changes_nothing() -> None:
    endpoints = serving(A, B)
    endpoints.disconnected(A, T0)
    assert not endpoints.expire(T0 + GRACE - timedelta(seconds=1))
    assert not endpoints.connected(A, "127.0.0.1")
    assert not endpoints.expire(T0 + 2 * GRACE)
    assert len(endpoints.members("web")) == 2
    assert endpoints.next_expiry() is None


def test_after_the_grace_time_it_goes() -> None:
    endpoints = serving(A, B)
    endpoints.disconnected(A, T0)
    assert endpoints.next_expiry() == T0 + GRACE
    assert endpoints.expire(T0 + GRACE)
    assert endpoints.members("web") == (("127.0.0.2", HEALTHY),)


def test_the_last_one_stays_as_unknown_until_another_comes() -> None:
    endpoints = serving(A)
    endpoints.disconnected(A, T0)
    assert endpoints.expire(T0 + GRACE)
    assert endpoints.members("web") == (("127.0.0.1", UNKNOWN),)
    assert not endpoints.expire(T0 + 2 * GRACE)
    assert endpoints.next_expiry() is None
    endpoints.connected(B, "127.0.0.2")
    assert not endpoints.expire(T0 + 2 * GRACE), "not ready yet"
    endpoints.ready(B)
    assert endpoints.expire(T0 + 2 * GRACE)
    assert endpoints.members("web") == (("127.0.0.2", HEALTHY),)


def test_of_two_that_are_lost_together_the_later_one_stays() -> None:
    endpoints = serving(A, B)
    endpoints.disconnected(B, T0)
    endpoints.disconnected(A, T0 + timedelta(seconds=1))
    endpoints.expire(T0 + 2 * GRACE)
    assert endpoints.members("web") == (("127.0.0.1", UNKNOWN),)


def test_one_of_two_streams_is_enough() -> None:
    endpoints = serving(A, B)
    endpoints.connected(A, None)
    endpoints.disconnected(A, T0)
    assert not endpoints.expire(T0 + 2 * GRACE)


def test_a_revoked_instance_goes_at_once_even_as_the_last_one() -> None:
    endpoints = serving(A)
    assert endpoints.forget(A)
    assert endpoints.members("web") == ()


def test_an_instance_without_address_is_no_member() -> None:
    endpoints = Endpoints(GRACE)
    endpoints.connected(A, None)
    endpoints.ready(A)
    assert endpoints.members("web") == ()


def test_only_types_whose_members_changed_are_named() -> None:
    endpoints = serving(A, B, ("voting", "c"), ("voting", "d"), ("log", "e"))
    endpoints.disconnected(A, T0)
    endpoints.disconnected(("voting", "c"), T0 + GRACE)
    assert endpoints.expire(T0 + GRACE) == {"web"}
    assert endpoints.expire(T0 + 2 * GRACE) == {"voting"}


def test_an_instance_is_absent_within_its_grace_and_not_beyond() -> None:
    endpoints = serving(A)
    assert not endpoints.absent(T0)
    endpoints.disconnected(A, T0)
    assert endpoints.absent(T0)
    assert not endpoints.absent(T0 + GRACE)
    endpoints.connected(A, None)
    assert not endpoints.absent(T0)
