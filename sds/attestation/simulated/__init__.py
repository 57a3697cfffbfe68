# SPDX-License-Identifier: Apache-2.0
"""A simulated platform: a whole DCAP stack with a private root, so that development runs the production verifier.

It has everything that Intel and a machine's quoting enclave have (root, PCK, TCB signing, TCB info, QE identity,
revocation lists, attestation key) and signs real quotes. Nothing is mocked, and nothing is proven about hardware: a
quote is as trustworthy as whoever can read the platform's directory. The only thing that keeps it out of production is
that its root is not Intel's, which is also the only thing that has to.
"""

from sds.attestation.simulated.enclave import SIMULATED_SIGNER, SimulatedEnclave, SimulatedTd
from sds.attestation.simulated.platform import SimulatedPlatform, default_platform_dir

__all__ = ["SIMULATED_SIGNER", "SimulatedEnclave", "SimulatedPlatform", "SimulatedTd", "default_platform_dir"]
