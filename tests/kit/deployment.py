# SPDX-License-Identifier: Apache-2.0
"""A whole deployment for the conformance of the client API: a real Coordinator with users behind real TLS, and curl."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.kit.client_api import Answer, ApiPort, client_api, curl, shown
from tests.kit.coordinator import Bench, manifest
from tests.kit.users import User, user

ERROR = "text/plain; charset=utf-8"
JSON = "application/json"
SECRETS = {
    "key": {"Type": "symmetric-key", "Size": 128, "Shared": True},
    "cert": {"Type": "cert-ecdsa", "Size": 256, "Shared": True, "ValidFor": 7},
    "mine": {"Type": "plain", "UserDefined": True},
    "<&>": {"Type": "symmetric-key", "Size": 128, "UserDefined": True},
    "crt": {"Type": "cert-ecdsa", "Size": 256, "UserDefined": True},
    "hidden": {"Type": "plain", "UserDefined": True},
}
READABLE = [name for name in SECRETS if name != "hidden"]
WRITABLE = ["mine", "<&>", "crt"]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def whole(**members: object) -> bytes:
    """A manifest with users: alice may do everything but touch `hidden`, bob may update the manifest, carol nothing."""
    users = {
        "alice": {
            "Certificate": user("alice").certificate.decode(),
            "Roles": ["reader", "writer", "packages", "manifest"],
        },
        "bob": {"Certificate": user("bob").certificate.decode(), "Roles": ["manifest"]},
        "carol": {"Certificate": user("carol").certificate.decode(), "Roles": []},
    }
    roles = {
        "reader": {"ResourceType": "Secrets", "ResourceNames": READABLE, "Actions": ["ReadSecret"]},
        "writer": {"ResourceType": "Secrets", "ResourceNames": WRITABLE, "Actions": ["WriteSecret"]},
        "packages": {"ResourceType": "Packages", "ResourceNames": ["app"], "Actions": ["UpdateSecurityVersion"]},
        "manifest": {"ResourceType": "Manifest", "Actions": ["UpdateManifest"]},
    }
    gates = {"FeatureGates": ["SignQuoteEndpoint", "MonotonicCounter"]}
    return manifest(**({"Users": users, "Roles": roles, "Secrets": SECRETS, "Config": gates} | members))


@dataclass
class Api:
    """One deployment and its clients, over one version of HTTP."""

    bench: Bench
    port: ApiPort
    version: str
    directory: Path
    _files: dict[bytes, list[str]] = field(default_factory=dict)

    async def get(self, path: str, who: User | None = None) -> Answer:
        return await curl(self.port.url(path), self.version, *self._as(who))

    async def post(self, path: str, body: bytes | Mapping[str, object], who: User | None = None) -> Answer:
        return await self.port.post(path, body, self.version, *self._as(who))

    async def ask(self, path: str, method: str) -> Answer:
        return await curl(self.port.url(path), self.version, "-X", method)

    async def set_manifest(self, raw: bytes) -> None:
        assert (await self.post("/manifest", raw)).status == 200

    def _as(self, who: User | None) -> list[str]:
        if who is None:
            return []
        if who.certificate not in self._files:
            self._files[who.certificate] = shown(self.directory, who.certificate, who.key)
        return self._files[who.certificate]


@dataclass
class World:
    """Makes deployments that end with the test."""

    stack: AsyncExitStack
    platform: Path
    directory: Path
    version: str

    async def serve(self, bench: Bench) -> Api:
        await bench.own_quote.start()
        self.stack.callback(bench.own_quote.stop)
        port = await self.stack.enter_async_context(client_api(bench.coordinator))
        self.stack.push_async_callback(bench.coordinator.close)
        return Api(bench, port, self.version, self.directory)
