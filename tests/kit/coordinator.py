# SPDX-License-Identifier: Apache-2.0
"""A Coordinator on a simulated platform, without sockets; and manifests for it."""

from __future__ import annotations

import json
import uuid as uuids
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sds.attestation.appraiser import Appraiser
from sds.attestation.simulated import SIMULATED_SIGNER, SimulatedEnclave, SimulatedPlatform
from sds.ca import CertificateAuthority
from tests.kit.marble_client import MarbleCredentials
from xds_server.activation import ActivationAsk, Grant
from xds_server.coordinator import Coordinator, Limits, Ports, QuoteAppraiser
from xds_server.events import EventLog
from xds_server.mesh import Mesh
from xds_server.metrics import CoordinatorMetrics
from xds_server.own_quote import OwnQuote

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
class Bench:
    """A Coordinator with what is around it."""

    platform: SimulatedPlatform
    clock: Clock
    metrics: CoordinatorMetrics
    events: EventLog
    mesh: Mesh
    coordinator: Coordinator
    own_quote: OwnQuote

    @classmethod
    def make(cls, directory: Path, *, appraiser: QuoteAppraiser | None = None, limits: Limits | None = None) -> Bench:
        clock = Clock()
        platform = SimulatedPlatform.open(directory, clock(), clock)
        ca = CertificateAuthority.create(["localhost"], [], clock())
        metrics = CoordinatorMetrics("1.2.3")
        events = EventLog()
        mesh = Mesh(clock)
        coordinator_enclave = SimulatedEnclave.default("coordinator")
        own_quote = OwnQuote(platform.issuer(coordinator_enclave), ca.root_der)
        ports = Ports(
            own_quote=own_quote,
            appraiser=appraiser or Appraiser(platform.verifier(), platform.collateral, clock),
            mesh=mesh,
            clock=clock,
            jitter=lambda: 0.5,
            metrics=metrics,
            events=events,
        )
        coordinator = Coordinator(ca, ports, simulation=True, limits=limits)
        return cls(platform, clock, metrics, events, mesh, coordinator, own_quote)

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
