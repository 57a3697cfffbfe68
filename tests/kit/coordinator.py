# SPDX-License-Identifier: Apache-2.0
"""A Coordinator on a simulated platform, without sockets; and manifests for it."""

from __future__ import annotations

import json
import uuid as uuids
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from manifests.model import Manifest
from manifests.parse import parse
from sds.attestation.appraiser import Appraiser
from sds.attestation.simulated import SIMULATED_SIGNER, SimulatedEnclave, SimulatedPlatform
from tests.kit.marble_client import MarbleCredentials
from xds_server.activation import ActivationAsk, Grant
from xds_server.activator import Limits
from xds_server.coordinator import Coordinator, fresh_records
from xds_server.core import Ports, QuoteAppraiser
from xds_server.events import EventLog
from xds_server.mesh import Mesh
from xds_server.metrics import CoordinatorMetrics
from xds_server.own_quote import OwnQuote
from xds_server.records import Records
from xds_server.recovery import RecoveryTerms
from xds_server.store_errors import CommitFailed, WrongKey

APP = SimulatedEnclave(SimulatedEnclave.default("app").unique_id, SIMULATED_SIGNER, product_id=7, security_version=3)
PACKAGE = {"SignerID": SIMULATED_SIGNER.hex(), "ProductID": 7, "SecurityVersion": 3, "Debug": False}


def manifest(**members: object) -> bytes:
    """A manifest with one package `app` and one Marble `web`; members replace or add."""
    document: dict[str, object] = {
        "Packages": {"app": PACKAGE},
        "Marbles": {"web": {"Package": "app", "Parameters": {"Argv": ["./web"]}}},
    }
    return json.dumps(document | members).encode()


@dataclass
class Clock:
    """The time; tests move it."""

    time: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __call__(self) -> datetime:
        return self.time

    def forward(self, duration: timedelta) -> None:
        self.time += duration


@dataclass
class MemoryStore:
    """What a store does, in memory; `failing` makes every commit fail, `committed` are all that did not."""

    committed: list[Records] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    recovery_data: bytes = b"null"
    failing: bool = False

    def commit(self, records: Records) -> None:
        if self.failing:
            raise CommitFailed("disk full")
        self.committed.append(records)

    def new_key(self, dek: bytes, recovery_data: bytes) -> None:
        self.keys.append(dek)
        self.recovery_data = recovery_data

    def recovery_terms(self, dek: bytes) -> RecoveryTerms:
        manifest = parse(self.unlock(dek).manifest)
        return RecoveryTerms(manifest.recovery_keys, manifest.config.recovery_threshold)

    def unlock(self, dek: bytes) -> Records:
        if dek not in self.keys[-1:]:
            raise WrongKey("this key does not open the state")
        return self.committed[-1]

    def warnings(self, manifest: Manifest) -> tuple[str, ...]:
        return ()


@dataclass
class Bench:
    """A Coordinator with what is around it."""

    platform: SimulatedPlatform
    clock: Clock
    metrics: CoordinatorMetrics
    events: EventLog
    mesh: Mesh
    coordinator: Coordinator
    own_quote: OwnQuote
    store: MemoryStore

    @classmethod
    def make(
        cls,
        directory: Path,
        *,
        appraiser: QuoteAppraiser | None = None,
        limits: Limits | None = None,
        store: MemoryStore | None = None,
        records: Records | None = None,
        locked: bytes | None = None,
        insecure: bool = False,
    ) -> Bench:
        """`records`: what a store had loaded; `store`: goes on with this one."""
        clock = Clock()
        store = store or MemoryStore()
        platform = SimulatedPlatform.open(directory, clock(), clock)
        records = records or fresh_records(["localhost"], [], clock())
        ca = records.ca
        metrics = CoordinatorMetrics("1.2.3")
        events = EventLog()
        mesh = Mesh(clock)
        coordinator_enclave = SimulatedEnclave.default("coordinator")
        own_quote = OwnQuote(platform.issuer(coordinator_enclave), ca.root_der)
        ports = Ports(
            own_quote=None if insecure else own_quote,
            appraiser=None if insecure else appraiser or Appraiser(platform.verifier(), platform.collateral, clock),
            store=store,
            mesh=mesh,
            clock=clock,
            jitter=lambda: 0.5,
            metrics=metrics,
            events=events,
        )
        coordinator = Coordinator(records, ports, simulation=not insecure, locked=locked, limits=limits)
        return cls(platform, clock, metrics, events, mesh, coordinator, own_quote, store)

    def restarted(self, directory: Path) -> Bench:
        """Another process with what was committed last; the mesh knows nobody."""
        return Bench.make(directory, store=self.store, records=self.store.committed[-1])

    def ask(
        self,
        enclave: SimulatedEnclave = APP,
        *,
        credentials: MarbleCredentials | None = None,
        **changes: object,
    ) -> ActivationAsk:
        """What a good Marble sends, with changes."""
        who = credentials or MarbleCredentials.make()
        members: dict[str, object] = {
            "quote": who.quote(self.platform.issuer(enclave)),
            "csr": who.csr,
            "marble_type": "web",
            "uuid": str(uuids.uuid4()),
            "certificate_der": who.certificate_der,
        }
        return ActivationAsk(**(members | changes))  # type: ignore[arg-type]

    async def activate(self, **changes: object) -> Grant:
        return await self.coordinator.activate(self.ask(**changes))  # type: ignore[arg-type]

    def metric(self, name: str, labels: Mapping[str, str] | None = None) -> float:
        return self.metrics.registry.get_sample_value(name, dict(labels or {})) or 0.0
