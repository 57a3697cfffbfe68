# SPDX-License-Identifier: Apache-2.0
"""The connections that are joined now, and whether their peers may still talk.

A peer is admitted once, with the rule and the certificate of that moment. That the certificate was renewed since, that
its root is gone or that it has expired ends nothing: the peer was who it said. That the rule no longer lets it in, or
that it was turned out of the mesh, ends its connections at once.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from cryptography import x509

from enclave_proxy.admission import Refused, objection
from enclave_proxy.listener import Listener
from enclave_proxy.relay_config import Inbound, Membership, Outbound, PeerRule
from enclave_proxy.trace import Trace


@dataclass(frozen=True, slots=True, eq=False)
class Joined:
    """One connection. Its rule is that of its listener now, or the last one of a listener that is gone."""

    listener: Listener
    peer: x509.Certificate | None
    task: asyncio.Task[object]
    trace: Trace

    def objection(self, membership: Membership) -> Refused | None:
        """Why it must end; None if it may go on."""
        return objection(rule_of(self.listener.serving.route), self.peer, membership)


class Live:
    """All joined connections of a relay."""

    def __init__(self) -> None:
        self._joined: set[Joined] = set()

    def add(self, connection: Joined) -> None:
        """A connection is joined now."""
        self._joined.add(connection)

    def discard(self, connection: Joined) -> None:
        """It has ended, or was found unwelcome before."""
        self._joined.discard(connection)

    def unwelcome(self, membership: Membership) -> list[tuple[Joined, Refused]]:
        """Whose peers may no longer talk, each told of once. 20 us for each connection that there is."""
        found = ((connection, connection.objection(membership)) for connection in self._joined)
        ending = [(connection, reason) for connection, reason in found if reason is not None]
        self._joined.difference_update(connection for connection, _ in ending)
        return ending


def rule_of(route: Inbound | Outbound) -> PeerRule:
    """Who may be at the other end of a route."""
    return route.peers if isinstance(route, Inbound) else route.peer
