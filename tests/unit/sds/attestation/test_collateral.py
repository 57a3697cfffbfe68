# SPDX-License-Identifier: Apache-2.0
"""Collateral from files: found by name, read again when it changes, refused when it cannot be read."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sds.attestation.collateral import (
    MAX_COLLATERAL,
    Collateral,
    CollateralKey,
    DirectoryCollateral,
    collateral_key,
)
from sds.attestation.errors import CollateralUnavailable, Malformed
from sds.attestation.evidence import Evidence
from sds.attestation.simulated.pki import FMSPC
from sds.attestation.tee import Tee
from tests.kit.platform import NOW, lab

# The cryptography library warns of odd certificates (a negative serial, a country of 21 letters), but reads them.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

KEY = CollateralKey(FMSPC, "platform", Tee.SGX)
NAME = "53494d550001-platform-sgx.json"


def test_a_quote_says_which_collateral_it_needs() -> None:
    assert collateral_key(lab().sgx()) == KEY
    assert collateral_key(lab().tdx()) == replace(KEY, tee=Tee.TDX)
    assert f"{KEY}.json" == NAME


def test_a_quote_without_a_pck_certificate_is_malformed() -> None:
    with pytest.raises(Malformed, match="PCK certificate"):
        collateral_key(Evidence(Tee.SGX, lab().sgx().quote[:500]))


def test_what_is_written_is_read_back() -> None:
    made = lab().collateral()
    read = Collateral.from_json(made.to_json())
    assert read == made
    assert (read.tee, read.fmspc, read.pce_id) == (Tee.SGX, FMSPC, b"\0\0")
    assert read.tcb_info.evaluation_number == 17
    assert read.tcb_info.issued < NOW < read.next_update


async def test_the_directory_has_one_file_per_kind_of_platform(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(lab().collateral().to_json())
    source = DirectoryCollateral(tmp_path)
    found = await source.get(KEY)
    assert lab().verifier().verify(lab().sgx(), found, NOW).fmspc == FMSPC
    assert await source.get(KEY) is found
    with pytest.raises(CollateralUnavailable, match=r"no file .*53494d550001-platform-tdx\.json"):
        await source.get(replace(KEY, tee=Tee.TDX))


async def test_a_replaced_file_is_read_again(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(lab().collateral().to_json())
    source = DirectoryCollateral(tmp_path)
    assert (await source.get(KEY)).tcb_info.evaluation_number == 17
    newer = tmp_path / "newer"
    newer.write_text(lab().saying(evaluation_number=18).collateral().to_json())
    newer.rename(tmp_path / NAME)
    assert (await source.get(KEY)).tcb_info.evaluation_number == 18


async def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("{")
    with pytest.raises(Malformed, match=NAME):
        await DirectoryCollateral(tmp_path).get(KEY)
    (tmp_path / NAME).write_bytes(b"x" * (MAX_COLLATERAL + 10))
    with pytest.raises(Malformed, match="collateral size"):
        await DirectoryCollateral(tmp_path).get(KEY)
    (tmp_path / NAME).unlink()
    (tmp_path / NAME).mkdir()
    with pytest.raises(CollateralUnavailable, match="directory"):
        await DirectoryCollateral(tmp_path).get(KEY)


@pytest.mark.parametrize(
    ("document", "old", "new"),
    [
        ("tcb_info", '"fmspc":"53494D550001"', '"fmspc":"?"'),
        ("tcb_info", '"pceId":"0000",', ""),
        ("tcb_info", '"id":"SGX"', '"id":"SEV"'),
        ("tcb_info", '"tcbEvaluationDataNumber":17', '"tcbEvaluationDataNumber":"17"'),
        ("tcb_info", '"nextUpdate":"2026-07-01T11:00:00Z"', '"nextUpdate":"2026-07-01T11:00:00"'),
        ("qe_identity", '"issueDate":"2026-06-01T11:00:00Z"', '"issueDate":"yesterday"'),
        ("qe_identity", "{", "["),
    ],
)
def test_a_document_that_lacks_what_we_need_is_malformed(document: str, old: str, new: str) -> None:
    value = json.loads(lab().collateral().to_json())
    assert old in value[document]
    value[document] = value[document].replace(old, new)
    with pytest.raises(Malformed, match="collateral"):
        Collateral.from_json(json.dumps(value))


@given(st.recursive(st.none() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)))
def test_no_json_breaks_the_reader(value: object) -> None:
    with pytest.raises(Malformed):
        Collateral.from_json(json.dumps(value))


@given(
    st.sampled_from(["tcb_info", "qe_identity", "root_ca_crl", "pck_crl", "tcb_info_signature"]),
    st.text(max_size=40) | st.just("[" * 5000),
)
def test_no_document_breaks_the_reader(name: str, text: str) -> None:
    value = json.loads(lab().collateral().to_json())
    value[name] = text
    with suppress(Malformed):
        Collateral.from_json(json.dumps(value))
