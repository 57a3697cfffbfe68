# SPDX-License-Identifier: Apache-2.0
"""What the relay counts: plain numbers per listener, read by whoever exports metrics. No names of peers, no payload."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from enclave_proxy.clusters import ClusterCounters
from enclave_proxy.handshake_times import HandshakeTimes
from enclave_proxy.resolver import ResolverCounters


class Refusal(StrEnum):
    """Why a connection was not served, or was ended by us. The values are metric labels."""

    PLAINTEXT = "plaintext"
    NO_CERTIFICATE = "no_certificate"
    UNTRUSTED = "untrusted"
    EXPIRED = "expired"
    PEER_NOT_ALLOWED = "peer_not_allowed"
    REVOKED = "revoked"
    REFUSED_BY_PEER = "refused_by_peer"
    TLS_ERROR = "tls_error"
    ABORTED = "aborted"
    TIMEOUT = "timeout"
    NO_ENDPOINT = "no_endpoint"
    UPSTREAM_UNAVAILABLE = "upstream_unavailable"
    LIMIT = "limit"
    TRUNCATED = "truncated"
    IDLE = "idle"
    LIFETIME = "lifetime"
    LINGER = "linger"
    DRAINED = "drained"
    INTERNAL_ERROR = "internal_error"


@dataclass(slots=True)
class ListenerCounters:
    """Numbers of one listener, since it was first configured under its name."""

    accepted: int = 0
    """connections accepted, whatever became of them"""
    established: int = 0
    """connections whose two sides were joined"""
    active: int = 0
    """connections that are joined now"""
    handshakes: int = 0
    """connections that are not joined yet"""
    received: int = 0
    """payload bytes from the side that connected to us"""
    sent: int = 0
    """payload bytes to the side that connected to us"""
    refused: Counter[Refusal] = field(default_factory=Counter)
    ended: Counter[Refusal] = field(default_factory=Counter)
    """joined connections that did not end by themselves: cut off because their peer may no longer talk or because of a
    timeout, or broken off by one of the two sides"""
    handshake_times: HandshakeTimes = field(default_factory=HandshakeTimes)
    """of TLS handshakes after which the peer was admitted"""
    handshakes_failed: Counter[Refusal] = field(default_factory=Counter)
    """the others; of a connection of the app, each attempt at a peer"""
    peers: Counter[str] = field(default_factory=Counter)
    """joined connections by the peer's Marble type, see `peer_types`"""


@dataclass(slots=True)
class RelayCounters:
    """Numbers of a whole relay. Listeners that are gone keep theirs, so that no counter ever runs backwards."""

    listeners: dict[str, ListenerCounters] = field(default_factory=dict)
    applied: int = 0
    """configurations that took effect"""
    rejected: int = 0
    """configurations that changed nothing because they could not be built or bound"""
    bugs: int = 0
    """connections that ended with an unexpected exception"""
    suppressed_logs: int = 0
    """refusals that were counted but not logged, because there were too many in a second"""
    access_written: int = 0
    """lines of the access log"""
    access_lost: int = 0
    """lines that were dropped instead"""
    cpu: dict[str, float] = field(default_factory=dict)
    """seconds of CPU time that a relay process, by its number, has spent in its event loop"""
    dials: dict[str, ClusterCounters] = field(default_factory=dict)
    """by outbound listener"""
    names: ResolverCounters = field(default_factory=ResolverCounters)
    endpoints: dict[str, int] = field(default_factory=dict)
    """how many there are now, by outbound listener"""
    ejected: dict[str, int] = field(default_factory=dict)
    """those among them that are left out now"""

    def of(self, listener: str) -> ListenerCounters:
        """The counters of a listener, made on first use."""
        found = self.listeners.get(listener)  # nearly always, and making one costs more than the rest of this call
        if found is None:
            found = self.listeners[listener] = ListenerCounters()
        return found
