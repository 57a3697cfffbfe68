# SPDX-License-Identifier: Apache-2.0
"""From a manifest's package to the attestation library's policy, and back from its errors to the words of the protocol:
the one place where the two meet.

Pure translation. What the manifest leaves out stays None ("not compared"), and whether the rest is enough to name code
is the policy's own decision: one that names no code matches nothing.
"""

from __future__ import annotations

from manifests.model import Package, TdxPackage
from sds.attestation.errors import AttestationError, BindingMismatch, Mismatch, PolicyViolation, TcbRejected
from sds.attestation.evidence import Tee
from sds.attestation.policy import DEFAULT_TCB_STATUSES, Policy, SgxPolicy, TdxPolicy


def policy_for(package: Package, tee: Tee) -> Policy:
    """What evidence of a `tee` must prove to count as `package`.

    :raises PolicyViolation: if the package has no rules for that TEE.
    """
    if tee is Tee.TDX and package.tdx is not None:
        return _tdx(package, package.tdx)
    if tee is Tee.SGX and package.is_sgx:
        return _sgx(package)
    known = [name for name, there in (("sgx", package.is_sgx), ("tdx", package.tdx is not None)) if there]
    raise PolicyViolation((Mismatch("tee", " or ".join(known) or "another platform", tee.value),))


def explained(error: AttestationError, package: Package) -> str:
    """Why a quote does not pass for `package`: MarbleRun's words for the check, by which people search, then ours."""
    match error:
        case BindingMismatch():
            return f"hash(cert) != report.Data: {error}"
        case PolicyViolation():
            expected = ", ".join(f"{mismatch.claim}: {mismatch.want}" for mismatch in error.mismatches)
            got = ", ".join(f"{mismatch.claim}: {mismatch.got}" for mismatch in error.mismatches)
            return f"PackageProperties not compliant:\nexpected: {{{expected}}}\ngot: {{{got}}}"
        case TcbRejected() if error.status in _statuses(package):
            known = {advisory.upper() for advisory in package.accepted_advisories}
            extra = " ".join(advisory for advisory in error.advisories if advisory.upper() not in known)
            return f"TCB status {error.status} contains advisories not accepted by configuration: [{extra}]: {error}"
        case TcbRejected():
            return f"TCB level invalid: {error.status}: {error}"
        case _:
            return str(error)


def _sgx(package: Package) -> SgxPolicy:
    return SgxPolicy(
        unique_id=package.unique_id,
        signer_id=package.signer_id,
        product_id=package.product_id,
        security_version=package.security_version,
        debug=package.debug,
        accepted_tcb_statuses=_statuses(package),
        accepted_advisories=_advisories(package),
    )


def _tdx(package: Package, tdx: TdxPackage) -> TdxPolicy:
    return TdxPolicy(
        mrtd=tdx.mrtd,
        rtmr0=tdx.rtmr0,
        rtmr1=tdx.rtmr1,
        rtmr2=tdx.rtmr2,
        rtmr3=tdx.rtmr3,
        mrconfigid=tdx.mrconfigid,
        mrowner=tdx.mrowner,
        mrownerconfig=tdx.mrownerconfig,
        mrseam=tdx.mrseam,
        accepted_tcb_statuses=_statuses(package),
        accepted_advisories=_advisories(package),
    )


def _statuses(package: Package) -> frozenset[str]:
    return frozenset(package.accepted_tcb_statuses) or DEFAULT_TCB_STATUSES


def _advisories(package: Package) -> frozenset[str] | None:
    return frozenset(package.accepted_advisories) or None
