# SPDX-License-Identifier: Apache-2.0
"""A quote from the network, judged: all checks, in the one right order.

::

    parse ─► PCK chain under our root ─► collateral ─► signatures, dates ─► newest collateral? ─► binding ─► policy

What is cheap and cannot be forged comes first: no stranger's invented machine causes a look-up at Intel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from sds.attestation.claims import Claims
from sds.attestation.collateral import CollateralSource, collateral_key
from sds.attestation.evidence import Evidence
from sds.attestation.policy import Policy, appraise
from sds.attestation.ratchet import EvaluationRatchet
from sds.attestation.report_data import check_report_data
from sds.attestation.verify import DcapVerifier


@dataclass(frozen=True, slots=True)
class Appraiser:
    """Everything that is needed to judge quotes; one per program."""

    verifier: DcapVerifier
    collateral: CollateralSource
    now: Callable[[], datetime]
    ratchet: EvaluationRatchet = field(default_factory=EvaluationRatchet, repr=False)

    async def verify(self, quote: bytes) -> Claims:
        """What this quote proves, whatever it is bound to and whoever's code it is.

        :raises AttestationError: see :meth:`sds.attestation.verify.DcapVerifier.verify`, and CollateralUnavailable.
        """
        evidence = Evidence.parse(quote)
        self.verifier.check_chain(evidence)
        collateral = await self.collateral.get(collateral_key(evidence))
        claims = self.verifier.verify(evidence, collateral, self.now())
        self.ratchet.check(claims)
        return claims

    async def appraise(self, quote: bytes, report_data: bytes, policy: Policy) -> Claims:
        """Accept a quote that carries exactly this report data, of code that the policy allows; or raise.

        :param quote: as received, with or without Open Enclave's header.
        :param report_data: all 64 bytes, from :mod:`sds.attestation.report_data`.
        :raises AttestationError: of the class that fits; ``str()`` names the check.
        """
        claims = await self.verify(quote)
        check_report_data(claims, report_data)
        appraise(claims, policy)
        return claims
