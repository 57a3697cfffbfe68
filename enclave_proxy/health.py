# SPDX-License-Identifier: Apache-2.0
"""What the worker knows about itself, for metrics, health and dumps: filled as it comes up, read by the admin port."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from enclave_proxy.app_state import AppState
from enclave_proxy.capture_rules import CaptureRules
from enclave_proxy.clusters import ClusterStatus
from enclave_proxy.counters import RelayCounters
from enclave_proxy.identity_store import IdentityStore
from enclave_proxy.local_counters import LocalCounters
from enclave_proxy.session import Session
from sds.logs import redact


class Counting(Protocol):
    """The part of the relay that is needed here."""

    @property
    def counters(self) -> RelayCounters:
        """The numbers of all its processes together."""

    def look(self) -> None:
        """Bring those of them up to date that are not kept as things happen."""


class Looking(Protocol):
    """What knows of peers' endpoints."""

    async def look(self) -> Sequence[ClusterStatus]:
        """What is known now."""


class Processes(Protocol):
    """Several processes that relay as one."""

    restarted: int

    @property
    def size(self) -> int:
        """How many there should be."""

    @property
    def processes(self) -> Mapping[int, int]:
        """Process ids of those that live besides this one, by their number."""


class Captures(Protocol):
    """What redirects the app's connections."""

    @property
    def problem(self) -> str | None:
        """Why they may go around it; None if they do not."""

    @property
    def rules(self) -> CaptureRules | None:
        """What is in force; None: nothing yet."""


@dataclass(slots=True)
class Health:
    """Parts are None until they exist."""

    marble_type: str
    uuid: str
    simulation: bool
    now: Callable[[], datetime]
    store: IdentityStore | None = None
    session: Session | None = None
    relay: Counting | None = None
    fleet: Processes | None = None
    capture: Captures | None = None
    clusters: Looking | None = None
    sockets: list[LocalCounters] = field(default_factory=list)
    app: AppState = field(default_factory=AppState)
    ending: bool = False
    started_offline: datetime | None = None
    """when the Coordinator was heard last, if this worker started without it"""
    revoked: str = ""

    @property
    def counters(self) -> RelayCounters | None:
        """What the relay has counted until now; None if there is no relay."""
        if self.relay is None:
            return None
        self.relay.look()
        return self.relay.counters

    def not_ready(self) -> str | None:
        """What is missing for this Marble to serve, one line each, or None. The Coordinator's absence is no reason:
        traffic goes on without it."""
        if self.revoked:
            return self.revoked
        if self.ending:
            return "ending"
        if self.store is None or self.session is None:
            return "no identity yet: waiting for the coordinator"
        missing = (
            "the identity has expired" if self.store.credentials.identity.not_after <= self.now() else None,
            _not_configured(self.session),
            self.app.not_ready(),
            None if self.capture is None else self.capture.problem,
        )
        return "\n".join(line for line in missing if line is not None) or None


def _not_configured(session: Session) -> str | None:
    """Which of the listeners that were pushed are not live."""
    if session.configured and not (waiting := session.waiting_listeners()):
        return None
    why = redact(session.obstacle)
    what = f"listeners not live: {', '.join(waiting)}" if session.configured else "no configuration in force yet"
    return f"{what}: {why}" if why else what
