# SPDX-License-Identifier: Apache-2.0
"""The Coordinator: state, manifest, and who becomes a Marble. No sockets; what it needs of the world is injected.

    set_manifest: parse ─► refuse what has no effect ─► configure the mesh ─► state AcceptingMarbles
    activate:     type ─► package ─► quote (0.6 ms of CPU, inline) ─► budget ─► UUID ─► request ─► leaf, parameters

Everything runs in one event loop. The only wait inside an activation is for collateral; what follows it (budget, issue,
count) has no `await` in it and so needs no lock. State is in memory only: a restart forgets manifest, CA and Marbles.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from manifests.errors import ManifestError, ManifestSyntaxError, Problem
from manifests.model import Manifest, Marble, Package
from manifests.parse import parse
from sds.attestation.claims import Claims
from sds.attestation.errors import AttestationError
from sds.attestation.evidence import Evidence
from sds.attestation.policy import Policy
from sds.attestation.report_data import marble_report_data
from sds.ca import CertificateAuthority, LeafTemplate
from sds.csr import CertificateRequest, CsrError, parse_csr
from sds.errors import SdsError
from sds.logs import get_logger
from sds.material import Identity
from xds_server.activation import (
    ActivationAsk,
    Grant,
    check_budget,
    find_marble,
    make_grant,
    normalise_uuid,
    oversized,
)
from xds_server.certified import certified_claims
from xds_server.errors import (
    ActivationRefused,
    ManifestRefused,
    NoCertificate,
    NotAcceptingMarbles,
    NotIssued,
    NotSet,
    Overloaded,
    TimedOut,
    VerificationFailed,
    WrongState,
)
from xds_server.events import ActivationEvent, EventLog
from xds_server.mesh import ActiveMarble, Mesh
from xds_server.metrics import UNKNOWN_TYPE, CoordinatorMetrics
from xds_server.own_quote import OwnQuote
from xds_server.policy import policy_for
from xds_server.renewal import Identities, Instance, Renewer
from xds_server.snapshot_tls import SnapshotError
from xds_server.state import MESSAGES, State
from xds_server.unsupported import unsupported

# A manifest of 16 MiB holds 3 000 files of 5 KiB; real ones are below 100 KiB.
MAX_MANIFEST = 16 * 1024 * 1024
_MAX_PROBLEMS = 20  # told to the client; a manifest with more is fixed from the top
_MAX_SHOWN = 80

_log = get_logger(__name__)


class QuoteAppraiser(Protocol):
    """Judges a quote: genuine, bound to `report_data`, allowed by `policy`; raises AttestationError."""

    async def appraise(self, quote: bytes, report_data: bytes, policy: Policy) -> Claims: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of an activation. One that waits for collateral holds about 30 KiB, so 64 of them are 2 MiB."""

    activations: int = 64
    seconds: float = 15.0


@dataclass(frozen=True, slots=True)
class Status:
    code: State
    message: str
    simulation: bool


@dataclass(frozen=True, slots=True)
class CoordinatorQuote:
    """`chain_pem`: intermediate, then root; `quote`: MarbleRun's wire form."""

    chain_pem: bytes
    quote: bytes = field(repr=False)
    simulation: bool


