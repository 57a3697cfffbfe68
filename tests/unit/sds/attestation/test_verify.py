# SPDX-License-Identifier: Apache-2.0
"""What must not verify, and that the error says which check refused it."""

from __future__ import annotations

import json
import ssl
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

import dcap_qvl
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from sds.attestation.claims import SgxClaims, TdxClaims
from sds.attestation.collateral import Collateral
from sds.attestation.errors import AttestationError, Expired, Malformed, PolicyViolation, TcbRejected, Untrusted
from sds.attestation.evidence import Evidence
from sds.attestation.quote import Quote, read_chain
from sds.attestation.tee import Tee
from sds.attestation.verify import DcapVerifier
from tests.kit.platform import ENCLAVE, NOW, REPORT_DATA, TRUST_DOMAIN, Lab, lab

# The cryptography library warns of odd certificates (a negative serial, a country of 21 letters), but reads them.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

COLLATERAL = lab().collateral().to_json()
SIGNED = {Tee.SGX: 432, Tee.TDX: 632}


def check(lab: Lab, evidence: Evidence | None = None, now: datetime = NOW) -> SgxClaims | TdxClaims:
    evidence = evidence or lab.sgx()
    return lab.verifier().verify(evidence, lab.collateral(evidence.tee), now)


def test_an_enclave_proves_what_it_is() -> None:
    claims = check(lab())
    assert isinstance(claims, SgxClaims)
    assert (claims.mrenclave, claims.mrsigner) == (ENCLAVE.unique_id, ENCLAVE.signer_id)
    assert (claims.isv_prod_id, claims.isv_svn, claims.debug) == (1, 1, False)
    assert (claims.report_data, claims.tcb_status, claims.simulated) == (REPORT_DATA, "UpToDate", True)
    assert claims.platform_id is not None
    assert NOW < claims.collateral_expires < NOW + timedelta(days=31)


@pytest.mark.parametrize(("version", "size"), [(4, 584), (5, 584), (5, 648)])
def test_a_trust_domain_proves_what_it_is(version: int, size: int) -> None:
    claims = check(lab(), lab().tdx(version=version, size=size))
    assert isinstance(claims, TdxClaims)
    assert (claims.mrtd, claims.rtmr, claims.report_data) == (TRUST_DOMAIN.mrtd, TRUST_DOMAIN.rtmr, REPORT_DATA)
    assert claims.mrservicetd == (bytes(48) if size == 648 else None)


@pytest.mark.parametrize("tee", Tee)
def test_every_flipped_byte_of_header_and_body_is_refused(tee: Tee) -> None:
    evidence = lab().sgx() if tee is Tee.SGX else lab().tdx()
    verifier, collateral = lab().verifier(), lab().collateral(tee)
    for at in range(SIGNED[tee]):
        flipped = bytearray(evidence.quote)
        flipped[at] ^= 0xFF
        with pytest.raises(AttestationError):
            verifier.verify(Evidence(tee, bytes(flipped)), collateral, NOW)


@pytest.mark.parametrize("tee", Tee)
def test_flipped_bytes_of_the_signature_data_are_refused_up_to_the_pem(tee: Tee) -> None:
    evidence = lab().sgx() if tee is Tee.SGX else lab().tdx()
    verifier, collateral = lab().verifier(), lab().collateral(tee)
    for at in range(SIGNED[tee], evidence.quote.index(b"-----BEGIN"), 7):
        flipped = bytearray(evidence.quote)
        flipped[at] ^= 0x01
        with pytest.raises(AttestationError):
            verifier.verify(Evidence(tee, bytes(flipped)), collateral, NOW)


def test_a_flipped_measurement_fails_the_signature_check() -> None:
    quote = bytearray(lab().sgx().quote)
    quote[112] ^= 1  # MRENCLAVE
    with pytest.raises(Untrusted, match="signature is invalid"):
        check(lab(), Evidence(Tee.SGX, bytes(quote)))


@pytest.mark.parametrize("cut", [120, 144, 368, 432, 436, 450])
def test_two_quotes_of_one_platform_cannot_be_spliced(cut: int) -> None:
    """Up to the quote's signature. What follows it certifies the platform's key, and is the same for both."""
    one, other = lab().sgx().quote, lab().sgx(replace(ENCLAVE, unique_id=bytes(32)), bytes(64)).quote
    spliced = one[:cut] + other[cut:]
    assert spliced not in (one, other)
    with pytest.raises(AttestationError):
        check(lab(), Evidence(Tee.SGX, spliced))


