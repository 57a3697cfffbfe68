# SPDX-License-Identifier: Apache-2.0
"""What a verified quote says, as plain values: facts only, no judgement.

Only :mod:`sds.attestation.verify` makes these from outside bytes; whoever holds one may rely on the signatures behind
it, but must still ask the policy (:mod:`sds.attestation.policy`) whether this is the code that was wanted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from datetime import UTC, datetime

from sds.attestation.evidence import Tee


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformClaims(ABC):
    """What is said about the machine, the same for both TEEs."""

    report_data: bytes
    """64 bytes chosen by the code in the TEE; see :mod:`sds.attestation.report_data`."""
    tcb_status: str
    """Intel's word for the patch level: ``UpToDate``, ``SWHardeningNeeded``, ``OutOfDate``, ..."""
    advisories: tuple[str, ...]
    tcb_evaluation_number: int
    """tcbEvaluationDataNumber of the collateral that the status was judged by; only ever grows."""
    fmspc: bytes
    """6 bytes: family, model, stepping and platform of the CPU."""
    platform_id: bytes | None
    """16 bytes PIID, naming one machine; single-socket SGX machines (Processor CA) have none."""
    simulated: bool
    """True if the quote verifies under the root of a simulated platform: proves nothing about hardware."""
    collateral_expires: datetime
    """When the first of the documents that the judgement rests on runs out (UTC)."""

    def to_json(self) -> dict[str, object]:
        """All claims under their Python names; bytes as hex, times as RFC 3339."""
        common: dict[str, object] = {"tee": self.tee.value, "measurement": self.measurement.hex()}
        return common | {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @property
    @abstractmethod
    def tee(self) -> Tee: ...

    @property
    @abstractmethod
    def measurement(self) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SgxClaims(PlatformClaims):
    """An SGX enclave (reference: report body, Intel SDM vol. 3D, 'REPORT')."""

    mrenclave: bytes
    mrsigner: bytes
    isv_prod_id: int
    isv_svn: int
    debug: bool
    attributes: bytes
    misc_select: int
    cpu_svn: bytes
    isv_ext_prod_id: bytes
    isv_family_id: bytes
    config_id: bytes
    config_svn: int

    @property
    def tee(self) -> Tee:
        return Tee.SGX

    @property
    def measurement(self) -> bytes:
        """MRENCLAVE, 32 bytes."""
        return self.mrenclave


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxClaims(PlatformClaims):
    """A TDX trust domain (reference: TD report body 1.0; the fields that 1.5 adds are in the last line)."""

    mrtd: bytes
    rtmr: tuple[bytes, bytes, bytes, bytes]
    mrconfigid: bytes
    mrowner: bytes
    mrownerconfig: bytes
    mrseam: bytes
    mrsignerseam: bytes
    td_attributes: bytes
    xfam: bytes
    debug: bool
    tee_tcb_svn: bytes
    mrservicetd: bytes | None

    @property
    def tee(self) -> Tee:
        return Tee.TDX

    @property
    def measurement(self) -> bytes:
        """MRTD, 48 bytes."""
        return self.mrtd


Claims = SgxClaims | TdxClaims


def _plain(value: object) -> object:
    match value:
        case bytes():
            return value.hex()
        case tuple():
            return [_plain(item) for item in value]
        case datetime():
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case _:
            return value
