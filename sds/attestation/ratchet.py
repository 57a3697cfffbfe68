# SPDX-License-Identifier: Apache-2.0
"""Collateral never goes back.

Old collateral is still correctly signed, and for up to 30 days in date: whoever supplies it could choose the set from
before a vulnerability was published. ``tcbEvaluationDataNumber`` only grows, so the highest number seen is the lowest
accepted from then on.
"""

from __future__ import annotations

from sds.attestation.claims import Claims
from sds.attestation.errors import Expired
from sds.attestation.tee import Tee


class EvaluationRatchet:
    """Remembers the highest evaluation number per kind of platform. Ask it only about *verified* claims.

    There are a few dozen kinds of platform in the world and only Intel's signature adds one, so this stays small.
    """

    def __init__(self, minimum: int = 0) -> None:
        """``minimum`` is the lowest number accepted from anybody, from the first quote on."""
        self._minimum = minimum
        self._seen: dict[tuple[Tee, bytes], int] = {}

    def check(self, claims: Claims) -> None:
        """Accept this number or a higher one from now on.

        :raises Expired: if a newer set has been seen before.
        """
        kind = (claims.tee, claims.fmspc)
        lowest = self._seen.get(kind, self._minimum)
        if claims.tcb_evaluation_number < lowest:
            raise Expired(
                f"collateral: TCB evaluation data number {claims.tcb_evaluation_number},"
                f" but {lowest} was seen or required before; give the newest collateral"
            )
        self._seen[kind] = claims.tcb_evaluation_number