@pytest.mark.parametrize("cut", [48, 112, 368, 432, 436, 500, 564, 948, 1012, 1052])
def test_quotes_of_two_platforms_cannot_be_spliced(cut: int) -> None:
    one, other = lab().sgx().quote, Lab().sgx(report_data=bytes(64)).quote
    for verifying in (one[:cut] + other[cut:], other[:cut] + one[cut:]):
        with pytest.raises(AttestationError):
            check(lab(), Evidence(Tee.SGX, verifying))


def test_another_simulated_platform_is_another_root() -> None:
    with pytest.raises(Untrusted, match=r"PCK certificate chain: its root is .* pinned is"):
        Lab().verifier().verify(lab().sgx(), lab().collateral(), NOW)


def test_intels_verifier_refuses_simulation_and_says_so() -> None:
    with pytest.raises(Untrusted, match="simulation is switched on"):
        DcapVerifier.intel().verify(lab().sgx(), lab().collateral(), NOW)


def test_a_foreign_chain_with_the_pinned_roots_certificate_is_refused() -> None:
    ours, foreign = lab(), Lab()
    forged = Lab(pki=replace(foreign.pki, root=ours.pki.root))
    with pytest.raises(Untrusted, match="PCK certificate authority: not issued by"):
        check(ours, forged.sgx())


def test_a_certificate_of_another_role_cannot_be_a_pck() -> None:
    ours = lab()
    forged = Lab(pki=replace(ours.pki, pck=ours.pki.tcb_signing))
    with pytest.raises(Untrusted, match="PCK certificate: the certificate is for 'Intel SGX TCB Signing'"):
        check(ours, forged.sgx())


def test_a_pck_key_cannot_sign_tcb_info() -> None:
    leaked = replace(lab(), signer=lab().pki.pck)
    collateral = leaked.collateral()
    # The reason for our own check: the library accepts it.
    dcap_qvl.verify_with_root_ca(leaked.sgx().quote, collateral.qvl, leaked.pki.root_der, int(NOW.timestamp()))
    with pytest.raises(Untrusted, match="TCB info signer: the certificate is for 'Intel SGX PCK Certificate'"):
        leaked.verifier().verify(leaked.sgx(), collateral, NOW)


def test_a_pck_key_cannot_sign_the_qe_identity_either() -> None:
    good, leaked = lab().collateral().qvl, replace(lab(), signer=lab().pki.pck).collateral().qvl
    mixed = dcap_qvl.QuoteCollateralV3(
        good.pck_crl_issuer_chain,
        good.root_ca_crl,
        good.pck_crl,
        good.tcb_info_issuer_chain,
        good.tcb_info,
        good.tcb_info_signature,
        leaked.qe_identity_issuer_chain,
        leaked.qe_identity,
        leaked.qe_identity_signature,
    )
    with pytest.raises(Untrusted, match="QE identity signer"):
        lab().verifier().verify(lab().sgx(), Collateral.of(mixed), NOW)


def test_collateral_of_another_platform_is_refused() -> None:
    with pytest.raises(Untrusted, match="TCB info signer: not issued by"):
        lab().verifier().verify(lab().sgx(), Lab().collateral(), NOW)


@pytest.mark.parametrize("tee", Tee)
def test_collateral_for_the_other_tee_is_refused(tee: Tee) -> None:
    evidence = lab().tdx() if tee is Tee.SGX else lab().sgx()
    with pytest.raises(Untrusted, match=f"TCB info: it is for {tee.value}"):
        lab().verifier().verify(evidence, lab().collateral(tee), NOW)


def test_a_tampered_document_is_refused() -> None:
    qvl = lab().saying(status="OutOfDate").collateral().qvl
    text = qvl.to_json().replace("OutOfDate", "UpToDate")
    with pytest.raises(Untrusted, match="tcb_info"):
        lab().verifier().verify(lab().sgx(), Collateral.from_json(text), NOW)


def test_tcb_info_for_another_pce_is_refused() -> None:
    with pytest.raises(Untrusted, match="PCE id 0001"):
        check(lab().saying(pce_id=b"\0\1"))


@pytest.mark.parametrize(
    ("days", "what"),
    [(-1, "TCB info: issued at .* in the future"), (30, "TCB info: expired at"), (400, "TCB info: expired at")],
)
def test_stale_collateral_has_expired(days: int, what: str) -> None:
    with pytest.raises(Expired, match=what):
        check(lab(), now=NOW + timedelta(days=days))


def test_certificates_expire_too() -> None:
    late = NOW.replace(year=2051)
    with pytest.raises(Expired, match="PCK certificate: expired at 2049"):
        check(replace(lab(), documents_from=late), now=late)


def test_a_revoked_pck_is_refused() -> None:
    with pytest.raises(Untrusted, match="PCK certificate: revoked by"):
        check(lab().saying(revoked_by_ca=(lab().pki.pck,)))


