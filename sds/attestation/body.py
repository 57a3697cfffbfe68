# SPDX-License-Identifier: Apache-2.0
"""From a verified quote's report body to claims.

The body is read here by offset, and the verifier's own reading of the fields that matter most is compared with it: two
parsers that disagree about a measurement would be a hole, whichever of them is right.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

from sds.attestation.claims import Claims, SgxClaims, TdxClaims
from sds.attestation.errors import Untrusted
from sds.attestation.quote import Quote
from sds.attestation.tee import Tee


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformFacts:
    """What verification found out about the machine; the fields are those of the claims."""

    tcb_status: str
    advisories: tuple[str, ...]
    tcb_evaluation_number: int
    fmspc: bytes
    platform_id: bytes | None
    simulated: bool
    collateral_expires: datetime
    report: Mapping[str, Any] = field(repr=False)
    """The verifier's reading of the report body, hex."""


def read_claims(quote: Quote, facts: PlatformFacts) -> Claims:
    """Put together what a *verified* quote says.

    :raises Untrusted: if the verifier read another measurement or other report data.
    """
    common = {f.name: getattr(facts, f.name) for f in fields(facts) if f.name != "report"}
    if quote.tee is Tee.SGX:
        sgx = _sgx(quote, common)
        _same(facts.report, mr_enclave=sgx.mrenclave, mr_signer=sgx.mrsigner, report_data=sgx.report_data)
        return sgx
    tdx = _tdx(quote, common)
    _same(_innermost(facts.report), mr_td=tdx.mrtd, rt_mr3=tdx.rtmr[3], report_data=tdx.report_data)
    return tdx


def _sgx(quote: Quote, common: Mapping[str, Any]) -> SgxClaims:
    body = quote.body
    product, version, config_version = struct.unpack_from("<HHH", body, 256)
    return SgxClaims(
        **common,
        cpu_svn=body[0:16],
        misc_select=int.from_bytes(body[16:20], "little"),
        isv_ext_prod_id=body[32:48],
        attributes=body[48:64],
        debug=quote.debug,
        mrenclave=body[64:96],
        mrsigner=body[128:160],
        config_id=body[192:256],
        isv_prod_id=product,
        isv_svn=version,
        config_svn=config_version,
        isv_family_id=body[304:320],
        report_data=quote.report_data,
    )


def _tdx(quote: Quote, common: Mapping[str, Any]) -> TdxClaims:
    body = quote.body
    return TdxClaims(
        **common,
        tee_tcb_svn=body[0:16],
        mrseam=body[16:64],
        mrsignerseam=body[64:112],
        td_attributes=body[120:128],
        debug=quote.debug,
        xfam=body[128:136],
        mrtd=body[136:184],
        mrconfigid=body[184:232],
        mrowner=body[232:280],
        mrownerconfig=body[280:328],
        rtmr=(body[328:376], body[376:424], body[424:472], body[472:520]),
        report_data=quote.report_data,
        mrservicetd=body[600:648] if len(body) >= 648 else None,
    )


def _innermost(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """Later TD reports contain the earlier ones: 1.5ex has 1.5 has 1.0 as ``base``."""
    while isinstance(base := report.get("base"), Mapping):
        report = base
    return report


def _same(report: Mapping[str, Any], **ours: bytes) -> None:
    for name, value in ours.items():
        if report.get(name) != value.hex():
            raise Untrusted(f"report body: {name} is {value.hex()}, dcap-qvl read {report.get(name)}")
