# SPDX-License-Identifier: Apache-2.0
"""From the trust flags to a `Client`: which Coordinator is acceptable, how its quote is checked, what is remembered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import typer
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from marblemesh.cli.errors import CliError
from marblemesh.cli.files import read_file, write_file
from marblemesh.cli.trust_options import TrustOptions
from marblemesh.client import Client, ClientIdentity, NotTrusted
from marblemesh.client.pin import MAX_PIN, read_pin
from sds.attestation.appraiser import Appraiser
from sds.attestation.collateral import CollateralSource, DirectoryCollateral
from sds.attestation.era_config import MAX_ERA_CONFIG, EraConfig
from sds.attestation.errors import AttestationError
from sds.attestation.pccs import PccsCollateral
from sds.attestation.policy import Policy, SgxPolicy
from sds.attestation.simulated import SIMULATED_SIGNER, SimulatedPlatform, default_platform_dir
from sds.attestation.verify import DcapVerifier

DEFAULT_ERA_CONFIG = "era-config.json"
SIMULATED_PLATFORM = "EDG_SIMULATED_PLATFORM_DIR"
# Intel's own service answers under the same paths as a PCCS, without a key for what is needed here.
INTEL_PCS = "https://api.trustedservices.intel.com"
# A simulated Coordinator says by default that it is product 3, version 3, as MarbleRun's releases do.
SIMULATED_COORDINATOR = SgxPolicy(signer_id=SIMULATED_SIGNER, product_id=3, security_version=3)


@dataclass(frozen=True, slots=True)
class _Wish:
    """Which Coordinator is acceptable."""

    policy: Policy
    nonce: bytes | None


async def connect(address: str, trust: TrustOptions, identity: ClientIdentity | None = None) -> Client:
    """A client of the Coordinator at `address`: attested, or with --insecure not, and then warned about on stderr.

    Raises CliError for files and settings, ClientError for the Coordinator.
    """
    if trust.insecure:
        warn("--insecure: nothing about this Coordinator was verified")
        client = await Client.unverified(address, identity=identity)
    else:
        wish = _wish(trust)
        if wish is None:
            raise CliError(
                f"which Coordinator may be trusted? Give its measurements with --era-config FILE "
                f"(or an {DEFAULT_ERA_CONFIG} in this directory), --simulation for a simulated one, "
                "or --insecure to believe whoever answers"
            )
        client = await Client.attested(address, _appraiser(trust), wish.policy, nonce=wish.nonce, identity=identity)
        if trust.simulation:
            warn("simulation: this proves nothing about hardware")
    _save_quote(client, trust)
    return client


async def connect_or_pinned(address: str, trust: TrustOptions, identity: ClientIdentity | None = None) -> Client:
    """As `connect`, but without flags (and without an era-config.json) the certificate kept from an earlier attestation
    is enough."""
    path = cached_certificate(trust)
    if trust.insecure or not path.is_file() or _wish(trust) is not None:
        return await connect(address, trust, identity)
    return Client(address, root=read_pin_file(path), identity=identity)


def cached_certificate(trust: TrustOptions) -> Path:
    """Where the Coordinator's certificates are kept; MarbleRun's place, so that both tools share it."""
    if trust.coordinator_cert is not None:
        return trust.coordinator_cert
    base = trust.environment.get("XDG_CONFIG_HOME")
    if base:
        return Path(base) / "marblerun" / "coordinator-cert.pem"
    home = trust.environment.get("HOME")
    if not home:
        raise CliError("neither XDG_CONFIG_HOME nor HOME is set: give --coordinator-cert FILE")
    return Path(home) / ".config" / "marblerun" / "coordinator-cert.pem"


def keep_certificate(client: Client, trust: TrustOptions) -> None:
    """Remember the certificates of a Coordinator that was attested (or, with --insecure, believed)."""
    if client.statement is not None:
        path = cached_certificate(trust)
        write_file(path, "the Coordinator's certificates", client.statement.chain_pem, make_folders=True)


def require_same_as_kept(client: Client, trust: TrustOptions) -> None:
    """Raise unless this Coordinator is the one whose certificate was kept."""
    path = cached_certificate(trust)
    if not path.is_file():
        raise CliError(
            f"no Coordinator certificate at {str(path)!r} to compare with: "
            "run 'marblemesh manifest verify' (or set) first, or give --insecure"
        )
    kept = read_pin_file(path)
    if kept.fingerprint(hashes.SHA256()) != client.root.fingerprint(hashes.SHA256()):
        raise NotTrusted(
            f"the Coordinator's root certificate is not the one kept in {str(path)!r}: it was set up anew, or this is "
            "another one; if that is right, keep the new one with 'marblemesh manifest verify'"
        )


def read_pin_file(path: Path) -> x509.Certificate:
    """The root certificate in a kept chain file. Raises NotTrusted that names the file."""
    try:
        return read_pin(read_file(path, "Coordinator certificate", MAX_PIN))
    except NotTrusted as error:
        raise NotTrusted(f"{path}: {error}") from None


def warn(text: str) -> None:
    typer.secho(f"warning: {text}", fg=typer.colors.YELLOW, err=True)


def _wish(trust: TrustOptions) -> _Wish | None:
    """The policy that flags and files amount to; None if nothing says which Coordinator is meant."""
    path = trust.era_config
    # A file that just lies here is meant for real Coordinators; a simulated one has it only by flag.
    if path is None and not trust.simulation and Path(DEFAULT_ERA_CONFIG).is_file():
        path = Path(DEFAULT_ERA_CONFIG)
    if path is not None:
        try:
            era = EraConfig.parse(read_file(path, "era config", MAX_ERA_CONFIG))
        except AttestationError as error:
            raise CliError(f"{path}: {error}") from None
        wish = _Wish(era.policy, era.nonce)
    elif trust.simulation:
        wish = _Wish(SIMULATED_COORDINATOR, None)
    else:
        return None
    return _Wish(_with_flags(wish.policy, trust), trust.nonce or wish.nonce)


def _with_flags(policy: Policy, trust: TrustOptions) -> Policy:
    if trust.accepted_tcb_statuses:
        policy = replace(policy, accepted_tcb_statuses=frozenset(trust.accepted_tcb_statuses))
    if trust.accepted_advisories:
        policy = replace(policy, accepted_advisories=frozenset(trust.accepted_advisories))
    return policy


def _appraiser(trust: TrustOptions) -> Appraiser:
    if trust.simulation:
        directory = trust.simulated_platform or _platform_dir(trust.environment)
        if not (directory / "identity").is_dir():
            # Opening it would make one, and then nobody's quote would fit.
            raise CliError(
                f"no simulated platform at {str(directory)!r}: the first program started with --simulation makes it; "
                "give the Coordinator's directory with --simulated-platform DIR"
            )
        platform = SimulatedPlatform.open(directory, _now())
        return Appraiser(platform.verifier(), platform.collateral, _now)
    collateral: CollateralSource = PccsCollateral(trust.pccs_url or INTEL_PCS)
    if trust.collateral_dir is not None:
        if not trust.collateral_dir.is_dir():
            raise CliError(f"--collateral-dir: {str(trust.collateral_dir)!r} is not a directory")
        collateral = DirectoryCollateral(trust.collateral_dir)
    return Appraiser(DcapVerifier.intel(), collateral, _now)


def _platform_dir(env: Mapping[str, str]) -> Path:
    """Where Coordinator and workers look that were started in this environment."""
    named = env.get(SIMULATED_PLATFORM)
    return Path(named) if named else default_platform_dir(env)


def _save_quote(client: Client, trust: TrustOptions) -> None:
    if trust.save_sgx_quote is None:
        return
    quote = client.statement.quote if client.statement else None
    if quote is None:
        raise CliError("the Coordinator has no quote to save: it runs outside a TEE")
    write_file(trust.save_sgx_quote, "the quote", quote)


def _now() -> datetime:
    return datetime.now(UTC)
