# SPDX-License-Identifier: Apache-2.0
"""TLS of the xDS port: our certificate, and which client certificates may complete a handshake. Both may change while
the server runs: every handshake takes what is current, open streams keep what they had."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from cryptography.hazmat.primitives.serialization import Encoding

from sds.ca import CertificateAuthority
from sds.material import Identity


@dataclass(frozen=True, slots=True, eq=False)
class TlsMaterial:
    """What one handshake needs; another object whenever something changed. `trusted` is PEM."""

    identity: Identity = field(repr=False)
    trusted: bytes = field(repr=False)


class ServerTls:
    """A port that requires a client certificate. `trusted` is PEM; empty: the CA's Marble root alone.

    `current` is one attribute read: any thread may look.
    """

    def __init__(self, ca: CertificateAuthority, trusted: bytes, now: datetime) -> None:
        self.current = self._of(ca, trusted, now)

    def use_ca(self, ca: CertificateAuthority, trusted: bytes, now: datetime) -> None:
        """Another server certificate, and what is trusted with it."""
        self.current = self._of(ca, trusted, now)

    def trust(self, trusted: bytes) -> None:
        """Other client certificates may complete a handshake from now on."""
        wanted = trusted or self._fallback
        if wanted != self.current.trusted:
            self.current = TlsMaterial(self.current.identity, wanted)

    def _of(self, ca: CertificateAuthority, trusted: bytes, now: datetime) -> TlsMaterial:
        self._fallback = ca.marble_root.public_bytes(Encoding.PEM)
        return TlsMaterial(ca.issue_coordinator(now), trusted or self._fallback)
