# SPDX-License-Identifier: Apache-2.0
"""What the worker knows about itself, for metrics, health and dumps: filled as it comes up, read by the admin port."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from enclave_proxy.counters import RelayCounters
from enclave_proxy.identity_store import IdentityStore
from enclave_proxy.local_counters import LocalCounters
from enclave_proxy.session import Session


@dataclass(slots=True)
class Health:
    """Parts are None until they exist."""

    marble_type: str
    uuid: str
    simulation: bool
    now: Callable[[], datetime]
    store: IdentityStore | None = None
    session: Session | None = None
    counters: RelayCounters | None = None
    sockets: list[LocalCounters] = field(default_factory=list)
    app_running: bool = False
    ending: bool = False
    revoked: str = ""

    def not_ready(self) -> str | None:
        """Why this Marble cannot serve, or None. The Coordinator's absence is no reason: traffic goes on without it."""
        if self.revoked:
            return self.revoked
        if self.ending:
            return "ending"
        if self.store is None or self.session is None:
            return "no identity yet: waiting for the coordinator"
        if self.store.credentials.identity.not_after <= self.now():
            return "the identity has expired"
        if not self.session.configured:
            return "no configuration in force yet"
        if not self.app_running:
            return "the app is not running"
        return None
