# SPDX-License-Identifier: Apache-2.0
"""A simulated machine's sealing keys: what EGETKEY would give, made from one secret in the platform's directory.

Bound to what SGX binds them to: ProductKey to the signer, product id and debug attribute, UniqueKey to the measurement
and debug attribute. Another platform directory is another machine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from sds.attestation.sealing_keys import SealPolicy, derive
from sds.attestation.simulated.enclave import SimulatedEnclave


@dataclass(frozen=True, slots=True)
class SimulatedSealingKeys:
    """See :class:`sds.attestation.sealing_keys.SealingKeySource`."""

    machine_secret: bytes = field(repr=False)
    enclave: SimulatedEnclave

    @property
    def platform(self) -> str:
        return "simulated"

    def derive(self, policy: SealPolicy, salt: bytes, info: bytes) -> bytes:
        """See :class:`sds.attestation.sealing_keys.SealingKeySource`; never fails."""
        code = self.enclave
        bound: list[str | int | bool] = [policy.value, code.debug]
        if policy is SealPolicy.UNIQUE_KEY:
            bound.append(code.unique_id.hex())
        else:
            bound.extend((code.signer_id.hex(), code.product_id))
        egetkey = derive(self.machine_secret, b"marblemesh simulated EGETKEY", json.dumps(bound).encode())
        return derive(egetkey, salt, info)
