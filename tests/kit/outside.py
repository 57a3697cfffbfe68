# SPDX-License-Identifier: Apache-2.0
"""A Coordinator as all others meet it: two TLS ports on loopback, and nothing else of it.

Operators and users come with curl: version 2 of the API over HTTP/2, version 1 over HTTP/1.1. Marbles come with a
self-signed certificate and one gRPC call. So the same test can ask a Coordinator of this process or of another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpclib import GRPCError

from sds.attestation.simulated import SimulatedEnclave, SimulatedPlatform
from sds.wire.marble_pb2 import Parameters
from tests.kit.client_api import HTTP1, HTTP2, Answer, curl, shown
from tests.kit.coordinator import APP
from tests.kit.deployment import b64
from tests.kit.marble_client import MarbleCredentials, activate
from tests.kit.openssl_judge import certificates, s_client
from tests.kit.users import User, user

UUID = "0a1b2c3d-4e5f-4a5b-8c7d-8e9fa0b1c2d3"
CHAIN, KEY = "MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN", "MARBLE_PREDEFINED_PRIVATE_KEY"
MARBLE_ROOT, ROOT = "MARBLE_PREDEFINED_ROOT_CA", "MARBLE_PREDEFINED_COORDINATOR_ROOT_CA"

Who = str | User | None


@dataclass
class Outside:
    """Ports and what clients need: a directory for curl's files, the machine whose enclaves make quotes."""

    client_port: int
    mesh_port: int
    directory: Path
    platform: SimulatedPlatform
    _files: dict[bytes, list[str]] = field(default_factory=dict)

    # --- client API

    async def get(self, path: str, who: Who = None) -> Answer:
        return await curl(self._url(path), _version(path), *self._as(who))

    async def post(self, path: str, body: bytes | Mapping[str, object], who: Who = None) -> Answer:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await curl(self._url(path), _version(path), *self._as(who), body=raw)

    async def status(self) -> int:
        return int((await self.get("/api/v2/status")).data["code"])

    async def set_manifest(self, raw: bytes) -> Answer:
        return await self.post("/api/v2/manifest", {"manifest": b64(raw)})

    async def update(self, raw: bytes, who: Who = "alice") -> Answer:
        return await self.post("/api/v2/update", {"manifest": b64(raw)}, who)

    async def acknowledge(self, raw: bytes, who: Who) -> Answer:
        return await self.post("/api/v2/update-manifest", {"manifest": b64(raw)}, who)

    async def cancel(self, who: Who) -> Answer:
        return await self.post("/api/v2/update-cancel", b"", who)

    async def pending(self) -> Answer:
        return await self.get("/api/v2/update-manifest")

    async def log(self) -> list[dict[str, Any]]:
        """The update log's entries, members in their order."""
        return [json.loads(entry) for entry in (await self.get("/api/v2/update")).data["updateLog"]]

    async def secrets(self, *names: str, who: Who = "alice") -> dict[str, Any]:
        found: dict[str, Any] = (await self.get(f"/api/v2/secrets?{'&'.join(f's={n}' for n in names)}", who)).data
        return {name: found["secrets"][name] for name in names}

    async def recover(self, secret: bytes, signature: bytes) -> Answer:
        body = {"recoverySecret": b64(secret), "recoverySecretSignature": b64(signature)}
        return await self.post("/api/v2/recover", body)

    async def root(self) -> bytes:
        """The root certificate that `/quote` tells of, PEM."""
        return certificates((await self.get("/api/v2/quote")).data["cert"].encode())[1]

    async def count(self, env: Mapping[str, bytes], name: str, value: int) -> Answer:
        """A monotonic counter, raised by the Marble that got this environment."""
        marble = User(env[CHAIN], env[KEY], b"")
        return await self.post("/api/v2/monotonic-counter", {"name": name, "value": value}, marble)

    async def ca(self) -> tuple[bytes, bytes, bytes]:
        """Root and intermediate, as `/quote` tells of them, and the Marble root, as its port presents it; PEM."""
        chain: str = (await self.get("/api/v2/quote")).data["cert"]
        intermediate, root = certificates(chain.encode())
        somebody, file = user("somebody"), self.directory / "somebody.pem"
        file.write_bytes(somebody.certificate + somebody.key)
        (marble_root,) = (await s_client(self.mesh_port, "-alpn", "h2", "-cert", str(file))).presented
        return root, intermediate, marble_root

    # --- Marble API

    async def activate(
        self, marble_type: str = "web", uuid: str = UUID, enclave: SimulatedEnclave = APP
    ) -> Mapping[str, bytes]:
        """A Marble's environment; raises GRPCError."""
        return dict((await self._activate(marble_type, uuid, enclave)).env)

    async def arguments(self, marble_type: str = "web") -> list[str]:
        """A Marble's Argv."""
        return list((await self._activate(marble_type, UUID, APP)).argv)

    async def refusal(self, marble_type: str = "web", uuid: str = UUID, enclave: SimulatedEnclave = APP) -> str:
        """Why a Marble gets nothing."""
        try:
            await self.activate(marble_type, uuid, enclave)
        except GRPCError as refused:
            return f"{refused.status.name}: {refused.message}"
        raise AssertionError(f"{marble_type} was activated")

    # --- inside

    async def _activate(self, marble_type: str, uuid: str, enclave: SimulatedEnclave) -> Parameters:
        who = MarbleCredentials.make()
        quote = who.quote(self.platform.issuer(enclave))
        return await activate("127.0.0.1", self.mesh_port, who, quote, marble_type, uuid)

    def _url(self, path: str) -> str:
        return f"https://127.0.0.1:{self.client_port}{path}"

    def _as(self, who: Who) -> list[str]:
        if who is None:
            return []
        one = user(who) if isinstance(who, str) else who
        if one.certificate not in self._files:
            self._files[one.certificate] = shown(self.directory, one.certificate, one.key)
        return self._files[one.certificate]


def _version(path: str) -> str:
    return HTTP2 if path.startswith("/api/v2/") else HTTP1