def test_a_revoked_authority_or_signer_is_refused() -> None:
    with pytest.raises(Untrusted, match="PCK certificate authority: revoked by"):
        check(lab().saying(revoked_by_root=(lab().pki.platform_ca,)))
    with pytest.raises(Untrusted, match="TCB info signer: revoked by"):
        check(lab().saying(revoked_by_root=(lab().pki.tcb_signing,)))


@pytest.mark.parametrize("evidence", [lab().sgx(), lab().tdx()], ids=["sgx", "tdx"])
@pytest.mark.parametrize(
    "status", ["SWHardeningNeeded", "ConfigurationNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"]
)
def test_other_statuses_are_reported_for_the_policy_to_judge(evidence: Evidence, status: str) -> None:
    claims = check(lab().saying(status=status, advisories=("INTEL-SA-1",)), evidence)
    assert (claims.tcb_status, claims.advisories) == (status, ("INTEL-SA-1",))


def test_an_old_quoting_enclave_makes_the_platform_out_of_date() -> None:
    assert check(lab().saying(qe_status="OutOfDate")).tcb_status == "OutOfDate"


@pytest.mark.parametrize("verdict", [{"status": "Revoked"}, {"qe_status": "Revoked"}])
def test_a_revoked_level_is_refused_whatever_the_policy(verdict: dict[str, object]) -> None:
    with pytest.raises(TcbRejected, match="revoked") as refused:
        check(lab().saying(**verdict))
    assert refused.value.status == "Revoked"


def test_a_platform_below_every_level_is_refused() -> None:
    with pytest.raises(TcbRejected, match="TCB level"):
        check(lab().saying(required_svn=6))


def test_an_unknown_status_is_refused() -> None:
    with pytest.raises(Untrusted, match="TcbInfo"):
        check(lab().saying(status="Splendid"))


@pytest.mark.parametrize(
    "evidence",
    [lab().sgx(replace(ENCLAVE, debug=True)), lab().tdx(replace(TRUST_DOMAIN, debug=True))],
    ids=["sgx", "tdx"],
)
def test_debug_is_refused_by_name(evidence: Evidence) -> None:
    with pytest.raises(PolicyViolation, match="debug: want false, got true"):
        check(lab(), evidence)


def test_evidence_under_the_wrong_label_is_malformed() -> None:
    with pytest.raises(Malformed, match="handed over as tdx"):
        check(lab(), Evidence(Tee.TDX, lab().sgx().quote))


def test_a_pck_chain_beside_the_quote_is_not_preferred_to_the_one_in_it() -> None:
    text = lab().collateral().to_json()
    other = Collateral.from_json(text[:-1] + ', "pck_certificate_chain": "rubbish"}')
    assert lab().verifier().verify(lab().sgx(), other, NOW).tcb_status == "UpToDate"


def test_a_root_that_is_no_certificate_is_malformed() -> None:
    with pytest.raises(Malformed, match="attestation root"):
        DcapVerifier(b"root")


def test_the_debug_flags_are_where_intel_puts_them() -> None:
    assert Quote.parse(lab().sgx(replace(ENCLAVE, debug=True)).quote).debug
    assert Quote.parse(lab().tdx(replace(TRUST_DOMAIN, debug=True)).quote).debug


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_mutation_of_collateral_breaks_the_verifier(data: st.DataObject) -> None:
    """What is changed must be refused, or be something that is not used: the PCK CRL's chain, white space, case."""
    value = json.loads(COLLATERAL)
    name = data.draw(st.sampled_from(sorted(value)))
    text = value[name]
    at, new = data.draw(st.integers(0, len(text) - 1)), data.draw(st.sampled_from('0129afAZ+/=-{}[]":,\n\u00e9'))
    value[name] = text[:at] + new + text[at + 1 :]
    with suppress(AttestationError):
        claims = lab().verifier().verify(lab().sgx(), Collateral.from_json(json.dumps(value)), NOW)
        assert claims.tcb_status == "UpToDate"


def test_a_certificate_with_a_broken_key_is_malformed() -> None:
    """The point is not on the curve; the library notices only when the key is used."""
    leaf, authority, root = (pair.certificate for pair in (lab().pki.pck, lab().pki.platform_ca, lab().pki.root))
    der = authority.public_bytes(Encoding.DER)
    point = authority.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    broken = ssl.DER_cert_to_PEM_cert(der.replace(point, b"\x04" + b"\x01" * 64))
    chain = (lab().pki.pck.pem + broken + lab().pki.root.pem).encode()
    assert (leaf.issuer, authority.issuer) == (authority.subject, root.subject)
    with pytest.raises(Malformed, match="a certificate cannot be read"):
        read_chain(chain, "PCK certificate chain")
