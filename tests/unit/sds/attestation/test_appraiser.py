# SPDX-License-Identifier: Apache-2.0
"""A quote from the network, judged: the order of the checks, and what each refusal is called."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from sds.attestation.appraiser import Appraiser
from sds.attestation.collateral import Collateral, CollateralKey
from sds.attestation.errors import (
    AttestationError,
    BindingMismatch,
    Expired,
    Malformed,
    PolicyViolation,
    TcbRejected,
    Untrusted,
)
from sds.attestation.policy import SgxPolicy
from sds.attestation.ratchet import EvaluationRatchet
from sds.errors import SdsError
from tests.kit.platform import ENCLAVE, NOW, REPORT_DATA, Lab, lab, shared_platform, simulated_appraiser

POLICY = SgxPolicy(signer_id=ENCLAVE.signer_id, product_id=1, security_version=1)


@dataclass
class CountingSource:
    """Collateral of a lab, and how often it was asked for."""

    lab: Lab
    asked: list[CollateralKey] = field(default_factory=list)

    async def get(self, key: CollateralKey) -> Collateral:
        self.asked.append(key)
        return self.lab.collateral(key.tee)


async def test_the_right_quote_is_accepted_in_both_wire_forms() -> None:
    evidence = lab().sgx()
    for blob in (evidence.quote, evidence.to_wire()):
        claims = await lab().appraiser().appraise(blob, REPORT_DATA, POLICY)
        assert claims.measurement == ENCLAVE.unique_id


async def test_a_platform_on_disk_works_the_same() -> None:
    evidence = shared_platform().issuer(ENCLAVE).issue(REPORT_DATA)
    assert (await simulated_appraiser().appraise(evidence.to_wire(), REPORT_DATA, POLICY)).simulated


@pytest.mark.parametrize(
    ("quote", "report_data", "policy", "error", "reason"),
    [
        (b"", REPORT_DATA, POLICY, Malformed, "malformed"),
        (Lab().sgx().quote, REPORT_DATA, POLICY, Untrusted, "untrusted"),
        (lab().sgx().quote, bytes(64), POLICY, BindingMismatch, "binding_mismatch"),
        (lab().sgx().quote, REPORT_DATA, replace(POLICY, security_version=2), PolicyViolation, "policy_violation"),
        (
            lab().sgx(replace(ENCLAVE, signer_id=bytes(32))).quote,
            REPORT_DATA,
            POLICY,
            PolicyViolation,
            "policy_violation",
        ),
    ],
)
async def test_each_refusal_has_its_class_and_its_label(
    quote: bytes, report_data: bytes, policy: SgxPolicy, error: type[AttestationError], reason: str
) -> None:
    with pytest.raises(error) as refused:
        await lab().appraiser().appraise(quote, report_data, policy)
    assert refused.value.reason == reason
    assert isinstance(refused.value, SdsError)


async def test_an_out_of_date_platform_is_refused_by_default() -> None:
    old = lab().saying(status="OutOfDate", advisories=("INTEL-SA-00615",))
    with pytest.raises(TcbRejected, match=r"OutOfDate \(advisories: INTEL-SA-00615\)"):
        await old.appraiser().appraise(old.sgx().quote, REPORT_DATA, POLICY)


async def test_nothing_is_fetched_for_a_chain_that_is_not_ours() -> None:
    source = CountingSource(lab())
    appraiser = Appraiser(lab().verifier(), source, lambda: NOW)
    for quote in (b"", Lab().sgx().quote):
        with pytest.raises(AttestationError):
            await appraiser.verify(quote)
    assert source.asked == []
    await appraiser.verify(lab().sgx().quote)
    assert len(source.asked) == 1


async def test_collateral_never_goes_back() -> None:
    source = CountingSource(lab().saying(evaluation_number=18))
    appraiser = Appraiser(lab().verifier(), source, lambda: NOW)
    assert (await appraiser.verify(lab().sgx().quote)).tcb_evaluation_number == 18
    source.lab = lab().saying(evaluation_number=17)
    with pytest.raises(Expired, match="evaluation data number 17, but 18 was seen"):
        await appraiser.verify(lab().sgx().quote)
    assert (await appraiser.verify(lab().tdx().quote)).tcb_evaluation_number == 17  # another kind of platform


async def test_a_lowest_evaluation_number_can_be_required() -> None:
    appraiser = Appraiser(lab().verifier(), lab(), lambda: NOW, EvaluationRatchet(minimum=18))
    with pytest.raises(Expired, match="18 was seen or required"):
        await appraiser.verify(lab().sgx().quote)
