# SPDX-License-Identifier: Apache-2.0
"""The Coordinator: one object with everything that its ports ask of it. What each operation does stands elsewhere:

    core                  records, and the one way to change them
    activator             who becomes a Marble
    manifest_operations   the first manifest; secrets of users
    update_operations     updates
    recovery_operations   opening a state that was sealed elsewhere

No sockets; what it needs of the world is injected. Everything runs in one event loop; a change is committed to the
store before anybody hears of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address

from manifests.model import FeatureGate
from sds.attestation.errors import AttestationError, TcbRejected, Unsupported
from sds.attestation.evidence import Evidence, Tee
from sds.ca import CertificateAuthority
from sds.identity import MarbleIdentity
from sds.logs import get_logger
from sds.secrets import Secret
from xds_server import counters, manifest_operations, recovery_operations, update_operations
from xds_server.activation import ActivationAsk, Grant
from xds_server.activator import Activator, Limits
from xds_server.answers import (
    AcknowledgeAnswer,
    CoordinatorQuote,
    PendingAnswer,
    RecoveryAnswer,
    SignedManifest,
    SignedQuote,
    Status,
    UpdateAnswer,
)
from xds_server.core import Core, Ports
from xds_server.errors import FeatureDisabled, NotSet, QuoteNotVerified
from xds_server.records import Records
from xds_server.renewal import Renewer
from xds_server.secret_rules import new_root_secret
from xds_server.sign_quote import sign_quote
from xds_server.state import MESSAGES, State
from xds_server.users import user_of

_log = get_logger(__name__)


def fresh_records(
    dns_names: Sequence[str], ip_addresses: Sequence[IPv4Address | IPv6Address], now: datetime
) -> Records:
    """A new deployment: a new root, nothing set."""
    root_secret = new_root_secret()
    ca = CertificateAuthority.create(dns_names, ip_addresses, now)
    return Records(State.ACCEPTING_MANIFEST, ca, root_secret, root_secret)


class Coordinator:
    """One deployment's root of trust; implements `operations.Operations`.

    `records` are what the store had, or `fresh_records`. With `locked` (the recovery data of a state that cannot be
    opened here) they are fresh ones that serve until recovery. Raises ManifestError for records with a manifest that
    this version does not accept.
    """

    def __init__(
        self,
        records: Records,
        ports: Ports,
        *,
        simulation: bool,
        locked: bytes | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._core = core = Core(records, ports, simulation=simulation, locked=locked)
        self._activator = Activator(core, limits or Limits())

    @property
    def ca(self) -> CertificateAuthority:
        return self._core.ca

    @property
    def renewer(self) -> Renewer:
        return self._core.renewer

    @property
    def simulation(self) -> bool:
        return self._core.simulation

    def on_ca(self, told: Callable[[CertificateAuthority], None]) -> None:
        """Call `told` whenever another CA takes over, root and all (recovery)."""
        self._core.on_ca.append(told)

    async def close(self) -> None:
        """Let changes that have begun come to their end."""
        await self._core.close()

    # --- client API: statements

    def status(self) -> Status:
        core = self._core
        return Status(core.state, MESSAGES[core.state], core.simulation, core.insecure)

    async def quote(self, nonce: bytes) -> CoordinatorQuote:
        """Our own statement; raises QuoteUnavailable. `nonce` at most MAX_NONCE bytes, empty for the cached one."""
        own = self._core.ports.own_quote
        quote = None if own is None else await own.get(nonce)
        return CoordinatorQuote(self.ca.chain_pem, quote, self._core.simulation, self._core.insecure)

    def manifest(self) -> SignedManifest:
        """The manifest in force; raises NotSet."""
        manifest = self._core.manifest
        if manifest is None:
            raise NotSet
        return SignedManifest(self._core.records.manifest_signature, manifest.fingerprint, manifest.raw)

    def update_log(self) -> tuple[str, ...]:
        if self._core.manifest is None:
            raise NotSet
        return self._core.records.update_log

    # --- client API: manifest, secrets, updates

    def check_accepts_manifest(self) -> None:
        """Raise WrongState once a manifest is set."""
        manifest_operations.check_accepts_manifest(self._core)

    async def set_manifest(self, raw: bytes) -> Mapping[str, bytes]:
        return await manifest_operations.set_manifest(self._core, raw)

    def check_user(self, certificates: Sequence[bytes]) -> None:
        user_of(self._core.manifest, certificates)

    def secrets_get(self, names: Sequence[str], certificates: Sequence[bytes]) -> Mapping[str, Secret]:
        return manifest_operations.get_secrets(self._core, names, certificates)

    async def secrets_set(self, payload: Mapping[str, object], certificates: Sequence[bytes]) -> None:
        await manifest_operations.set_secrets(self._core, payload, certificates)

    async def update_apply(self, raw: bytes, certificates: Sequence[bytes]) -> UpdateAnswer:
        return await update_operations.apply_update(self._core, raw, certificates)

    def update_get(self) -> PendingAnswer:
        return update_operations.get_pending(self._core)

    async def update_acknowledge(self, raw: bytes, certificates: Sequence[bytes]) -> AcknowledgeAnswer:
        return await update_operations.acknowledge_update(self._core, raw, certificates)

    async def update_cancel(self, certificates: Sequence[bytes]) -> str:
        return await update_operations.cancel_update(self._core, certificates)

    # --- client API: recovery

    async def recovery_public_key(self) -> bytes:
        return await recovery_operations.recovery_public_key(self._core)

    async def recover(self, secret: bytes, signature: bytes) -> RecoveryAnswer:
        return await recovery_operations.recover(self._core, secret, signature)

    # --- client API: for Marbles

    def check_sign_quote(self) -> None:
        self._check_feature(FeatureGate.SIGN_QUOTE_ENDPOINT)

    async def sign_quote(self, quote: bytes) -> SignedQuote:
        self.check_sign_quote()
        appraiser = self._core.ports.appraiser
        if appraiser is None:
            raise QuoteNotVerified("OE_UNSUPPORTED")
        if not quote:
            raise QuoteNotVerified("empty report")
        try:
            if Evidence.parse(quote).tee is not Tee.SGX:
                raise Unsupported("TEE type: expected an SGX quote")
            status = (await appraiser.verify(quote)).tcb_status
        except TcbRejected as e:
            status = e.status  # genuine all the same: how bad its platform is, is what the answer is for
        except AttestationError as e:
            raise QuoteNotVerified(str(e)) from e
        return sign_quote(self.ca, quote, status)

    def check_counter(self, certificates: Sequence[bytes]) -> None:
        self._caller(certificates)

    async def set_counter(self, certificates: Sequence[bytes], name: str, value: int) -> int:
        async def change() -> int:
            marble = self._caller(certificates)
            records, before = counters.raise_counter(self._core.records, marble, name, value)
            if records is not self._core.records:
                await self._core.commit(records)
            return before

        return await self._core.exclusively(change)

    def _caller(self, certificates: Sequence[bytes]) -> MarbleIdentity:
        self._check_feature(FeatureGate.MONOTONIC_COUNTER)
        return counters.caller(self.ca, certificates, self._core.ports.clock())

    def _check_feature(self, gate: FeatureGate) -> None:
        manifest = self._core.manifest
        if manifest is None or gate not in manifest.config.feature_gates:
            raise FeatureDisabled(gate.value)

    # --- Marble API

    async def activate(self, ask: ActivationAsk) -> Grant:
        """Verify a Marble and give it its identity and parameters; raises ActivationRefused, and gives nothing."""
        return await self._activator.activate(ask)
