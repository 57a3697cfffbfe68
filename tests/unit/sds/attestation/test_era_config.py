# SPDX-License-Identifier: Apache-2.0
"""MarbleRun's era config: read as Go reads it, but never into a policy that matches more than was meant."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sds.attestation.era_config import EraConfig
from sds.attestation.errors import Malformed
from sds.attestation.policy import DEFAULT_TCB_STATUSES, SgxPolicy, TdxPolicy

SIGNER = "43361affedeb75affee9baec7e054a5e14883213e5a121b67d74a0e12e9d2b7a"


def test_the_file_of_a_release() -> None:
    text = json.dumps({"SecurityVersion": 3, "ProductID": 3, "SignerID": SIGNER})
    assert EraConfig.parse(text) == EraConfig(
        SgxPolicy(signer_id=bytes.fromhex(SIGNER), product_id=3, security_version=3)
    )


def test_all_members_in_any_case_and_nulls() -> None:
    config = EraConfig.parse(
        json.dumps(
            {
                "uniqueid": "AB" * 32,
                "SIGNERID": "",
                "productID": None,
                "securityVersion": 0,
                "debug": False,
                "acceptedTCBStatuses": ["OutOfDate"],
                "AcceptedAdvisories": ["INTEL-SA-1"],
                "InsecureSkipVerify": False,
                "Nonce": "bm9uY2U=",
                "Unknown": {"of": "a later version"},
            }
        )
    )
    assert config.nonce == b"nonce"
    assert config.policy == SgxPolicy(
        unique_id=b"\xab" * 32,
        accepted_tcb_statuses=frozenset({"OutOfDate"}),
        accepted_advisories=frozenset({"INTEL-SA-1"}),
    )


def test_empty_lists_mean_the_defaults() -> None:
    policy = EraConfig.parse(
        json.dumps({"UniqueID": "ab" * 32, "AcceptedTCBStatuses": [], "AcceptedAdvisories": []})
    ).policy
    assert (policy.accepted_tcb_statuses, policy.accepted_advisories) == (DEFAULT_TCB_STATUSES, None)


def test_a_coordinator_in_a_confidential_vm() -> None:
    policy = EraConfig.parse(json.dumps({"TDX": {"MRTD": "01" * 48, "RTMR2": "02" * 48}})).policy
    assert policy == TdxPolicy(mrtd=b"\1" * 48, rtmr2=b"\2" * 48)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "not JSON"),
        ("[" * 50_000, "not JSON"),
        (" " * 70_000, "70000 bytes"),
        ("[]", "expected a JSON object"),
        ("{}", "give UniqueID, or SignerID with"),
        (json.dumps({"SignerID": SIGNER}), "give UniqueID, or SignerID with"),
        (json.dumps({"SignerID": SIGNER, "ProductID": 3}), "give UniqueID, or SignerID with"),
        (json.dumps({"SignerID": SIGNER, "ProductID": 3, "SecurityVersion": 0}), "give UniqueID, or SignerID with"),
        ('{"UniqueID": "ab"}', "UniqueID is 'ab', expected 64 hex digits"),
        ('{"UniqueID": 7}', "UniqueID is 7"),
        ('{"ProductID": "3"}', "ProductID is '3'"),
        ('{"ProductID": true}', "ProductID is True"),
        ('{"SecurityVersion": -1}', "SecurityVersion is -1"),
        ('{"Debug": "yes", "UniqueID": "%s"}' % ("ab" * 32), "Debug is 'yes'"),
        ('{"UniqueID": "", "uniqueID": ""}', "appears twice"),
        ('{"InsecureSkipVerify": true}', "InsecureSkipVerify is set"),
        ('{"UniqueID": "%s", "AcceptedTCBStatuses": ["Revoked"]}' % ("ab" * 32), "AcceptedTCBStatuses has 'Revoked'"),
        ('{"UniqueID": "%s", "AcceptedAdvisories": "all"}' % ("ab" * 32), "AcceptedAdvisories is not a list"),
        ('{"UniqueID": "%s", "Nonce": "?"}' % ("ab" * 32), "Nonce is not base64"),
        (json.dumps({"UniqueID": "ab" * 32, "Nonce": "AAAA" * 400}), "Nonce has 1200 bytes"),
        ('{"TDX": []}', "TDX: expected a JSON object"),
        ('{"TDX": {"RTMR0": "%s"}}' % ("ab" * 48), "give at least MRTD"),
    ],
)
def test_what_is_wrong_is_named(text: str, what: str) -> None:
    with pytest.raises(Malformed, match=what):
        EraConfig.parse(text)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=4), st.data())
def test_no_value_of_a_member_breaks_the_reader(value: object, data: st.DataObject) -> None:
    names = ["UniqueID", "SignerID", "ProductID", "SecurityVersion", "Debug", "AcceptedTCBStatuses", "Nonce", "TDX"]
    members: dict[str, object] = {"UniqueID": "ab" * 32}
    members[data.draw(st.sampled_from(names))] = value
    with suppress(Malformed):
        EraConfig.parse(json.dumps(members))
