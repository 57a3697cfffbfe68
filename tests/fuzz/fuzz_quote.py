# SPDX-License-Identifier: Apache-2.0
"""Fuzz target: a quote from the network, up to and including its verification.

``python -m tests.fuzz.fuzz_quote`` runs it under atheris, where that is installed; the unit tests run it over mutations
of genuine quotes.
"""

from __future__ import annotations

from sds.attestation.errors import AttestationError
from sds.attestation.evidence import Evidence
from sds.attestation.tee import Tee
from tests.fuzz.driver import run
from tests.kit.platform import NOW, lab

SEEDS = (lab().sgx().quote, lab().sgx().to_wire(), lab().tdx().quote, lab().tdx(version=5, size=648).quote)

# The signed part of each genuine quote: what verifies must be one of these, whatever was done to the rest.
_SIGNED = {lab().sgx().quote[:432], lab().tdx().quote[:632], lab().tdx(version=5, size=648).quote[:702]}
_COLLATERAL = {tee: lab().collateral(tee) for tee in Tee}
_VERIFIER = lab().verifier()


def fuzz_one(data: bytes) -> None:
    """Any bytes are refused with an AttestationError, unless they are a genuine quote."""
    try:
        evidence = Evidence.parse(data)
        _VERIFIER.verify(evidence, _COLLATERAL[evidence.tee], NOW)
    except AttestationError:
        return
    if not any(evidence.quote.startswith(signed) for signed in _SIGNED):
        raise AssertionError("a quote verified that nobody made")


if __name__ == "__main__":
    run(fuzz_one, SEEDS)