@dataclass(frozen=True, slots=True)
class SignedManifest:
    """`signature`: ASN.1 ECDSA by the root key over SHA-256 of `raw`; `fingerprint`: that digest in hex."""

    signature: bytes
    fingerprint: str
    raw: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What the Coordinator needs of the world."""

    own_quote: OwnQuote
    appraiser: QuoteAppraiser
    mesh: Mesh
    clock: Callable[[], datetime]
    jitter: Callable[[], float]
    metrics: CoordinatorMetrics
    events: EventLog


@dataclass(frozen=True, slots=True)
class _Active:
    """What is set once, together."""

    manifest: Manifest
    signature: bytes


class Coordinator:
    """One deployment's root of trust."""

    def __init__(
        self, ca: CertificateAuthority, ports: Ports, *, simulation: bool, limits: Limits | None = None
    ) -> None:
        self.ca = ca
        self.simulation = simulation
        self._ports = ports
        self._limits = limits or Limits()
        self._state = State.ACCEPTING_MANIFEST
        self._active: _Active | None = None
        self._activations: Counter[str] = Counter()
        self._running = 0
        self._identities = Identities(ca, ports.jitter)
        self.renewer = Renewer(self._identities, ports.clock, self._replace_identities)
        ports.metrics.state.set(self._state)
        ports.metrics.simulation.set(simulation)

    # --- client API

    def status(self) -> Status:
        return Status(self._state, MESSAGES[self._state], self.simulation)

    async def quote(self, nonce: bytes) -> CoordinatorQuote:
        """Our own statement; raises QuoteUnavailable. `nonce` at most MAX_NONCE bytes, empty for the cached one."""
        return CoordinatorQuote(self.ca.chain_pem, await self._ports.own_quote.get(nonce), self.simulation)

    def manifest(self) -> SignedManifest:
        """The manifest in force; raises NotSet."""
        if self._active is None:
            raise NotSet
        manifest = self._active.manifest
        return SignedManifest(self._active.signature, manifest.fingerprint, manifest.raw)

    def check_accepts_manifest(self) -> None:
        """Raise WrongState once a manifest is set."""
        if self._state is not State.ACCEPTING_MANIFEST:
            raise WrongState

    def set_manifest(self, raw: bytes) -> None:
        """Put a manifest in force, once; raises WrongState or ManifestRefused, and then nothing has changed."""
        self.check_accepts_manifest()
        manifest = _accepted(raw)
        key = self.ca.root_key.load()
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ManifestRefused("signing manifest: the root key is not an elliptic-curve key")
        signature = key.sign(raw, ec.ECDSA(SHA256()))
        try:
            self._ports.mesh.configure(manifest, self.ca)
        except SnapshotError as e:
            raise ManifestRefused(f"checking manifest: {e}") from e
        self._active = _Active(manifest, signature)
        self._state = State.ACCEPTING_MARBLES
        self._ports.metrics.state.set(self._state)
        for warning in manifest.warnings:
            _log.warning("manifest warning", text=str(warning))
        if manifest.infrastructures:
            _log.warning("manifest warning", text="Infrastructures are accepted but not enforced")
        _log.info("Initial manifest set", manifestFingerprint=manifest.fingerprint)

    # --- Marble API

    async def activate(self, ask: ActivationAsk) -> Grant:
        """Verify a Marble and give it its identity and parameters; raises ActivationRefused, and gives nothing."""
        metrics = self._ports.metrics
        metrics.activations.labels(self._type_label(ask.marble_type), metrics.uuid_label(ask.uuid)).inc()
        try:
            with metrics.activation_seconds.time():
                return await self._bounded(ask)
        except ActivationRefused as refused:
            metrics.refused.labels(refused.reason).inc()
            _log.warning(
                "Marble verification failed" if isinstance(refused, VerificationFailed) else "Marble not activated",
                MarbleType=_shown(ask.marble_type),
                UUID=_shown(ask.uuid),
                reason=refused.reason,
                error=str(refused),
            )
            raise

    async def _bounded(self, ask: ActivationAsk) -> Grant:
        if self._running >= self._limits.activations:
            raise Overloaded(self._limits.activations)
        self._running += 1
        try:
            async with asyncio.timeout(self._limits.seconds):
                return await self._activate(ask)
        except TimeoutError:
            raise TimedOut(self._limits.seconds) from None
        finally:
            self._running -= 1

    async def _activate(self, ask: ActivationAsk) -> Grant:
        if self._active is None:
            raise NotAcceptingMarbles
        if ask.certificate_der is None:
            raise NoCertificate
        manifest = self._active.manifest
        marble, package = find_marble(manifest, ask.marble_type)
        claims = await self._verify(ask.quote, ask.certificate_der, package)
        # From here to the end there is no await: the budget cannot be overdrawn by two activations at once.
        check_budget(ask.marble_type, marble, self._activations[ask.marble_type])
        uuid = normalise_uuid(ask.uuid)
        try:
            request = parse_csr(ask.csr)
        except CsrError as e:
            raise NotIssued(f"generating marble authentication secrets: {e}", "invalid_csr") from None
        return self._issue(ask, manifest, marble, (uuid, request, claims))

    async def _verify(self, quote: bytes, certificate_der: bytes, package: Package) -> Claims:
        if not quote:
            raise VerificationFailed("invalid quote: the Marble sent none, is it running in a TEE?", "no_quote")
        try:
            with self._ports.metrics.verification_seconds.time():
                policy = policy_for(package, Evidence.parse(quote).tee)
                return await self._ports.appraiser.appraise(quote, marble_report_data(certificate_der), policy)
        except AttestationError as e:
            raise VerificationFailed(f"invalid quote: {e}", e.reason) from e

    def _issue(
        self, ask: ActivationAsk, manifest: Manifest, marble: Marble, who: tuple[str, CertificateRequest, Claims]
    ) -> Grant:
        uuid, request, claims = who
        now = self._ports.clock()
        certified = certified_claims(claims, manifest.fingerprint)
        activation = LeafTemplate(ask.marble_type, uuid, request, certified)
        renewable = LeafTemplate(ask.marble_type, uuid, request, certified, manifest.mesh.certificate_lifetime)
        try:
            grant = make_grant(manifest, marble, self.ca, self.ca.issue_marble(activation, now))
            identity = self._identities.issue(renewable, now)
        except SdsError as e:
            raise NotIssued(f"generating marble authentication secrets: {e}", "issuance") from e
        self._activations[ask.marble_type] += 1
        self._ports.mesh.activated(
            ActiveMarble(
                marble_type=ask.marble_type,
                uuid=uuid,
                identity=identity,
                claims=claims,
                dns_names=request.dns_names,
                ip_addresses=request.ip_addresses,
            )
        )
        self._ports.events.add(ActivationEvent(now, ask.marble_type, uuid, ask.quote))
        self._ports.metrics.activated(ask.marble_type, uuid)
        self.renewer.changed()
        _log.info("Successfully activated new Marble", MarbleType=ask.marble_type, UUID=uuid)
        return grant

    def _replace_identities(self, renewed: Mapping[Instance, Identity]) -> None:
        self._ports.mesh.replace_identities(renewed)
        self._ports.metrics.renewals.inc(len(renewed))
        _log.info("identities renewed", count=len(renewed))

    def _type_label(self, marble_type: str) -> str:
        known = self._active is not None and marble_type in self._active.manifest.marbles
        return marble_type if known else UNKNOWN_TYPE


def _shown(text: str) -> str:
    """A stranger's text for the log: short, and no line of its own."""
    return text[:_MAX_SHOWN] if text.isprintable() else ascii(text[:_MAX_SHOWN])


def _accepted(raw: bytes) -> Manifest:
    """A manifest that is well formed and has no member without effect; raises ManifestRefused."""
    if len(raw) > MAX_MANIFEST:
        raise ManifestRefused(f"unmarshaling manifest: {len(raw)} bytes, at most {MAX_MANIFEST} are accepted")
    try:
        manifest = parse(raw)
    except ManifestSyntaxError as e:
        raise ManifestRefused(f"unmarshaling manifest: {e}") from e
    except ManifestError as e:
        raise ManifestRefused(f"checking manifest: {_list(e.problems)}") from e
    problems = (*unsupported(manifest), *oversized(manifest))
    if problems:
        raise ManifestRefused(f"checking manifest: {_list(problems)}")
    return manifest


def _list(problems: tuple[Problem, ...]) -> str:
    shown = "; ".join(str(problem) for problem in problems[:_MAX_PROBLEMS])
    more = len(problems) - _MAX_PROBLEMS
    return f"{shown}; and {more} more" if more > 0 else shown
