# SPDX-License-Identifier: Apache-2.0
"""A bad secret never leaves, the last good one stays, and what is withheld is named until a good one comes."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from sds.publish_gate import LOOK_AGAIN, Owner, PublishGate, Withheld
from sds.resources import Resource
from sds.secret_checks import SecretRefused, check_secret
from tests.kit.pki import HOUR, marble, now, odd_leaf, shared_ca
from tests.kit.secrets import certificate, secret, trust

OWNER: Owner = ("web",)
GOOD = marble(shared_ca())


def good(name: str = "tls") -> Resource:
    return secret(name, certificate(marble(shared_ca())))


def bad(name: str = "tls") -> Resource:
    return secret(name, certificate(GOOD, key=marble(shared_ca()).key.pem))


class Clock:
    def __init__(self) -> None:
        self.time = now()
        self.checks: list[str] = []
        self.told: list[tuple[Owner, Withheld]] = []
        self.gate = PublishGate(lambda: self.time, lambda owner, withheld: self.told.append((owner, withheld)))

    def let_out(self, *resources: Resource, owner: Owner = OWNER) -> dict[str, Resource]:
        return dict(self.gate.let_out(owner, {resource.name: resource for resource in resources}))

    def counted(self, resource: Resource, at: datetime) -> None:
        self.checks.append(resource.name)
        check_secret(resource, at)


def test_what_is_good_leaves_as_the_very_object_that_was_wanted() -> None:
    wanted = {"tls": good()}
    assert Clock().gate.let_out(OWNER, wanted) is wanted


def test_a_first_bad_one_is_as_if_it_did_not_exist_and_its_neighbours_leave() -> None:
    clock, other = Clock(), good("other")
    assert clock.let_out(bad(), other) == {"other": other}
    (withheld,) = clock.gate.withheld_from(OWNER)
    assert (withheld.name, withheld.part, withheld.kept) == ("tls", "chain", False)
    assert withheld.reason == "private key does not belong to the first certificate of the chain"


def test_the_last_good_one_stays_in_place_of_a_bad_one() -> None:
    clock, first = Clock(), good()
    clock.let_out(first)
    assert clock.let_out(bad()) == {"tls": first}
    assert clock.let_out(bad()) == {"tls": first}, "also in place of the next bad one"
    assert [w.kept for w in clock.gate.withheld_from(OWNER)] == [True]


def test_a_good_one_ends_it() -> None:
    clock, second = Clock(), good()
    clock.let_out(good())
    clock.let_out(bad())
    assert clock.let_out(second) == {"tls": second}
    assert list(clock.gate.withheld()) == []


def test_so_does_going_back_to_what_was_good() -> None:
    clock, first = Clock(), good()
    clock.let_out(first)
    clock.let_out(bad())
    assert clock.let_out(first) == {"tls": first}
    assert list(clock.gate.withheld()) == []


def test_a_name_that_is_not_wanted_any_more_is_neither_kept_nor_withheld() -> None:
    clock = Clock()
    clock.let_out(good())
    clock.let_out(bad())
    assert clock.let_out() == {}
    assert list(clock.gate.withheld()) == []


def test_it_is_told_once_however_often_it_is_asked_for() -> None:
    clock, wrong = Clock(), bad()
    began = clock.time
    for _ in range(3):
        clock.let_out(wrong)
        clock.time += timedelta(seconds=1)
    assert [(owner, w.name) for owner, w in clock.told] == [(OWNER, "tls")]
    assert [w.since for w in clock.gate.withheld_from(OWNER)] == [began]
    clock.let_out(bad())
    assert len(clock.told) == 2, "another bad one is news"


def test_content_is_checked_once_for_all_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, shared, wrong = Clock(), good(), bad("wrong")
    monkeypatch.setattr("sds.publish_gate.check_secret", clock.counted)
    for number in range(100):
        clock.let_out(shared, wrong, owner=("web", str(number)))
    assert sorted(clock.checks) == ["tls", "wrong"]


def test_a_newcomer_is_not_given_what_has_expired_since_it_was_checked_for_others() -> None:
    clock = Clock()
    shared = secret("tls", certificate(odd_leaf(shared_ca(), not_after=clock.time + timedelta(minutes=2))))
    assert clock.let_out(shared) == {"tls": shared}
    clock.time += timedelta(minutes=2) + LOOK_AGAIN
    assert clock.let_out(shared, owner=("newcomer",)) == {}
    assert clock.let_out(shared) == {"tls": shared}, "who has it keeps it: there is nothing better"


def test_a_certificate_of_tomorrow_leaves_tomorrow() -> None:
    clock = Clock()
    early = secret(
        "tls", certificate(odd_leaf(shared_ca(), not_before=clock.time + HOUR, not_after=clock.time + 2 * HOUR))
    )
    assert clock.let_out(early) == {}
    assert clock.gate.ripe() == frozenset()
    clock.time += HOUR
    assert clock.gate.ripe() == {OWNER}
    assert clock.let_out(early) == {"tls": early}


def test_an_owner_that_is_gone_leaves_nothing_behind() -> None:
    clock = Clock()
    clock.let_out(good())
    clock.let_out(bad())
    clock.gate.retain([])
    assert list(clock.gate.withheld()) == []
    assert clock.let_out(bad()) == {}


def test_no_validation_context_without_a_ca_leaves_under_any_name() -> None:
    clock = Clock()
    for name in ("ROOTCA", "ROOTCA|443", "spiffe://td.test", "ALL", "anything"):
        for pem in (None, b"", b"\n"):
            assert clock.let_out(secret(name, trust(pem))) == {}


def test_nothing_of_a_key_is_in_what_is_said_about_it() -> None:
    clock = Clock()
    clock.let_out(bad())
    (_, withheld) = clock.told[0]
    body = b"".join(GOOD.key.pem.splitlines()[1:-1]).decode()
    assert body[:12] not in repr(withheld)
    with pytest.raises(SecretRefused) as caught:
        check_secret(withheld.resource, clock.time)
    assert body[:12] not in repr(caught.value)
