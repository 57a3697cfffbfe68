# SPDX-License-Identifier: Apache-2.0
"""A Coordinator with all that a Marble and an operator can reach: client API, Marble API and metrics on real sockets.

The ports are served by the very code that serves them in the process. Clients are independent: curl, `openssl
s_client`, and for activation grpclib over the standard library's TLS with a self-signed certificate.
"""

from __future__ import annotations

import functools
import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from grpclib import GRPCError
from grpclib.const import Status

from sds.attestation.simulated import SimulatedEnclave, SimulatedTd
from sds.ca import pem_of
from sds.wire.marble_pb2 import Parameters
from tests.kit.client_api import Answer, curl, shown
from tests.kit.coordinator import APP, PACKAGE, Bench, manifest
from tests.kit.marble_client import MarbleCredentials, activate
from tests.kit.users import User, user
from xds_server.client_api_xds import XdsView
from xds_server.metrics_listener import MetricsListener
from xds_server.public_ports import PublicPorts

UUID = "0a1b2c3d-4e5f-4a5b-8c7d-8e9fa0b1c2d3"
NIL = "00000000-0000-0000-0000-000000000000"
ROOT_CA = "MARBLE_PREDEFINED_ROOT_CA"
CHAIN = "MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"
PRIVATE_KEY = "MARBLE_PREDEFINED_PRIVATE_KEY"
COORDINATOR_ROOT_CA = "MARBLE_PREDEFINED_COORDINATOR_ROOT_CA"


@functools.cache
def somebody() -> MarbleCredentials:
    """A Marble for all tests that only need some Marble."""
    return MarbleCredentials.make()


@dataclass(frozen=True, slots=True)
class Refusal:
    """How the Marble API said no."""

    status: Status
    message: str


@dataclass
class MarbleDeployment:
    """The deployment and its clients. `refused`: port and reason of each TLS connection that was turned away."""

    bench: Bench
    directory: Path
    client: int
    mesh: int
    metrics: int
    refused: list[tuple[str, str]] = field(default_factory=list)
    _shown: dict[bytes, list[str]] = field(default_factory=dict)

    # --- what curl does

    async def get(self, path: str, who: User | None = None) -> Answer:
        return await curl(self.url(path), *self._as(who))

    async def post(self, path: str, body: bytes | Mapping[str, object], who: User | None = None) -> Answer:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await curl(self.url(path), *self._as(who), body=raw)

    async def set_manifest(self, raw: bytes) -> None:
        answer = await self.post("/manifest", raw)
        assert answer.status == 200, answer.body

    async def manifest_refused(self, raw: bytes) -> str:
        """Why a manifest is not set."""
        answer = await self.post("/manifest", raw)
        assert answer.status == 400, answer.body
        return answer.message

    async def update(self, raw: bytes, who: User) -> None:
        """A whole manifest that needs no second user, or raised security versions."""
        answer = await self.post("/update", raw, who)
        assert answer.status == 200, answer.body

    async def metric(self, sample: str) -> float:
        """The value of one line of `/metrics`, given its name and labels; 0 if there is none."""
        text = (await curl(f"http://127.0.0.1:{self.metrics}/metrics")).body.decode()
        values = (line.rpartition(" ") for line in text.splitlines())
        return next((float(value) for name, _, value in values if name == sample), 0.0)

    async def events(self) -> object:
        return (await curl(f"http://127.0.0.1:{self.metrics}/events")).json

    def url(self, path: str) -> str:
        return f"https://127.0.0.1:{self.client}{path}"

    # --- what a Marble does

    def quote(self, who: MarbleCredentials | None = None, code: SimulatedEnclave | SimulatedTd = APP) -> bytes:
        """Of this code on the Coordinator's simulated platform, for this Marble's certificate."""
        return (who or somebody()).quote(self.bench.platform.issuer(code))

    async def activate(
        self,
        marble_type: str = "web",
        uuid: str = UUID,
        *,
        who: MarbleCredentials | None = None,
        quote: bytes | None = None,
        code: SimulatedEnclave | SimulatedTd = APP,
    ) -> Parameters:
        """One call on a connection of its own; a good quote unless told otherwise. Raises GRPCError."""
        who = who or somebody()
        sent = self.quote(who, code) if quote is None else quote
        return await activate("127.0.0.1", self.mesh, who, sent, marble_type, uuid)

    async def refusal(self, marble_type: str = "web", uuid: str = UUID, **changes: object) -> Refusal:
        """How an activation is refused."""
        with pytest.raises(GRPCError) as caught:
            await self.activate(marble_type, uuid, **changes)  # type: ignore[arg-type]
        return Refusal(caught.value.status, caught.value.message or "")

    # --- what the CA is

    @property
    def root(self) -> bytes:
        return pem_of(self.bench.coordinator.ca.root)

    @property
    def intermediate(self) -> bytes:
        return pem_of(self.bench.coordinator.ca.intermediate)

    @property
    def marble_root(self) -> bytes:
        return pem_of(self.bench.coordinator.ca.marble_root)

    def _as(self, who: User | None) -> list[str]:
        if who is None:
            return []
        if who.certificate not in self._shown:
            self._shown[who.certificate] = shown(self.directory, who.certificate, who.key)
        return self._shown[who.certificate]


