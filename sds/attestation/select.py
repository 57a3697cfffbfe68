# SPDX-License-Identifier: Apache-2.0
"""Which TEE is this? Finds the attestation device, or takes the one that was named.

Simulation is never found: it has a flag of its own, so that a machine without TEE ends in an error, not in a pretence.
"""

from __future__ import annotations

from pathlib import Path

from sds.attestation.errors import DeviceUnavailable
from sds.attestation.issue_gramine import GRAMINE_DEVICE, GramineIssuer
from sds.attestation.issue_tsm import TSM_REPORT, TsmIssuer
from sds.attestation.issuer import Issuer

_SIMULATION_HINT = "to try things out without a TEE, start with --simulation"


def choose_issuer(spec: str) -> Issuer:
    """``auto``, ``gramine[:DIR]`` or ``tdx[:DIR]``, where DIR replaces the device's usual place.

    :raises DeviceUnavailable: if there is none; says what was looked for.
    """
    kind, _, directory = spec.partition(":")
    match kind:
        case "gramine":
            return GramineIssuer(_existing(Path(directory) if directory else GRAMINE_DEVICE, "Gramine's device"))
        case "tdx":
            return TsmIssuer(_existing(Path(directory) if directory else TSM_REPORT, "configfs-tsm"))
        case "auto" if not directory:
            return _found()
        case _:
            raise DeviceUnavailable(
                f"attestation platform {spec!r} is unknown: give auto, gramine[:DIR] or tdx[:DIR]; {_SIMULATION_HINT}"
            )


def _found() -> Issuer:
    if (GRAMINE_DEVICE / "quote").exists():  # gramine-direct has the directory, but no quotes
        return GramineIssuer()
    if TSM_REPORT.is_dir():
        return TsmIssuer()
    raise DeviceUnavailable(
        f"no attestation device: neither {GRAMINE_DEVICE / 'quote'} (Gramine SGX) nor {TSM_REPORT} (TDX guest) exists;"
        f" {_SIMULATION_HINT}"
    )


def _existing(path: Path, what: str) -> Path:
    if not path.is_dir():
        raise DeviceUnavailable(f"{path}: no such directory, expected {what}; {_SIMULATION_HINT}")
    return path
