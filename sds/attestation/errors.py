# SPDX-License-Identifier: Apache-2.0

"""Why evidence was not accepted: one class per kind of check, so that callers and metrics can tell them apart.

``str(error)`` names the check that failed, what was seen and what was expected. ``error.reason`` is a short label for
metrics. Nothing here carries a quote, a nonce or a key.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from sds.errors import SdsError


class AttestationError(SdsError):
    """Root of everything that the attestation package raises on purpose."""

    reason: ClassVar[str] = "attestation"


class Malformed(AttestationError):
    """The bytes are not what they claim to be: wrong sizes, lengths that do not fit, broken JSON or PEM."""

    reason = "malformed"


class Unsupported(AttestationError):
    """Well formed, but of a version, key type or TEE that is not verified here."""

    reason = "unsupported"


class Untrusted(AttestationError):
    """A signature, certificate chain, role or revocation check failed. Also everything that has no better class."""

    reason = "untrusted"


class Expired(AttestationError):
    """Evidence or collateral is outside its validity window (too old, or issued in the future)."""

    reason = "expired"


class TcbRejected(AttestationError):
    """The platform is genuine, but its patch level is not one that the policy accepts.

    :ivar status: the TCB status, as in Intel's TCB info (``OutOfDate``, ``Revoked``, ...).
    :ivar advisories: the advisories (``INTEL-SA-...``) that apply to the platform.
    """

    reason = "tcb_rejected"

    def __init__(self, status: str, advisories: tuple[str, ...], text: str) -> None:
        self.status = status
        self.advisories = advisories
        super().__init__(text)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One claim that is not what the policy wants; all three are texts for people."""

    claim: str
    want: str
    got: str


class PolicyViolation(AttestationError):
    """Genuine evidence of something else than the policy allows. Names *all* mismatches, not only the first."""

    reason = "policy_violation"

    def __init__(self, mismatches: Iterable[Mismatch]) -> None:
        self.mismatches = tuple(mismatches)
        super().__init__("; ".join(f"{m.claim}: want {m.want}, got {m.got}" for m in self.mismatches))


class BindingMismatch(AttestationError):
    """Genuine evidence, but made for another certificate, key or nonce."""

    reason = "binding_mismatch"


class DeviceUnavailable(AttestationError):
    """No attestation device answers here. Retry later, or choose another issuer."""

    reason = "device_unavailable"


class CoordinatorUnavailable(AttestationError):
    """The Coordinator could not be asked for its statement, or did not answer as one does. Retry later."""

    reason = "coordinator_unavailable"


class CollateralUnavailable(AttestationError):
    """What is needed to judge the platform (TCB info, QE identity, CRLs) could not be had. Retry later."""

    reason = "collateral_unavailable"
