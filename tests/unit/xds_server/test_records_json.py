# SPDX-License-Identifier: Apache-2.0
"""Records and MarbleRun's state JSON: there and back, and what is not a state."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from manifests.parse import parse
from tests.kit.records import arbitrary_records, former_roots, manifest_bytes, records
from xds_server.records import Records
from xds_server.records_json import Writer
from xds_server.records_read import read_records
from xds_server.state import State
from xds_server.store_errors import StoreDamaged, StoreError

MANIFEST = parse(manifest_bytes())


def written(state: Records) -> dict[str, str]:
    found = json.loads(Writer().write(state, parse(state.manifest) if state.manifest else None))
    assert isinstance(found, dict)
    return found


def read(state: dict[str, Any]) -> Records:
    return read_records(json.dumps(state).encode()).records


def entry(value: object) -> str:
    return base64.b64encode(value if isinstance(value, bytes) else json.dumps(value).encode()).decode()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(arbitrary_records)
def test_what_is_written_is_what_is_read(state: Records) -> None:
    assert read_records(Writer().write(state, MANIFEST)).records == state


def test_a_writer_that_has_written_before_writes_the_same() -> None:
    one, other = records(), records(manifest_bytes(Config={"UpdateThreshold": 0}), activations={"web": 2})
    writer = Writer()
    for state in (one, other, one, replace(other, ca=replace(other.ca))):
        assert writer.write(state, parse(state.manifest)) == Writer().write(state, parse(state.manifest))


def test_without_a_rotation_nothing_is_written_that_marblerun_does_not_write() -> None:
    assert [key for key in written(records()) if key.startswith("marblemesh:")] == []


def test_former_roots_are_read_again_with_their_keys_and_times() -> None:
    state = records(former=former_roots())
    found = read(written(state)).former
    assert found == state.former
    assert found.issuers[0].intermediate_key.load().public_key() == found.issuers[0].marble_root.public_key()
    assert found.issuers[0].root == state.ca.root


def test_a_former_issuer_whose_key_is_another_s_is_refused() -> None:
    state = written(records(former=former_roots()))
    former = json.loads(base64.b64decode(state["marblemesh:formerRoots"]))
    former["Issuers"][0]["PrivateKey"] = former["Issuers"][1]["PrivateKey"]
    with pytest.raises(StoreDamaged, match="marblemesh:formerRoots"):
        read(state | {"marblemesh:formerRoots": entry(former)})


@pytest.mark.parametrize("time", ["2026-06-01T00:00:00", "tomorrow", "", 5, None])
def test_a_time_without_a_zone_or_none_at_all_is_refused(time: object) -> None:
    state = written(records(former=former_roots()))
    former = json.loads(base64.b64decode(state["marblemesh:formerRoots"]))
    former["Departed"][0]["Until"] = time
    with pytest.raises(StoreDamaged, match="marblemesh:formerRoots"):
        read(state | {"marblemesh:formerRoots": entry(former)})


def test_records_without_a_manifest() -> None:
    state = records(b"", state=State.ACCEPTING_MANIFEST)
    assert read(written(state)) == state


def test_a_security_version_that_equals_or_is_below_the_manifest_s_is_not_a_raised_one() -> None:
    for version in (0, 1):
        assert read(written(records(security_versions={"p": version}))) == records()


def test_entries_of_another_version_are_left_out_and_named() -> None:
    state = written(records()) | {"future": entry(b"x"), "shiny:thing": entry(b"y")}
    found = read_records(json.dumps(state).encode())
    assert (found.records, found.unknown) == (records(), ("future", "shiny:thing"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("state", b""),
        ("state", b"4"),
        ("state", b"-1"),
        ("state", b"1_1"),
        ("state", "²".encode()),
        ("activations:web", b"xyz"),
        ("activations:web", b"f" * 17),
        ("activations:web", b"-1"),
        ("monotonicCounter:a", bytes(7)),
        ("monotonicCounter:a", bytes(9)),
        ("updateLog", b"\xff"),
        ("secret:a", b"1"),
        ("secret:a", {}),
        ("secret:a", {"Type": "gold"}),
        ("secret:a", {"Type": 1}),
        ("secret:a", {"Type": "plain", "Size": -1}),
        ("secret:a", {"Type": "plain", "Size": True}),
        ("secret:a", {"Type": "plain", "Shared": 1}),
        ("secret:a", {"Type": "plain", "Private": "!"}),
        ("secret:a", {"Type": "plain", "Cert": 5}),
        ("pendingUpdate", {}),
        ("pendingUpdate", {"manifestRaw": "", "requiredUsers": [], "missingAcknowledgments": 0}),
        ("pendingUpdate", {"manifestRaw": "", "requiredUsers": {"a": 1}, "missingAcknowledgments": 0}),
        ("package:p", {"SecurityVersion": "1"}),
        ("marblemesh:formerRoots", {}),
        ("marblemesh:formerRoots", b"\xff"),
        ("marblemesh:formerRoots", {"Issuers": {}, "Departed": [], "Revoked": []}),
        ("marblemesh:formerRoots", {"Issuers": [1], "Departed": [], "Revoked": []}),
        ("marblemesh:formerRoots", {"Issuers": [{}], "Departed": [], "Revoked": []}),
        ("marblemesh:formerRoots", {"Issuers": [], "Departed": [{"MarbleRoot": "", "Until": ""}], "Revoked": []}),
        ("marblemesh:formerRoots", {"Issuers": [], "Departed": [], "Revoked": [{"Type": 1, "UUID": ""}]}),
        ("marblemesh:formerRoots", {"Issuers": [], "Departed": [], "Revoked": [{"Type": "t", "UUID": "u"}] * 10_001}),
        ("manifest", b"{}"),
        ("manifest", b"\xff"),
        ("manifest", b""),
        ("certificate:coordinatorRootCert", b""),
        ("certificate:marbleRootCert", b"junk"),
        ("privateKey:coordinatorRootKey", b""),
        ("privateKey:coordinatorIntermediateKey", b"junk"),
    ],
)
def test_a_value_that_does_not_belong_under_its_key_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(StoreDamaged, match=rf"sealed state: .*{key.partition(':')[0]}"):
        read(written(records()) | {key: entry(value)})


@pytest.mark.parametrize("value", [1, True, [], {}, "!", "AAA"])
def test_a_value_that_is_not_base64_is_refused(value: object) -> None:
    with pytest.raises(StoreDamaged, match="does not hold what belongs there"):
        read(written(records()) | {"state": value})


@pytest.mark.parametrize("version", [3, 9, 127])
def test_a_certificate_of_an_unknown_version_is_refused(version: int) -> None:
    """Found by fuzzing: the library raises something of its own for it."""
    key = "certificate:coordinatorRootCert"
    der = base64.b64decode(written(records())[key])
    assert der.count(b"\xa0\x03\x02\x01\x02") == 1
    changed = der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01" + bytes([version]))
    with pytest.raises(StoreDamaged, match="coordinatorRootCert' does not hold what belongs there"):
        read(written(records()) | {key: entry(changed)})


def test_a_key_that_belongs_to_another_certificate_is_refused() -> None:
    state = written(records())
    swapped = state | {"privateKey:coordinatorRootKey": state["privateKey:coordinatorIntermediateKey"]}
    with pytest.raises(StoreDamaged, match="coordinatorRootKey does not belong to the certificate"):
        read(swapped)


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"\xff", b"[" * 100_000, b'{"a":' * 10_000, b"," * 300_000])
def test_what_is_no_state_at_all_is_refused(data: bytes) -> None:
    with pytest.raises(StoreDamaged, match="sealed state"):
        read_records(data)


def test_no_secret_is_in_an_error_s_text() -> None:
    with pytest.raises(StoreDamaged) as caught:
        read(written(records()) | {"secret:a": entry({"Type": "plain", "Private": "c2VjcmV0!"})})
    assert "c2VjcmV0" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_more_than_can_be_read_again_is_not_written() -> None:
    with pytest.raises(StoreError, match="at most"):
        Writer().write(records(activations=dict.fromkeys(map(str, range(200_001)), 1)), MANIFEST)
