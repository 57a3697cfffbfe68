# SPDX-License-Identifier: Apache-2.0
"""The small rules on records: counters, users, signed quotes, absences; and the core's promise to finish a change."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA256

from manifests.model import Action
from manifests.package_update import package_update
from manifests.parse import parse
from sds.identity import MarbleIdentity, SpiffeId
from tests.kit.coordinator import Bench, manifest
from tests.kit.manifests import SGX_PACKAGE, TDX_PACKAGE
from tests.kit.manifests import raw as dump
from tests.kit.platform import lab
from tests.kit.records import ca, records
from tests.kit.users import user
from xds_server.absences import Absences
from xds_server.certified import CertifiedError, certified_claims, read_certified, still_allowed
from xds_server.counters import MAX_COUNTERS, counter_id, raise_counter
from xds_server.errors import CoordinatorError
from xds_server.sign_quote import sign_quote
from xds_server.update_log import logged
from xds_server.users import may, updaters

UUID = "11111111-2222-3333-4444-555555555555"
NOW = datetime(2026, 6, 1, 12, 0, 0, 123456, UTC)
MARBLE = MarbleIdentity("web", UUID, SpiffeId("x"))


def test_a_counters_id_is_type_uuid_bytes_and_name() -> None:
    encoded = [base64.b64encode(part).decode() for part in (b"web", bytes.fromhex(UUID.replace("-", "")), b"foo")]
    assert counter_id("web", UUID, "foo") == ":".join(encoded)


def test_a_call_that_raises_nothing_changes_no_records() -> None:
    first, _ = raise_counter(records(), MARBLE, "foo", 3)
    second, before = raise_counter(first, MARBLE, "foo", 3)
    assert second is first
    assert before == 3


@pytest.mark.parametrize(("name", "value"), [("x" * 1025, 1), ("x", -1), ("x", 2**64)])
def test_counters_are_bounded(name: str, value: int) -> None:
    with pytest.raises(CoordinatorError):
        raise_counter(records(), MARBLE, name, value)


def test_there_is_an_end_to_new_counters_but_not_to_old_ones() -> None:
    full = replace(records(), counters={counter_id("web", UUID, str(n)): 1 for n in range(MAX_COUNTERS)})
    assert raise_counter(full, MARBLE, "0", 2)[1] == 1
    with pytest.raises(CoordinatorError, match="no more are kept"):
        raise_counter(full, MARBLE, "new", 1)


def test_the_signed_text_is_the_quote_in_base64_and_the_status() -> None:
    answer = sign_quote(ca(), b"quote", "UpToDate")
    digest = bytes.fromhex("dbd273e560e3ebfc8d29e58eab34ccaa5ae721df0fb8b45c51caeb15d572fa02")
    assert hashlib.sha256(base64.b64encode(b"quote") + b"UpToDate").digest() == digest
    key = ca().root.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(answer.signature, digest, ec.ECDSA(utils.Prehashed(SHA256())))


def test_an_entry_of_the_update_log_is_one_line_in_order() -> None:
    (entry,) = logged(replace(records(), update_log=()), NOW, "Said", user="ü", **{"new version": 2}).update_log
    assert entry == '{"time":"2026-06-01T12:00:00.123Z","update":"Said","user":"ü","new version":2}'


def test_permissions_of_several_roles_add_up() -> None:
    def role(kind: str, action: str, *names: str) -> dict[str, object]:
        return {"ResourceType": kind, "ResourceNames": list(names), "Actions": [action]}

    secret = {"Type": "plain", "UserDefined": True}
    parsed = parse(
        manifest(
            Secrets={"a": secret, "b": secret},
            Roles={
                "ra": role("Secrets", "ReadSecret", "a"),
                "rb": role("Secrets", "ReadSecret", "b"),
                "w": role("Secrets", "WriteSecret", "a"),
                "m": role("Manifest", "UpdateManifest"),
            },
            Users={
                "alice": {"Certificate": user("alice").certificate.decode(), "Roles": ["ra", "rb", "w"]},
                "bob": {"Certificate": user("bob").certificate.decode(), "Roles": ["m"]},
            },
        )
    )
    assert may(parsed, "alice", Action.READ_SECRET, ["a", "b"])
    assert not may(parsed, "alice", Action.READ_SECRET, [])
    assert not may(parsed, "alice", Action.WRITE_SECRET, ["b"])
    assert not may(parsed, "alice", Action.UPDATE_MANIFEST)
    assert not may(parsed, "bob", Action.READ_SECRET, ["a"])
    assert updaters(parsed) == ("bob",)


def test_a_file_with_anything_but_packages_is_a_whole_manifest() -> None:
    only = {"Packages": {"p": {"SecurityVersion": 2}}}
    empty = dict.fromkeys(("Marbles", "Users", "RecoveryKeys", "Roles", "Secrets", "TLS", "Infrastructures"))
    update = package_update(dump(only | empty | {"Config": {"SealMode": "UniqueKey"}}))
    assert update is not None
    assert dict(update.versions) == {"p": 2}
    for member, value in (("TLS", {"t": {}}), ("Marbles", {"m": {"Package": "p"}}), ("Mesh", {"Gateways": {"g": {}}})):
        assert package_update(dump(only | {member: value})) is None


# --- certified claims


async def test_what_a_certificate_says_is_judged_as_the_quote_was() -> None:
    appraiser = lab().appraiser()
    for evidence, package in ((lab().sgx(), SGX_PACKAGE), (lab().tdx(), TDX_PACKAGE)):
        claims = await appraiser.verify(evidence.to_wire())
        read = read_certified(certified_claims(claims, "00"))
        assert read is not None
        assert (read.tee, read.measurement, read.simulated) == (claims.tee, claims.measurement, claims.simulated)
        assert certified_claims(read, "00") == certified_claims(claims, "00")
        good: dict[str, object] = (
            {"TDX": {"MRTD": claims.measurement.hex()}} if "TDX" in package else {"UniqueID": claims.measurement.hex()}
        )
        for wanted, allowed in ((good, True), (package, False)):
            parsed = parse(dump({"Packages": {"p": wanted}, "Marbles": {"m": {"Package": "p"}}}))
            assert still_allowed(parsed, "m", read, insecure=False) is allowed
            assert not still_allowed(parsed, "other", read, insecure=False)
            assert not still_allowed(parsed, "m", None, insecure=False)


@pytest.mark.parametrize(
    "change",
    [{"tee": "snp"}, {"signer": "00"}, {"measurement": 5}, {"svn": True}, {"debug": "no"}, {"advisories": [1]}],
)
async def test_claims_in_another_form_are_no_claims(change: dict[str, object]) -> None:
    claims = await lab().appraiser().verify(lab().sgx().to_wire())
    with pytest.raises(CertifiedError):
        read_certified(certified_claims(claims, "00") | change)
    with pytest.raises(CertifiedError):
        read_certified(None)


# --- absences


def test_who_is_connected_is_never_overdue_and_the_longest_away_go_first() -> None:
    absences, day = Absences(), timedelta(days=1)
    names = [("web", str(number)) for number in range(3)]
    for number, name in enumerate(names):
        absences.activated(name, NOW + number * day)
    absences.connected(names[0])
    absences.connected(names[0])
    absences.disconnected(names[0], NOW + 5 * day)
    assert absences.overdue(NOW + day, 0) == [names[1]]
    assert absences.overdue(NOW, 1) == [names[1]]
    absences.disconnected(names[0], NOW + 9 * day)
    assert absences.overdue(NOW + 9 * day, 0) == [names[1], names[2], names[0]]
    absences.forget(names[1])
    absences.retain([names[0]])
    assert absences.overdue(NOW + 9 * day, 0) == [names[0]]


# --- the core


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench.make(tmp_path)
    yield made
    made.own_quote.stop()


async def test_a_change_goes_on_when_its_asker_is_gone(bench: Bench) -> None:
    asker = asyncio.ensure_future(bench.coordinator.set_manifest(manifest()))
    while not bench.coordinator._core._tasks:
        await asyncio.sleep(0)
    asker.cancel()
    await bench.coordinator.close()
    assert bench.coordinator.status().code == 3
    assert len(bench.store.committed) == 1
