# SPDX-License-Identifier: Apache-2.0
"""What the Coordinator's operations share: the records in force, and the one way to change them.

    rule ─► new records ─► store.commit (a thread) ─► swap ─► mesh            all under one lock, to its end

A change that has begun does not stop because whoever asked for it went away: then disk and memory would disagree. So
it runs in a task of its own, and the asker only waits for it. Nothing is acted on before it is committed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol, TypeVar

from cryptography import x509

from manifests.model import Manifest
from manifests.parse import parse
from sds.attestation.claims import Claims
from sds.attestation.policy import Policy
from sds.ca import CertificateAuthority, LeafTemplate
from sds.errors import SdsError
from sds.identity import MarbleIdentity
from sds.logs import get_logger
from sds.material import Identity
from xds_server.certified import names_of, read_certified, still_allowed
from xds_server.errors import CoordinatorError
from xds_server.events import EventLog
from xds_server.mesh import AccessDenied, ActiveMarble, Mesh
from xds_server.metrics import CoordinatorMetrics
from xds_server.own_quote import OwnQuote
from xds_server.records import Records
from xds_server.recovery import RecoverySession, RecoveryTerms
from xds_server.renewal import MAX_INSTANCES, Identities, Instance, Renewer
from xds_server.revocation import RESTORED
from xds_server.rotation import Phase, Rotation
from xds_server.served_certificates import for_running
from xds_server.snapshot import Snapshot
from xds_server.state import State
from xds_server.updates import effective

T = TypeVar("T")

_log = get_logger(__name__)


class QuoteAppraiser(Protocol):
    """Judges quotes; both methods raise AttestationError."""

    async def verify(self, quote: bytes) -> Claims:
        """Genuine, whatever it is bound to and whoever's code it is."""

    async def appraise(self, quote: bytes, report_data: bytes, policy: Policy) -> Claims:
        """Genuine, bound to `report_data`, allowed by `policy`."""


