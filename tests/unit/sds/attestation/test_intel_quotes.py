# SPDX-License-Identifier: Apache-2.0
"""Quotes that real machines made and Intel's root vouches for, at the times for which we have collateral."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sds.attestation.claims import SgxClaims, TdxClaims
from sds.attestation.collateral import Collateral, collateral_key
from sds.attestation.errors import Expired, TcbRejected
from sds.attestation.evidence import Evidence
from sds.attestation.policy import DEFAULT_TCB_STATUSES, SgxPolicy, TdxPolicy, appraise
from sds.attestation.verify import DcapVerifier

QUOTES = Path(__file__).parents[3] / "data" / "quotes"
WITHIN = datetime(2025, 7, 1, tzinfo=UTC)
BEFORE, AFTER = datetime(2025, 6, 19, 10, 0, tzinfo=UTC), datetime(2025, 7, 19, 10, 2, tzinfo=UTC)
CONFIGURATION = "ConfigurationAndSWHardeningNeeded"


def load(name: str) -> tuple[Evidence, Collateral]:
    evidence = Evidence.parse((QUOTES / f"{name}_quote").read_bytes())
    return evidence, Collateral.from_json((QUOTES / f"{name}_quote_collateral.json").read_bytes())


def test_the_pinned_root_is_intels() -> None:
    from_file = DcapVerifier((QUOTES / "TrustedRootCA.der").read_bytes())
    assert from_file.verify(*load("sgx"), WITHIN) == DcapVerifier.intel().verify(*load("sgx"), WITHIN)


def test_an_sgx_machine_that_needs_configuration() -> None:
    claims = DcapVerifier.intel().verify(*load("sgx"), WITHIN)
    assert isinstance(claims, SgxClaims)
    assert claims.tcb_status == CONFIGURATION
    assert claims.advisories == ("INTEL-SA-00289", "INTEL-SA-00615")
    assert claims.fmspc.hex() == "00a067110000"
    assert claims.mrenclave.hex().startswith("33d8736db756ed49")
    assert claims.report_data.rstrip(b"\0") == b"Hello, world!"
    assert (claims.platform_id, claims.simulated, claims.debug) == (None, False, False)
    assert claims.collateral_expires == datetime(2025, 7, 19, 10, 1, 18, tzinfo=UTC)


def test_its_status_must_be_accepted_by_name() -> None:
    claims = DcapVerifier.intel().verify(*load("sgx"), WITHIN)
    with pytest.raises(TcbRejected, match=f"the platform is {CONFIGURATION}") as refused:
        appraise(claims, SgxPolicy(unique_id=claims.measurement))
    assert refused.value.status == CONFIGURATION
    appraise(
        claims,
        SgxPolicy(unique_id=claims.measurement, accepted_tcb_statuses=DEFAULT_TCB_STATUSES | {CONFIGURATION}),
    )


def test_a_tdx_machine_in_order() -> None:
    claims = DcapVerifier.intel().verify(*load("tdx"), WITHIN)
    assert isinstance(claims, TdxClaims)
    assert claims.tcb_status == "UpToDate"
    assert claims.mrtd.hex().startswith("91eb2b44d141d4ec")
    assert claims.rtmr[0].hex().startswith("44c0197b39157fdd")
    assert claims.platform_id is not None
    assert claims.platform_id.hex() == "07828474603e7019dc930775ffe8cdd2"
    appraise(claims, TdxPolicy(mrtd=claims.mrtd, rtmr0=claims.rtmr[0], rtmr3=bytes(48)))


@pytest.mark.parametrize("name", ["sgx", "tdx"])
@pytest.mark.parametrize("now", [BEFORE, AFTER, WITHIN - timedelta(days=365), WITHIN + timedelta(days=365)])
def test_outside_the_window_the_collateral_has_expired(name: str, now: datetime) -> None:
    with pytest.raises(Expired, match=r"TCB info|QE identity|revocation list"):
        DcapVerifier.intel().verify(*load(name), now)


@pytest.mark.parametrize("name", ["sgx", "tdx"])
def test_the_readmes_window_is_accepted_to_the_minute(name: str) -> None:
    start, end = datetime(2025, 6, 19, 10, 57, tzinfo=UTC), datetime(2025, 7, 19, 10, 0, 30, tzinfo=UTC)
    for now in (start, end):
        assert DcapVerifier.intel().verify(*load(name), now).fmspc


def test_the_collateral_they_need_is_named() -> None:
    assert str(collateral_key(load("sgx")[0])) == "00a067110000-processor-sgx"
    assert str(collateral_key(load("tdx")[0])) == "b0c06f000000-platform-tdx"