@asynccontextmanager
async def deployed(bench: Bench, directory: Path, xds: XdsView | None = None) -> AsyncIterator[MarbleDeployment]:
    """Serve this Coordinator on free ports of loopback until the block ends. `xds`: whose clients it can tell of."""
    refused: list[tuple[str, str]] = []

    def hears(port: str) -> Callable[[str, str], None]:
        return lambda _peer, reason: refused.append((port, reason))

    def number(listener: socket.socket) -> int:
        return int(listener.getsockname()[1])

    client, mesh, metrics = (socket.create_server(("127.0.0.1", 0)) for _ in range(3))
    public = PublicPorts(bench.coordinator, bench.metrics, hears, xds)
    listener = MetricsListener(bench.metrics, bench.events)
    await bench.own_quote.start()
    await public.start(client, mesh)
    await listener.start(metrics)
    try:
        yield MarbleDeployment(bench, directory, number(client), number(mesh), number(metrics), refused)
    finally:
        await public.stop(1)
        await listener.stop()
        await bench.coordinator.close()
        bench.own_quote.stop()


@asynccontextmanager
async def waiting(machine: Path, directory: Path) -> AsyncIterator[MarbleDeployment]:
    """One for manifests that are refused, whose simulated platform is in `machine`: none of them may be in force at
    the end."""
    async with deployed(Bench.make(machine), directory) as made:
        yield made
        assert (await made.get("/api/v2/status")).data["code"] == 2


def web(**parameters: object) -> dict[str, object]:
    """The Marbles of a manifest with one type, `web`, that has these parameters."""
    return {"web": {"Package": "app", "Parameters": parameters}}


def owned(**members: object) -> bytes:
    """A manifest in which alice may do everything: read and write secrets, raise versions, update."""
    secrets = members.get("Secrets") or {}
    assert isinstance(secrets, dict)
    readable = [name for name, secret in secrets.items() if secret.get("Shared") or secret.get("UserDefined")]
    writable = [name for name, secret in secrets.items() if secret.get("UserDefined")]
    roles = {
        "packages": {"ResourceType": "Packages", "ResourceNames": ["app"], "Actions": ["UpdateSecurityVersion"]},
        "manifest": {"ResourceType": "Manifest", "Actions": ["UpdateManifest"]},
        "reader": {"ResourceType": "Secrets", "ResourceNames": readable, "Actions": ["ReadSecret"]},
        "writer": {"ResourceType": "Secrets", "ResourceNames": writable, "Actions": ["WriteSecret"]},
    }
    users = {"alice": {"Certificate": user("alice").certificate.decode(), "Roles": list(roles)}}
    return manifest(**({"Packages": {"app": PACKAGE}, "Users": users, "Roles": roles} | members))
