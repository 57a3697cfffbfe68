# SPDX-License-Identifier: Apache-2.0
"""From nothing to an identity: own certificate, quote over it, (attest the Coordinator,) Activate.

    OwnCertificate --SHA-256--> quote --Activate--> parameters --parse--> Activation

The same steps run again when the Coordinator has lost its state, see `xds_client`; then only the identity is adopted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from structlog.typing import FilteringBoundLogger

from enclave_proxy.activation_client import ActivationClient
from enclave_proxy.apply import AppParameters
from enclave_proxy.backoff import Backoff
from enclave_proxy.config import HostPort
from enclave_proxy.coordinator_pin import CoordinatorPin
from enclave_proxy.errors import ActivationUnavailable, ParametersError, StartError
from enclave_proxy.own_certificate import OwnCertificate
from sds.attestation.errors import AttestationError
from sds.attestation.issuer import Issuer
from sds.attestation.report_data import marble_report_data
from sds.keys import PrivateKey
from sds.material import Identity, MaterialError, TrustBundle, check_bundle, check_identity

# How often somebody who watches the log of a waiting worker is told what it waits for.
PROGRESS_EVERY = 5.0

_CHAIN = "MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"
_KEY = "MARBLE_PREDEFINED_PRIVATE_KEY"
_BUNDLE = "MARBLE_PREDEFINED_ROOT_CA"
_COORDINATOR = "MARBLE_PREDEFINED_COORDINATOR_ROOT_CA"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who we are, whom we believe, and which Coordinator we obey; all from one activation or later pushes."""

    identity: Identity
    bundle: TrustBundle
    coordinator_root: TrustBundle

    @classmethod
    def from_env(cls, env: Mapping[str, bytes], now: datetime) -> Self:
        """Read the four predefined variables. Raises ParametersError."""
        try:
            identity = Identity(env[_CHAIN], PrivateKey(env[_KEY]))
            bundle, coordinator_root = TrustBundle(env[_BUNDLE]), TrustBundle(env[_COORDINATOR])
            check_bundle(bundle, now)
            check_bundle(coordinator_root, now)
            check_identity(identity, bundle, now)
        except KeyError as error:
            raise ParametersError(f"the Coordinator's reply lacks {error.args[0]}") from error
        except MaterialError as error:
            raise ParametersError(f"the identity in the Coordinator's reply cannot be used: {error}") from error
        return cls(identity, bundle, coordinator_root)


@dataclass(frozen=True, slots=True)
class Activation:
    """What one successful activation brought."""

    credentials: Credentials
    parameters: AppParameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Activator:
    """Everything that it takes to ask for an identity. `pin` None: the Coordinator is taken at its word."""

    marble_type: str
    uuid: str
    coordinator: HostPort
    dns_names: tuple[str, ...]
    ip_addresses: tuple[str, ...]
    issuer: Issuer
    pin: CoordinatorPin | None
    now: Callable[[], datetime]
    log: FilteringBoundLogger

    async def prepare(self) -> tuple[OwnCertificate, bytes]:
        """A fresh certificate and the quote over it. Raises StartError: without a quote there is nothing to say."""
        own = OwnCertificate.create(self.dns_names, self.ip_addresses, self.now())
        try:
            evidence = await asyncio.to_thread(self.issuer.issue, marble_report_data(own.certificate))
        except AttestationError as error:
            raise StartError(f"cannot get a quote: {error}") from error
        return own, evidence.to_wire()

    async def once(self, own: OwnCertificate, quote: bytes) -> Activation:
        """One attempt. Raises ActivationUnavailable, or something final."""
        key = None if self.pin is None else await self.pin.check()
        client = ActivationClient(self.coordinator, own, key)
        parameters = AppParameters.parse(await client.activate(quote, self.marble_type, self.uuid))
        if parameters.left_out:
            self.log.warning(
                "variables are left out: too long for a program's environment, and this worker does what they are for",
                names=parameters.left_out,
            )
        return Activation(Credentials.from_env(parameters.env, self.now()), parameters)

    async def persist(self, backoff: Backoff) -> Activation:
        """Try until it works or the answer is final; say every few seconds what is being waited for."""
        own, quote = await self.prepare()
        told = time.monotonic() - PROGRESS_EVERY  # the first wait is worth a line at once
        while True:
            try:
                return await self.once(own, quote)
            except ActivationUnavailable as error:
                if time.monotonic() - told >= PROGRESS_EVERY:
                    told = time.monotonic()
                    self.log.info("waiting for the coordinator", reason=str(error))
                await asyncio.sleep(backoff.next())
