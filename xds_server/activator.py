# SPDX-License-Identifier: Apache-2.0
"""Who becomes a Marble.

    type ─► package ─► quote (0.6 ms of CPU, inline) ─► budget ─► UUID ─► request ─► leaf, secrets, parameters
         ─► count and commit, if the type has a budget ─► mesh

Secrets and parameters are made in a thread: an RSA key takes a second. If the manifest or the CA changed meanwhile, the
answer would belong to neither, and the Marble is told to come again. A limited type is counted in the committed state
before the answer goes out, under the lock, so that neither two activations at once nor a crash overdraw the budget.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import MappingProxyType

from manifests.model import Manifest, Marble, Package
from sds.attestation.claims import Claims
from sds.attestation.errors import AttestationError
from sds.attestation.evidence import Evidence
from sds.attestation.report_data import marble_report_data
from sds.ca import LeafTemplate
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
)
from xds_server.certified import certified_claims
from xds_server.core import Core
from xds_server.errors import (
    ActivationRefused,
    CoordinatorError,
    Interrupted,
    NoCertificate,
    NotAcceptingMarbles,
    NotIssued,
    Overloaded,
    TimedOut,
    VerificationFailed,
)
from xds_server.events import ActivationEvent
from xds_server.mesh import ActiveMarble
from xds_server.metrics import UNKNOWN_TYPE
from xds_server.parameters import ParametersError, TemplateData, render
from xds_server.policy import explained, policy_for
from xds_server.records import Records
from xds_server.renewal import MAX_INSTANCES
from xds_server.secret_rules import for_instance
from xds_server.served_certificates import for_activation
from xds_server.state import State

_MAX_SHOWN = 80

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of an activation. One that waits for collateral holds about 30 KiB, so 64 of them are 2 MiB."""

    activations: int = 64
    seconds: float = 15.0


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A verified Marble, before anything is issued."""

    ask: ActivationAsk
    marble: Marble
    uuid: str
    request: CertificateRequest
    claims: Claims | None = field(repr=False)


class Activator:
    """Activations of one Coordinator, at most `limits.activations` at once."""

    def __init__(self, core: Core, limits: Limits) -> None:
        self._core = core
        self._limits = limits
        self._running = 0

    async def activate(self, ask: ActivationAsk) -> Grant:
        """Verify a Marble and give it its identity and parameters; raises ActivationRefused, and gives nothing."""
        metrics = self._core.ports.metrics
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
        core = self._core
        records, manifest = core.records, core.manifest
        if manifest is None or core.state is not State.ACCEPTING_MARBLES:
            raise NotAcceptingMarbles
        if ask.certificate_der is None:
            raise NoCertificate
        marble, package = find_marble(manifest, ask.marble_type)
        claims = await self._verify(ask.quote, ask.certificate_der, manifest, package)
        check_budget(ask.marble_type, marble, records.activations.get(ask.marble_type, 0))
        uuid = normalise_uuid(ask.uuid)
        try:
            request = parse_csr(ask.csr)
        except CsrError as e:
            raise NotIssued(f"generating marble authentication secrets: {e}", "invalid_csr") from None
        candidate = _Candidate(ask, marble, uuid, request, claims)
        grant = await self._parameters(candidate, records, manifest)
        if marble.max_activations:
            await core.exclusively(lambda: self._count(candidate, records, manifest, grant))
        else:
            self._check_unchanged(records)
            self._admit(candidate, manifest, grant)
        return grant

    async def _verify(
        self, quote: bytes, certificate_der: bytes, manifest: Manifest, package: Package
    ) -> Claims | None:
        core = self._core
        appraiser = core.ports.appraiser
        if appraiser is None:
            return None  # no attestation at all: whatever was sent could not be judged
        # Infrastructures have no effect but on this word: see `unsupported`.
        failed = "invalid infrastructure" if manifest.infrastructures else "invalid quote"
        if not quote:
            raise VerificationFailed(f"{failed}: the Marble sent none, is it running in a TEE?", "no_quote")
        try:
            with core.ports.metrics.verification_seconds.time():
                policy = policy_for(package, Evidence.parse(quote).tee)
                return await appraiser.appraise(quote, marble_report_data(certificate_der), policy)
        except AttestationError as e:
            raise VerificationFailed(f"{failed}: {explained(e, package)}", e.reason) from e

    async def _parameters(self, candidate: _Candidate, records: Records, manifest: Manifest) -> Grant:
        now = self._core.ports.clock()
        try:
            identity = records.ca.issue_marble(_template(candidate, manifest, None), now)
        except SdsError as e:
            raise NotIssued(f"generating marble authentication secrets: {e}", "issuance") from e
        return await asyncio.to_thread(_make_parameters, candidate, records, manifest, identity, now)

    async def _count(self, candidate: _Candidate, seen: Records, manifest: Manifest, grant: Grant) -> None:
        """One unit of the budget, committed, and then into the mesh; inside the lock."""
        core, marble_type = self._core, candidate.ask.marble_type
        self._check_unchanged(seen)
        used = core.records.activations.get(marble_type, 0)
        check_budget(marble_type, candidate.marble, used)
        activations = MappingProxyType({**core.records.activations, marble_type: used + 1})
        try:
            await core.commit(replace(core.records, activations=activations))
        except CoordinatorError as e:
            raise NotIssued(f"committing store transaction: {e}", "commit") from e
        self._admit(candidate, manifest, grant)

    def _check_unchanged(self, seen: Records) -> None:
        current = self._core.records
        if current.ca is not seen.ca or current.manifest != seen.manifest:
            raise Interrupted

    def _admit(self, candidate: _Candidate, manifest: Manifest, grant: Grant) -> None:
        """Into the mesh; no await from here to the end."""
        core, ask = self._core, candidate.ask
        now = core.ports.clock()
        try:
            identity = core.identities.issue(_template(candidate, manifest, manifest.mesh.certificate_lifetime), now)
        except SdsError as e:
            raise NotIssued(f"generating marble authentication secrets: {e}", "issuance") from e
        core.ports.mesh.activated(
            ActiveMarble(
                marble_type=ask.marble_type,
                uuid=candidate.uuid,
                identity=identity,
                claims=candidate.claims,
                dns_names=candidate.request.dns_names,
                ip_addresses=candidate.request.ip_addresses,
                served=grant.served,
            )
        )
        core.ports.events.add(ActivationEvent(now, ask.marble_type, ask.uuid, ask.quote))
        core.ports.metrics.activated(ask.marble_type, candidate.uuid)
        core.renewer.changed()
        if len(core.identities) >= MAX_INSTANCES:
            core.forget_absent()
        _log.info("Successfully activated new Marble", MarbleType=ask.marble_type, UUID=candidate.uuid)

    def _type_label(self, marble_type: str) -> str:
        manifest = self._core.manifest
        return marble_type if manifest is not None and marble_type in manifest.marbles else UNKNOWN_TYPE


def _template(candidate: _Candidate, manifest: Manifest, lifetime: timedelta | None) -> LeafTemplate:
    certified = certified_claims(candidate.claims, manifest.fingerprint)
    return LeafTemplate(candidate.ask.marble_type, candidate.uuid, candidate.request, certified, lifetime)


def _make_parameters(
    candidate: _Candidate, records: Records, manifest: Manifest, identity: Identity, now: datetime
) -> Grant:
    marble_type, marble = candidate.ask.marble_type, candidate.marble
    try:
        current, previous = for_instance(records, manifest, marble_type, candidate.uuid, now)
    except (CoordinatorError, SdsError) as e:
        raise NotIssued(f"generating marble secrets: {e}", "secrets") from e
    try:
        served = for_activation(manifest, marble_type, current, records.ca)
    except CoordinatorError as e:
        raise NotIssued(f"creating TTLS config: {e}", "secrets") from e
    try:
        rendered = render(marble, TemplateData(current, previous, identity, records.ca))
    except ParametersError as e:
        raise NotIssued(f"customizing marble parameters: {e}", "parameters") from e
    return make_grant(manifest, marble, records.ca, identity, rendered, served)


def _shown(text: str) -> str:
    """A stranger's text for the log: short, and no line of its own."""
    return text[:_MAX_SHOWN] if text.isprintable() else ascii(text[:_MAX_SHOWN])
