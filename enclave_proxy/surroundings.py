# SPDX-License-Identifier: Apache-2.0
"""Where this worker runs: which TEE vouches for it, and how it judges its Coordinator. Chosen once, at the start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from enclave_proxy.config import ERA_CONFIG, SIMULATED_ENCLAVE, WorkerConfig
from enclave_proxy.coordinator_pin import CoordinatorPin
from enclave_proxy.errors import ConfigError, StartError
from sds.attestation.appraiser import Appraiser
from sds.attestation.collateral import CollateralSource, DirectoryCollateral
from sds.attestation.era_config import EraConfig
from sds.attestation.errors import AttestationError, Malformed
from sds.attestation.issue_gramine import GRAMINE_DEVICE, GramineIssuer
from sds.attestation.issuer import Issuer
from sds.attestation.pccs import PccsCollateral
from sds.attestation.policy import Policy
from sds.attestation.sealing_keys import GramineSealingKeys, SealingKeySource
from sds.attestation.select import choose_issuer
from sds.attestation.simulated import SimulatedEnclave, SimulatedPlatform, default_platform_dir
from sds.attestation.tee import Tee
from sds.attestation.verify import DcapVerifier


@dataclass(frozen=True, slots=True)
class Surroundings:
    """`loopback_is_public`: every TCP byte, 127.0.0.1 included, is visible to the host (Gramine/SGX). `sealing` None:
    this TEE has no keys that outlive it."""

    issuer: Issuer
    pin: CoordinatorPin | None
    loopback_is_public: bool
    sealing: SealingKeySource | None


def look_around(config: WorkerConfig, env: Mapping[str, str], now: Callable[[], datetime]) -> Surroundings:
    """Find the TEE. Raises StartError if there is none and simulation was not asked for: never silently without."""
    policy = _policy(config.era_config)
    try:
        if config.simulation:
            return _simulated(config, env, now, policy)
        issuer = choose_issuer(config.platform)
    except AttestationError as error:
        raise StartError(str(error)) from error
    pin = None
    if policy is not None:
        pin = _pin(config, Appraiser(DcapVerifier.intel(), _collateral(config, now), now), policy)
    return Surroundings(issuer, pin, issuer.tee is Tee.SGX, _sealing(config, issuer))


def _sealing(config: WorkerConfig, issuer: Issuer) -> SealingKeySource | None:
    if not isinstance(issuer, GramineIssuer):
        return None  # a TDX guest has no key of its own
    _, _, directory = config.platform.partition(":")
    return GramineSealingKeys(Path(directory) if directory else GRAMINE_DEVICE)


def _simulated(
    config: WorkerConfig, env: Mapping[str, str], now: Callable[[], datetime], policy: Policy | None
) -> Surroundings:
    platform = SimulatedPlatform.open(config.simulated_platform or default_platform_dir(env), now(), now)
    enclave = SimulatedEnclave.default(config.marble_type)
    if config.simulated_enclave is not None:
        try:
            enclave = SimulatedEnclave.from_json(config.simulated_enclave)
        except Malformed as error:
            raise ConfigError(f"{SIMULATED_ENCLAVE.names}: {error}") from error
    pin = None if policy is None else _pin(config, Appraiser(platform.verifier(), platform.collateral, now), policy)
    return Surroundings(platform.issuer(enclave), pin, loopback_is_public=False, sealing=platform.sealing_keys(enclave))


def _policy(era_config: Path | None) -> Policy | None:
    if era_config is None:
        return None
    try:
        return EraConfig.parse(era_config.read_bytes()).policy
    except (Malformed, OSError) as error:
        raise ConfigError(f"{ERA_CONFIG.names}: {str(era_config)!r}: {error}") from error


def _collateral(config: WorkerConfig, now: Callable[[], datetime]) -> CollateralSource:
    if config.pccs_url is not None:
        return PccsCollateral(config.pccs_url, now=now)
    if config.collateral_dir is None:
        raise ConfigError(f"{ERA_CONFIG.names}: no source of collateral is set")
    return DirectoryCollateral(config.collateral_dir)


def _pin(config: WorkerConfig, appraiser: Appraiser, policy: Policy) -> CoordinatorPin:
    return CoordinatorPin(config.client_api, appraiser, policy, config.manifest_fingerprint)
