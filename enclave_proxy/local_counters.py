# SPDX-License-Identifier: Apache-2.0
"""What a local socket counts: plain numbers, read by whoever exports metrics. No names of clients, no content."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from enclave_proxy.local_peer import Unwelcome


@dataclass(slots=True)
class LocalCounters:
    """Numbers of one socket, which `socket` names in metrics and logs. Methods are short names of our own."""

    socket: str
    accepted: int = 0
    """connections that were let in"""
    active: int = 0
    """connections that are open now"""
    refused: Counter[Unwelcome] = field(default_factory=Counter)
    """connections that were closed by us, at the door or later"""
    streams: Counter[str] = field(default_factory=Counter)
    """calls that are open now, by method"""
    ended: Counter[tuple[str, str]] = field(default_factory=Counter)
    """calls that have ended, by method and gRPC status"""
    sent: Counter[str] = field(default_factory=Counter)
    """messages sent, by method"""
    missing: int = 0
    """names that were asked for and do not exist"""
    nacks: int = 0
    """secrets that an Envoy rejected"""
    suppressed_logs: int = 0
    """refusals that were counted but not logged, because there were too many in a second"""
