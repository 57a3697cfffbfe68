# SPDX-License-Identifier: Apache-2.0
"""TLS of the xDS port: our certificate, and which client certificates may complete a handshake. Both may change while
the server runs: every handshake takes what is current, open streams keep what they had."""

from __future__ import annotations

from datetime import datetime

import grpc
from cryptography.hazmat.primitives.serialization import Encoding

from sds.ca import CertificateAuthority
from sds.material import Identity


class ServerTls:
    """Server credentials that require a client certificate. `trusted` is PEM; empty: the CA's Marble root alone."""

    def __init__(self, ca: CertificateAuthority, trusted: bytes, now: datetime) -> None:
        self._identity, self._fallback = _of(ca, now)
        self._trusted = trusted or self._fallback
        self._current = self._build()

    def use_ca(self, ca: CertificateAuthority, trusted: bytes, now: datetime) -> None:
        """Another server certificate, and what is trusted with it."""
        self._identity, self._fallback = _of(ca, now)
        self._trusted = trusted or self._fallback
        self._current = self._build()

    def trust(self, trusted: bytes) -> None:
        """Other client certificates may complete a handshake from now on."""
        wanted = trusted or self._fallback
        if wanted != self._trusted:
            self._trusted = wanted
            self._current = self._build()

    def credentials(self) -> grpc.ServerCredentials:
        """To be given to `add_secure_port`; follows later changes by itself."""
        served = self._current

        def fetch() -> object:
            # Called in a thread of gRPC at each handshake; None: nothing new. One attribute read, so no lock.
            nonlocal served
            current = self._current
            if current is served:
                return None
            served = current
            return current

        return grpc.dynamic_ssl_server_credentials(served, fetch, require_client_authentication=True)

    def _build(self) -> object:
        pair = (self._identity.key.pem, self._identity.chain)
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=self._trusted)


def _of(ca: CertificateAuthority, now: datetime) -> tuple[Identity, bytes]:
    return ca.issue_coordinator(now), ca.marble_root.public_bytes(Encoding.PEM)
