# SPDX-License-Identifier: Apache-2.0
"""Fuzz target: whatever message comes over the Marble API, a Marble that was not verified gets nothing but a status.

`make fuzz ARGS=activation`; the unit tests run it over mutations of a genuine request.
"""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from sds.logs import configure
from sds.wire.marble_pb2 import ActivationRequest
from tests.fuzz.driver import run
from tests.kit.coordinator import Bench, manifest
from tests.kit.marble_client import MarbleCredentials
from xds_server.marble_api import MarbleApi
from xds_server.rpc import RpcError
from xds_server.tls_front import TlsTransport


@dataclass
class _Connection:
    """The end of a TLS connection, as far as the Marble API asks for it."""

    peer_certificate_der: bytes | None


class _World:
    """A Coordinator with a manifest, and the one Marble that it may admit."""

    def __init__(self) -> None:
        configure("critical", "json", True)
        self.loop = asyncio.new_event_loop()
        self._folder = tempfile.TemporaryDirectory(prefix="mm-")
        self.bench = Bench.make(Path(self._folder.name))
        self.loop.run_until_complete(self.bench.coordinator.set_manifest(manifest()))
        self.api = MarbleApi(self.bench.coordinator, self.bench.metrics)
        self.credentials = MarbleCredentials.make()
        ask = self.bench.ask(credentials=self.credentials)
        self.genuine = ActivationRequest(quote=ask.quote, csr=ask.csr, marble_type=ask.marble_type, uuid=ask.uuid)

    def send(self, message: bytes, certificate_der: bytes | None) -> bytes:
        connection = cast(TlsTransport, _Connection(certificate_der))
        return self.loop.run_until_complete(self.api._activate(message, connection))


WORLD = _World()
SEEDS = (WORLD.genuine.SerializeToString(), ActivationRequest(marble_type="web").SerializeToString())


def fuzz_one(data: bytes) -> None:
    """Over a connection with the quoted certificate only the genuine quote is good; over another one nothing is."""
    for certificate, may_pass in ((WORLD.credentials.certificate_der, True), (b"another certificate", False)):
        try:
            WORLD.send(data, certificate)
        except RpcError:
            continue
        sent = ActivationRequest.FromString(data)
        if not may_pass or sent.quote.rstrip(b"\0")[:432] != WORLD.genuine.quote.rstrip(b"\0")[:432]:
            raise AssertionError("a Marble was activated that nobody verified")


if __name__ == "__main__":
    run(fuzz_one, SEEDS)
