# SPDX-License-Identifier: Apache-2.0
"""Which TEE this Coordinator runs in: who makes its quotes, who judges the Marbles', and what seals its state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sds.attestation.appraiser import Appraiser
from sds.attestation.collateral import CollateralSource, DirectoryCollateral
from sds.attestation.errors import AttestationError
from sds.attestation.issue_gramine import GRAMINE_DEVICE, GramineIssuer
from sds.attestation.issuer import Issuer
from sds.attestation.pccs import PccsCollateral
from sds.attestation.sealing_keys import GramineSealingKeys
from sds.attestation.select import choose_issuer
from sds.attestation.simulated import SimulatedEnclave, SimulatedPlatform, default_platform_dir
from sds.attestation.verify import DcapVerifier
from xds_server import config as settings
from xds_server.config import CoordinatorConfig, named
from xds_server.errors import CoordinatorError
from xds_server.sealed_key import KeyProtection, NoSealing, PlainKey, TeeProtection


class StartError(CoordinatorError):
    """The Coordinator cannot start; the text says what to change."""


@dataclass(frozen=True, slots=True)
class Attestation:
    """Who we are to others, how we judge them, and what binds the state to this machine. Without any attestation there
    is neither issuer nor appraiser."""

    issuer: Issuer | None
    appraiser: Appraiser | None
    protection: KeyProtection


def now() -> datetime:
    """The time, UTC."""
    return datetime.now(UTC)


def choose_attestation(config: CoordinatorConfig, env: Mapping[str, str]) -> Attestation:
    """The simulated platform, or nothing, if and only if it was asked for; else this machine's TEE. Raises
    StartError."""
    if config.insecure:
        return Attestation(None, None, PlainKey())
    try:
        if config.simulation:
            return _simulated(config, env)
        issuer = choose_issuer(config.platform)
    except AttestationError as e:
        raise StartError(str(e)) from e
    return Attestation(issuer, Appraiser(DcapVerifier.intel(), _collateral(config), now), _protection(config, issuer))


def _protection(config: CoordinatorConfig, issuer: Issuer) -> KeyProtection:
    if not isinstance(issuer, GramineIssuer):
        return NoSealing()  # a TDX guest has no key of its own
    _, _, directory = config.platform.partition(":")
    return TeeProtection(GramineSealingKeys(Path(directory) if directory else GRAMINE_DEVICE))


def _simulated(config: CoordinatorConfig, env: Mapping[str, str]) -> Attestation:
    directory = config.simulated_platform or default_platform_dir(env)
    platform = SimulatedPlatform.open(directory, now(), now)
    default = SimulatedEnclave.default("coordinator")
    enclave = SimulatedEnclave(default.unique_id, default.signer_id, product_id=3, security_version=3)
    if config.simulated_enclave is not None:
        enclave = config.simulated_enclave
    appraiser = Appraiser(platform.verifier(), platform.collateral, now)
    return Attestation(platform.issuer(enclave), appraiser, TeeProtection(platform.sealing_keys(enclave)))


def _collateral(config: CoordinatorConfig) -> CollateralSource:
    if config.collateral_dir is not None:
        return DirectoryCollateral(config.collateral_dir)
    if config.pccs_url is not None:
        return PccsCollateral(config.pccs_url)
    raise StartError(
        "no source of attestation collateral, so no Marble could be verified: "
        f"give {named(settings.PCCS_URL)} or {named(settings.COLLATERAL_DIR)}"
    )
