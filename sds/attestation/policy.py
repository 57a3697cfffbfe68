# SPDX-License-Identifier: Apache-2.0
"""Which code may run: a relying party's wish, compared with the facts that a quote proved.

Default deny: a policy that names no code matches nothing. ``None`` means "not asked for", and a signer without a
product id counts as no code at all, because it would admit every enclave that the vendor ever signs.

Not checked here: signatures (:mod:`sds.attestation.verify`) and report data (:mod:`sds.attestation.report_data`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from sds.attestation.claims import Claims, SgxClaims, TdxClaims
from sds.attestation.errors import Mismatch, PolicyViolation, TcbRejected

# What MarbleRun accepts when a package says nothing. UpToDate passes always: there is no better status.
DEFAULT_TCB_STATUSES = frozenset({"UpToDate", "SWHardeningNeeded"})

# Every status that may be accepted by name. Revoked is missing on purpose: its keys may be in an attacker's hands.
ACCEPTABLE_TCB_STATUSES = frozenset(
    {
        "UpToDate",
        "SWHardeningNeeded",
        "ConfigurationNeeded",
        "ConfigurationAndSWHardeningNeeded",
        "OutOfDate",
        "OutOfDateConfigurationNeeded",
        "TDRelaunchAdvised",
        "TDRelaunchAdvisedConfigurationNeeded",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SgxPolicy:
    """What an enclave must be. The names are those of a manifest's package."""

    unique_id: bytes | None = None
    """MRENCLAVE, 32 bytes."""
    signer_id: bytes | None = None
    """MRSIGNER, 32 bytes."""
    product_id: int | None = None
    security_version: int | None = None
    """The lowest acceptable ISVSVN."""
    debug: bool = False
    """Compared for equality: a debug policy does not admit production enclaves either."""
    accepted_tcb_statuses: frozenset[str] = field(default=DEFAULT_TCB_STATUSES)
    accepted_advisories: frozenset[str] | None = None
    """If given, a platform that needs software hardening may have no other advisories than these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxPolicy:
    """What a trust domain must be. MRTD is mandatory: without it nothing is said about the firmware that measures."""

    mrtd: bytes | None = None
    rtmr0: bytes | None = None
    rtmr1: bytes | None = None
    rtmr2: bytes | None = None
    rtmr3: bytes | None = None
    mrconfigid: bytes | None = None
    mrowner: bytes | None = None
    mrownerconfig: bytes | None = None
    mrseam: bytes | None = None
    td_attributes: bytes | None = None
    xfam: bytes | None = None
    accepted_tcb_statuses: frozenset[str] = field(default=DEFAULT_TCB_STATUSES)
    accepted_advisories: frozenset[str] | None = None


Policy = SgxPolicy | TdxPolicy


def appraise(claims: Claims, policy: Policy) -> None:
    """Compare what was proven with what is wanted.

    :raises PolicyViolation: naming every mismatch.
    :raises TcbRejected: if the code is right, but the platform's status or advisories are not accepted.
    """
    match claims, policy:
        case SgxClaims(), SgxPolicy():
            wrong = tuple(_sgx(claims, policy))
        case TdxClaims(), TdxPolicy():
            wrong = tuple(_tdx(claims, policy))
        case _:
            want = "sgx" if isinstance(policy, SgxPolicy) else "tdx"
            wrong = (Mismatch("tee", want, claims.tee.value),)
    if wrong:
        raise PolicyViolation(wrong)
    _tcb(claims, policy)


def _sgx(claims: SgxClaims, policy: SgxPolicy) -> Iterator[Mismatch]:
    if policy.unique_id is None and (policy.signer_id is None or policy.product_id is None):
        yield Mismatch("policy", "a unique id, or a signer id with a product id", "neither")
    yield from _equal("unique id", policy.unique_id, claims.mrenclave)
    yield from _equal("signer id", policy.signer_id, claims.mrsigner)
    if policy.product_id is not None and policy.product_id != claims.isv_prod_id:
        yield Mismatch("product id", str(policy.product_id), str(claims.isv_prod_id))
    if policy.security_version is not None and claims.isv_svn < policy.security_version:
        yield Mismatch("security version", f"at least {policy.security_version}", str(claims.isv_svn))
    if policy.debug != claims.debug:
        yield Mismatch("debug", str(policy.debug).lower(), str(claims.debug).lower())


def _tdx(claims: TdxClaims, policy: TdxPolicy) -> Iterator[Mismatch]:
    if policy.mrtd is None:
        yield Mismatch("policy", "an MRTD", "none")
    yield from _equal("MRTD", policy.mrtd, claims.mrtd)
    for number, want in enumerate((policy.rtmr0, policy.rtmr1, policy.rtmr2, policy.rtmr3)):
        yield from _equal(f"RTMR{number}", want, claims.rtmr[number])
    yield from _equal("MRCONFIGID", policy.mrconfigid, claims.mrconfigid)
    yield from _equal("MROWNER", policy.mrowner, claims.mrowner)
    yield from _equal("MROWNERCONFIG", policy.mrownerconfig, claims.mrownerconfig)
    yield from _equal("MRSEAM", policy.mrseam, claims.mrseam)
    yield from _equal("TDATTRIBUTES", policy.td_attributes, claims.td_attributes)
    yield from _equal("XFAM", policy.xfam, claims.xfam)
    if claims.debug:
        yield Mismatch("debug", "false", "true")


def _equal(claim: str, want: bytes | None, got: bytes) -> Iterator[Mismatch]:
    if want is not None and want != got:
        yield Mismatch(claim, want.hex(), got.hex())


def _tcb(claims: Claims, policy: Policy) -> None:
    status = claims.tcb_status
    if status == "UpToDate":
        return
    accepted = policy.accepted_tcb_statuses & ACCEPTABLE_TCB_STATUSES
    advisories = ", ".join(claims.advisories) or "none"
    if status not in accepted:
        raise TcbRejected(
            status,
            claims.advisories,
            f"TCB status: the platform is {status} (advisories: {advisories}), accepted are UpToDate"
            f" and {', '.join(sorted(accepted - {'UpToDate'})) or 'nothing else'}:"
            " update the platform, or add the status to AcceptedTCBStatuses",
        )
    # MarbleRun looks at advisories for SWHardeningNeeded alone. The status that adds "and a BIOS setting" to the same
    # finding must not be a way around the list.
    if policy.accepted_advisories is not None and "SWHardening" in status:
        _advisories(claims, policy.accepted_advisories)


def _advisories(claims: Claims, accepted: frozenset[str]) -> None:
    known = {advisory.upper() for advisory in accepted}
    extra = tuple(advisory for advisory in claims.advisories if advisory.upper() not in known)
    if extra or not claims.advisories:
        raise TcbRejected(
            claims.tcb_status,
            claims.advisories,
            f"TCB advisories: the platform is {claims.tcb_status} with {', '.join(extra) or 'no advisory named'},"
            f" accepted are {', '.join(sorted(accepted)) or 'none'}:"
            " check that the software is hardened, then add them to AcceptedAdvisories",
        )