class RecordStore(Protocol):
    """Where the records outlive the process: `store.Store`. Methods block; see there."""

    def commit(self, records: Records) -> None: ...

    def new_key(self, dek: bytes, recovery_data: bytes) -> None: ...

    def recovery_terms(self, dek: bytes) -> RecoveryTerms: ...

    def unlock(self, dek: bytes) -> Records: ...

    def warnings(self, manifest: Manifest) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What the Coordinator needs of the world. `own_quote` and `appraiser` are None without any attestation."""

    own_quote: OwnQuote | None
    appraiser: QuoteAppraiser | None
    store: RecordStore
    mesh: Mesh
    clock: Callable[[], datetime]
    jitter: Callable[[], float]
    metrics: CoordinatorMetrics
    events: EventLog


class Core:
    """The state. `manifest` is the effective one (with raised security versions), None before there is one;
    `written` the same as its authors wrote it."""

    def __init__(self, records: Records, ports: Ports, *, simulation: bool, locked: bytes | None = None) -> None:
        self.records = records
        self.ports = ports
        self.simulation = simulation
        self.manifest: Manifest | None = None
        self.written: Manifest | None = None
        self.recovery: RecoverySession | None = None
        # Whoever presents certificates of the CA, told when another one takes over.
        self.on_ca: list[Callable[[CertificateAuthority], None]] = []
        self.identities = Identities(records.ca, ports.jitter)
        self.renewer = Renewer(
            self.identities,
            ports.clock,
            self._replace_identities,
            held=lambda: ports.mesh.rotation.phase is Phase.INTRODUCE,
        )
        self._recovery_data = b""
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        ports.mesh.readmit = self._readmit
        ports.mesh.renew_with(self.renewer.rotate_all)
        ports.mesh.retired = self._roots_retired
        ports.metrics.simulation.set(simulation)
        ports.metrics.state.set(records.state)
        if locked is not None:
            self.lock(locked)
        elif records.manifest:
            self.swap(records, parse(records.manifest))
            self.serve()

    def lock(self, recovery_data: bytes) -> None:
        """There is a state that cannot be opened here: into recovery, from the start."""
        self._recovery_data = recovery_data
        self.records = replace(self.records, state=State.RECOVERY)
        self.recovery = RecoverySession(recovery_data, self.ports.store.recovery_terms, time.monotonic)
        self.ports.metrics.state.set(self.state)

    def lock_again(self) -> None:
        """A recovery that was complete could not be put in force: everybody uploads again."""
        self.lock(self._recovery_data)

    @property
    def state(self) -> State:
        return self.records.state

    @property
    def ca(self) -> CertificateAuthority:
        return self.records.ca

    @property
    def insecure(self) -> bool:
        """There is no attestation at all."""
        return self.ports.appraiser is None

    async def exclusively(self, change: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a change alone and to its end, even if the caller is cancelled meanwhile."""

        async def alone() -> T:
            async with self._lock:
                return await change()

        task = asyncio.get_running_loop().create_task(alone())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def commit(self, records: Records, written: Manifest | None = None) -> None:
        """Make `records` the ones in force, on disk and then here; only inside `exclusively`. Raises CommitFailed.

        `written`: the manifest that they hold, if it is another one than before.
        """
        await asyncio.to_thread(self.ports.store.commit, records)
        self.swap(records, written)

    def swap(self, records: Records, written: Manifest | None = None) -> None:
        """Take over records that are committed, or never will be (recovery)."""
        self.records = records
        self.written = written or self.written
        self.manifest = None if self.written is None else effective(self.written, records.security_versions)
        self.ports.metrics.state.set(self.state)

    def serve(self, made: Snapshot | None = None) -> None:
        """Bring everything that presents or checks certificates to the records in force, whatever was before. `made`:
        see Mesh.configure."""
        if self.manifest is not None:
            self.ports.mesh.resume(self.manifest, self.ca, self.records.former, made)
        self.identities.use_ca(self.ca)
        for told in self.on_ca:
            told(self.ca)

    def present_anew(self) -> None:
        """Certificate secrets changed: soon the ports of running Marbles present the new ones."""
        task = asyncio.get_running_loop().create_task(self._present_anew())
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def _present_anew(self) -> None:
        records, manifest = self.records, self.manifest
        if manifest is None:
            return
        made = await asyncio.to_thread(for_running, records, manifest, self.ports.mesh.marbles, self.ports.clock())
        if made and self.records.secrets is records.secrets:  # else a later change is on its way here
            self.ports.mesh.replace_served(made)

    async def close(self) -> None:
        """Wait for changes that are under way."""
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))

    def _replace_identities(self, renewed: Mapping[Instance, Identity]) -> None:
        self.ports.mesh.replace_identities(renewed)
        self.ports.metrics.renewals.inc(len(renewed))
        _log.info("identities renewed", count=len(renewed))
        self.forget_absent()

    def forget_absent(self) -> None:
        """Let go of instances that have not come back, so that nobody renews for ever what nobody fetches."""
        if self.manifest is None:
            return
        gone = self.ports.mesh.forget_absent(self.manifest.mesh.certificate_lifetime, MAX_INSTANCES)
        for instance in gone:
            self.identities.forget(instance)
        if gone:
            _log.info("absent instances forgotten", count=len(gone))

    def _readmit(self, certificate: x509.Certificate, who: MarbleIdentity) -> ActiveMarble | None:
        """An instance that is not remembered, judged by what its certificate says was attested. Raises AccessDenied."""
        manifest = self.manifest
        if manifest is None:
            return None
        try:
            claims = read_certified(who.claims)
            if claims is not None and claims.simulated != self.simulation:
                return None
            if not still_allowed(manifest, who.type, claims, insecure=self.insecure):
                # Attested once, and not what the manifest wants now: to activate again would end the same way.
                raise AccessDenied("PERMISSION_DENIED", "revoked", RESTORED)
            request = names_of(certificate)
            # Without the version member, which is written anew; and it is today's manifest that allows the instance.
            certified = {name: value for name, value in (who.claims or {}).items() if name != "v"}
            certified["manifest"] = manifest.fingerprint
            template = LeafTemplate(who.type, who.uuid, request, certified, manifest.mesh.certificate_lifetime)
            identity = self.identities.issue(template, self.ports.clock(), self._issuer_for(certificate))
        except SdsError as e:
            _log.warning("instance not readmitted", MarbleType=who.type, UUID=who.uuid, error=str(e))
            return None
        self.renewer.changed()
        self.present_anew()
        _log.info("instance readmitted", MarbleType=who.type, UUID=who.uuid)
        return ActiveMarble(who.type, who.uuid, identity, claims, request.dns_names, request.ip_addresses)

    def _issuer_for(self, certificate: x509.Certificate) -> CertificateAuthority:
        """While a new root is being made known, who comes back with an identity of an old one gets another of that one:
        its peers may not know the new root yet."""
        if self.ports.mesh.rotation.phase is Phase.INTRODUCE:
            return self.records.former.issuer_of(certificate) or self.ca
        return self.ca

    def _roots_retired(self, rotation: Rotation) -> None:
        """From here on a start must not bring back roots that have left the bundles."""

        async def remember() -> None:
            former = self.records.former.as_of(rotation, self.ports.clock())
            try:
                await self.commit(replace(self.records, former=former))
            except CoordinatorError as e:
                _log.warning("former roots not written, a start would trust them again for a moment", error=str(e))

        task = asyncio.get_running_loop().create_task(self.exclusively(remember))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            # Looked at, so that a change whose asker is gone does not end in a warning of the event loop.
            _log.debug("change refused", error=str(fault))
