# SPDX-License-Identifier: Apache-2.0
"""What the policy makes of the facts: default deny, all mismatches at once, Revoked never."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sds.attestation.claims import Claims, SgxClaims, TdxClaims
from sds.attestation.errors import BindingMismatch, PolicyViolation, TcbRejected
from sds.attestation.policy import ACCEPTABLE_TCB_STATUSES, Policy, SgxPolicy, TdxPolicy, appraise
from sds.attestation.report_data import (
    MAX_NONCE,
    check_report_data,
    coordinator_report_data,
    marble_report_data,
)
from sds.attestation.tee import Tee
from tests.kit.platform import ENCLAVE, NOW, REPORT_DATA, TRUST_DOMAIN, lab


def proven(tee: Tee) -> Claims:
    evidence = lab().sgx() if tee is Tee.SGX else lab().tdx()
    return lab().verifier().verify(evidence, lab().collateral(tee), NOW)


SGX, TDX = proven(Tee.SGX), proven(Tee.TDX)
BY_SIGNER = SgxPolicy(signer_id=ENCLAVE.signer_id, product_id=1, security_version=1)
BY_MEASUREMENT = SgxPolicy(unique_id=ENCLAVE.unique_id)
TD = TdxPolicy(mrtd=TRUST_DOMAIN.mrtd)


@pytest.mark.parametrize(
    ("claims", "policy"), [(SGX, BY_SIGNER), (SGX, BY_MEASUREMENT), (TDX, TD), (SGX, replace(BY_SIGNER, product_id=1))]
)
def test_the_right_code_passes(claims: Claims, policy: Policy) -> None:
    appraise(claims, policy)


@pytest.mark.parametrize(
    ("policy", "mismatch"),
    [
        (replace(BY_MEASUREMENT, unique_id=bytes(32)), "unique id: want 0000"),
        (replace(BY_SIGNER, signer_id=bytes(32)), "signer id: want 0000"),
        (replace(BY_SIGNER, product_id=2), "product id: want 2, got 1"),
        (replace(BY_SIGNER, security_version=2), "security version: want at least 2, got 1"),
        (replace(BY_SIGNER, debug=True), "debug: want true, got false"),
    ],
)
def test_one_wrong_property_of_an_enclave_is_named(policy: SgxPolicy, mismatch: str) -> None:
    with pytest.raises(PolicyViolation, match=mismatch):
        appraise(SGX, policy)


@pytest.mark.parametrize(
    "name",
    ["mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "mrconfigid", "mrowner", "mrownerconfig", "mrseam", "td_attributes"],
)
def test_one_wrong_register_of_a_trust_domain_is_named(name: str) -> None:
    wanted: dict[str, Any] = {name: b"\xff" * 48}
    with pytest.raises(PolicyViolation) as refused:
        appraise(TDX, replace(TD, **wanted))
    assert [m.claim.lower().replace("tdattributes", "td_attributes") for m in refused.value.mismatches] == [name]


def test_all_mismatches_are_reported_at_once() -> None:
    policy = SgxPolicy(signer_id=bytes(32), product_id=7, security_version=9, debug=True)
    with pytest.raises(PolicyViolation) as refused:
        appraise(SGX, policy)
    assert [m.claim for m in refused.value.mismatches] == ["signer id", "product id", "security version", "debug"]


@pytest.mark.parametrize(
    ("claims", "policy"),
    [
        (SGX, SgxPolicy()),
        (SGX, SgxPolicy(signer_id=ENCLAVE.signer_id)),
        (SGX, SgxPolicy(product_id=1, security_version=1)),
        (TDX, TdxPolicy()),
        (TDX, TdxPolicy(rtmr0=bytes(48))),
    ],
)
def test_a_policy_that_names_no_code_matches_nothing(claims: Claims, policy: Policy) -> None:
    with pytest.raises(PolicyViolation, match="policy: want"):
        appraise(claims, policy)


def test_another_tee_is_not_the_wanted_one() -> None:
    with pytest.raises(PolicyViolation, match="tee: want tdx, got sgx"):
        appraise(SGX, TD)
    with pytest.raises(PolicyViolation, match="tee: want sgx, got tdx"):
        appraise(TDX, BY_SIGNER)


def test_a_debug_trust_domain_never_passes() -> None:
    assert isinstance(TDX, TdxClaims)
    with pytest.raises(PolicyViolation, match="debug"):
        appraise(replace(TDX, debug=True), TD)


@pytest.mark.parametrize("status", sorted(ACCEPTABLE_TCB_STATUSES - {"UpToDate", "SWHardeningNeeded"}))
def test_a_status_passes_only_when_it_is_accepted_by_name(status: str) -> None:
    claims = replace(SGX, tcb_status=status, advisories=("INTEL-SA-1",))
    with pytest.raises(TcbRejected, match=f"the platform is {status}") as refused:
        appraise(claims, BY_SIGNER)
    assert (refused.value.status, refused.value.advisories) == (status, ("INTEL-SA-1",))
    appraise(claims, replace(BY_SIGNER, accepted_tcb_statuses=frozenset({status})))


def test_up_to_date_needs_no_mention() -> None:
    appraise(SGX, replace(BY_SIGNER, accepted_tcb_statuses=frozenset()))


@pytest.mark.parametrize("status", ["Revoked", "Splendid"])
def test_revoked_and_unknown_statuses_cannot_be_accepted(status: str) -> None:
    policy = replace(BY_SIGNER, accepted_tcb_statuses=frozenset({status}))
    with pytest.raises(TcbRejected):
        appraise(replace(SGX, tcb_status=status), policy)


@pytest.mark.parametrize("status", ["SWHardeningNeeded", "ConfigurationAndSWHardeningNeeded"])
def test_a_list_of_advisories_is_complete(status: str) -> None:
    claims = replace(SGX, tcb_status=status, advisories=("INTEL-SA-1", "INTEL-SA-2"))
    policy = replace(BY_SIGNER, accepted_tcb_statuses=ACCEPTABLE_TCB_STATUSES)
    appraise(claims, policy)
    appraise(claims, replace(policy, accepted_advisories=frozenset({"intel-sa-1", "INTEL-SA-2"})))
    with pytest.raises(TcbRejected, match="with INTEL-SA-2, accepted are INTEL-SA-1"):
        appraise(claims, replace(policy, accepted_advisories=frozenset({"INTEL-SA-1"})))
    with pytest.raises(TcbRejected, match="no advisory named"):
        appraise(replace(claims, advisories=()), replace(policy, accepted_advisories=frozenset({"INTEL-SA-1"})))


def test_the_right_code_on_a_bad_platform_is_a_matter_of_the_platform() -> None:
    claims = replace(SGX, tcb_status="OutOfDate")
    with pytest.raises(PolicyViolation):
        appraise(claims, replace(BY_SIGNER, product_id=2))
    with pytest.raises(TcbRejected):
        appraise(claims, BY_SIGNER)


def test_report_data_is_a_hash_and_zeros() -> None:
    assert marble_report_data(b"certificate").endswith(bytes(32))
    assert coordinator_report_data(b"root") == marble_report_data(b"root")
    assert coordinator_report_data(b"root", b"nonce") == marble_report_data(b"rootnonce")
    assert len(coordinator_report_data(b"root", bytes(MAX_NONCE))) == 64
    with pytest.raises(ValueError, match="nonce of 1025 bytes"):
        coordinator_report_data(b"root", bytes(MAX_NONCE + 1))


def test_all_64_bytes_of_report_data_count() -> None:
    check_report_data(SGX, REPORT_DATA)
    for at in range(64):
        other = bytearray(REPORT_DATA)
        other[at] ^= 1
        with pytest.raises(BindingMismatch, match="bound to another certificate"):
            check_report_data(SGX, bytes(other))


def test_a_prefix_of_report_data_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="32 bytes, not 64"):
        check_report_data(SGX, REPORT_DATA[:32])


def test_claims_become_plain_json() -> None:
    assert isinstance(SGX, SgxClaims)
    json = SGX.to_json()
    assert json["tee"] == "sgx"
    assert json["measurement"] == json["mrenclave"] == ENCLAVE.unique_id.hex()
    assert (json["tcb_status"], json["simulated"], json["isv_svn"]) == ("UpToDate", True, 1)
    assert json["collateral_expires"] == "2026-07-01T11:00:00Z"
    assert TDX.to_json()["rtmr"] == ["00" * 48] * 4
