# SPDX-License-Identifier: Apache-2.0
"""TCB info, QE identity and revocation lists of a simulated platform: what Intel's service publishes for a real one.

The JSON has Intel's exact field names (TCB info v3, QE identity v2): the verifier reads both with the same parser.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import dcap_qvl

from sds.attestation.collateral import Collateral
from sds.attestation.simulated.pki import CPU_SVN, FMSPC, PCE_ID, PCE_SVN, Pair, Pki, revocation_list
from sds.attestation.tee import Tee

# As long as Intel's.
LIFETIME = timedelta(days=30)
# Issued a little in the past, so that another process whose clock was read a moment earlier does not see the future.
_ISSUED_BEFORE = timedelta(hours=1)

QE_SIGNER = bytes.fromhex("51" * 32)
QE_PRODUCT = {Tee.SGX: 1, Tee.TDX: 2}
QE_SVN = 8
TDX_MODULE_VERSION, TDX_MODULE_SVN = 1, 3
TDX_SVN = bytes([TDX_MODULE_SVN, TDX_MODULE_VERSION, 5, *([0] * 13)])
_TCB_DATE = "2024-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the documents say about the platform. The defaults are a platform in perfect order."""

    status: str = "UpToDate"
    advisories: tuple[str, ...] = ()
    qe_status: str = "UpToDate"
    evaluation_number: int = 17
    pce_id: bytes = PCE_ID
    required_svn: int = CPU_SVN[0]
    """Lowest SVN of each component that has this status; a platform below it matches no level."""
    revoked_by_root: tuple[Pair, ...] = ()
    revoked_by_ca: tuple[Pair, ...] = ()


IN_ORDER = Verdict()


def make_collateral(
    pki: Pki, tee: Tee, now: datetime, verdict: Verdict = IN_ORDER, signer: Pair | None = None
) -> Collateral:
    """Publish a complete signed set that is good for 30 days from ``now``.

    ``signer`` is who signs the documents instead of the TCB signing certificate.
    """
    signer = signer or pki.tcb_signing
    chain = signer.pem + (pki.platform_ca.pem if signer is pki.pck else "") + pki.root.pem
    issued = now.astimezone(UTC).replace(microsecond=0) - _ISSUED_BEFORE
    until = issued + LIFETIME
    tcb_info = _text(_tcb_info(tee, issued, until, verdict))
    qe_identity = _text(_qe_identity(tee, issued, until, verdict))
    return Collateral.of(
        dcap_qvl.QuoteCollateralV3(
            pck_crl_issuer_chain=pki.platform_ca.pem + pki.root.pem,
            root_ca_crl=revocation_list(pki.root, issued, until, verdict.revoked_by_root),
            pck_crl=revocation_list(pki.platform_ca, issued, until, verdict.revoked_by_ca),
            tcb_info_issuer_chain=chain,
            tcb_info=tcb_info,
            tcb_info_signature=signer.sign(tcb_info.encode()),
            qe_identity_issuer_chain=chain,
            qe_identity=qe_identity,
            qe_identity_signature=signer.sign(qe_identity.encode()),
        )
    )


def _tcb_info(tee: Tee, issued: datetime, until: datetime, verdict: Verdict) -> dict[str, object]:
    components: dict[str, object] = {"sgxtcbcomponents": [{"svn": verdict.required_svn}] * 16, "pcesvn": PCE_SVN}
    value: dict[str, object] = {
        "id": tee.value.upper(),
        "version": 3,
        "issueDate": _stamp(issued),
        "nextUpdate": _stamp(until),
        "fmspc": FMSPC.hex().upper(),
        "pceId": verdict.pce_id.hex(),
        "tcbType": 0,
        "tcbEvaluationDataNumber": verdict.evaluation_number,
    }
    if tee is Tee.TDX:
        components["tdxtcbcomponents"] = [{"svn": svn} for svn in (0, 0, *TDX_SVN[2:])]
        module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
        level = {"tcb": {"isvsvn": TDX_MODULE_SVN}, "tcbDate": _TCB_DATE, "tcbStatus": "UpToDate"}
        value["tdxModule"] = module
        value["tdxModuleIdentities"] = [{"id": f"TDX_{TDX_MODULE_VERSION:02X}", **module, "tcbLevels": [level]}]
    value["tcbLevels"] = [
        {
            "tcb": components,
            "tcbDate": _TCB_DATE,
            "tcbStatus": verdict.status,
            "advisoryIDs": list(verdict.advisories),
        }
    ]
    return value


def _qe_identity(tee: Tee, issued: datetime, until: datetime, verdict: Verdict) -> dict[str, object]:
    return {
        "id": "QE" if tee is Tee.SGX else "TD_QE",
        "version": 2,
        "issueDate": _stamp(issued),
        "nextUpdate": _stamp(until),
        "tcbEvaluationDataNumber": verdict.evaluation_number,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": QE_SIGNER.hex().upper(),
        "isvprodid": QE_PRODUCT[tee],
        "tcbLevels": [{"tcb": {"isvsvn": QE_SVN}, "tcbDate": _TCB_DATE, "tcbStatus": verdict.qe_status}],
    }


def _stamp(date: datetime) -> str:
    return date.strftime("%Y-%m-%dT%H:%M:%SZ")


def _text(value: dict[str, object]) -> str:
    return json.dumps(value, separators=(",", ":"))
