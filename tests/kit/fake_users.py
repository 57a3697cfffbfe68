# SPDX-License-Identifier: Apache-2.0
"""The fake Coordinator's calls for users of the manifest: secrets, updates, the update log."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web

from tests.kit.fake_envelope import Refusal, Route
from xds_server.tls_connection import TlsTransport

Handler = Callable[[web.Request], Awaitable[object]]


@dataclass
class FakeUsers:
    """`certificates` (DER) are those of the users, by name; every user may do everything but what `forbidden` names."""

    certificates: dict[str, bytes] = field(default_factory=dict)
    forbidden: set[str] = field(default_factory=set)
    secrets: dict[str, dict[str, object]] = field(default_factory=dict)
    uploads: list[object] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    required: int = 1
    """Acknowledgements that a full update takes."""
    pending: bytes | None = None
    acknowledged: list[str] = field(default_factory=list)
    applied: list[bytes] = field(default_factory=list)
    recovery_secrets: dict[str, str] | None = None
    """What an update that changes the recovery keys gives out."""

    def routes(self) -> dict[Route, Handler]:
        return {
            ("GET", "/api/v2/update"): self._log,
            ("GET", "/update"): self._log_v1,
            ("POST", "/api/v2/update"): self._update,
            ("POST", "/update"): self._update_v1,
            ("GET", "/api/v2/update-manifest"): self._pending,
            ("GET", "/update-manifest"): self._pending,
            ("POST", "/api/v2/update-manifest"): self._acknowledge,
            ("POST", "/update-manifest"): self._acknowledge_v1,
            ("POST", "/api/v2/update-cancel"): self._cancel,
            ("POST", "/update-cancel"): self._cancel_v1,
            ("GET", "/api/v2/secrets"): self._read,
            ("GET", "/secrets"): self._read_v1,
            ("POST", "/api/v2/secrets"): self._write,
            ("POST", "/secrets"): self._write_v1,
        }

    def user(self, request: web.Request, *, v2: bool = True) -> str:
        """The user whose certificate this connection showed."""
        assert isinstance(request.transport, TlsTransport)
        der = request.transport.peer_certificate_der
        for name, certificate in self.certificates.items():
            if der == certificate:
                return name
        raise Refusal(401, "unauthorized user: client certificate did not match any MarbleRun users", fail=v2)

    async def _log(self, request: web.Request) -> object:
        return {"updateLog": self.log}

    async def _log_v1(self, request: web.Request) -> object:
        return "".join(entry + "\n" for entry in self.log)

    async def _update(self, request: web.Request) -> object:
        user = self.user(request)
        return self._started(user, base64.b64decode((await request.json())["manifest"]), 500)

    async def _update_v1(self, request: web.Request) -> object:
        user = self.user(request, v2=False)
        self._started(user, await request.read(), 400)
        return None

    def _started(self, user: str, raw: bytes, status: int) -> dict[str, object]:
        if self.pending is not None:
            text = "update already in progress. Acknowledge the update to apply it, or cancel it to start a new one"
            raise Refusal(status, text)
        if "UpdateManifest" in self.forbidden:
            raise Refusal(status, f"user {user} is not allowed to update the complete manifest")
        document = json.loads(raw)
        if list(document) == ["Packages"]:
            for name, package in document["Packages"].items():
                self.raised(user, name, package["SecurityVersion"])
            return {"missingAcknowledgments": 0, "missingUsers": None}
        self.pending, self.acknowledged = raw, [user]
        return self._standing()

    def raised(self, user: str, package: str, version: int) -> None:
        entry = {"time": "2026-01-02T03:04:05.000Z", "update": "SecurityVersion increased"}
        fields = {"user": user, "package": package, "new version": version}
        self.log.append(json.dumps(entry | fields, separators=(",", ":")))

    def _standing(self) -> dict[str, object]:
        missing = self.required - len(self.acknowledged)
        if missing > 0:
            return {"missingAcknowledgments": missing, "missingUsers": self._missing_users()}
        assert self.pending is not None
        self.applied.append(self.pending)
        self.pending = None
        answer: dict[str, object] = {"missingAcknowledgments": 0, "missingUsers": None}
        return answer if self.recovery_secrets is None else answer | {"recoverySecrets": self.recovery_secrets}

    def _missing_users(self) -> list[str]:
        return [name for name in self.certificates if name not in self.acknowledged]

    def _still(self) -> str:
        missing = self.required - len(self.acknowledged)
        who = "1 user still needs" if missing == 1 else f"{missing} users still need"
        return f"{who} to acknowledge the update manifest"

    def _pending_raw(self) -> bytes:
        if self.pending is None:
            raise Refusal(404, "no update in progress")
        return self.pending

    async def _pending(self, request: web.Request) -> object:
        raw = base64.b64encode(self._pending_raw()).decode()
        return {"manifest": raw, "message": self._still(), "missingUsers": self._missing_users()}

    async def _acknowledge(self, request: web.Request) -> object:
        user = self.user(request)
        return self._acknowledged(user, base64.b64decode((await request.json())["manifest"]))

    async def _acknowledge_v1(self, request: web.Request) -> object:
        user = self.user(request, v2=False)
        return self._acknowledged(user, await request.read())["message"]

    def _acknowledged(self, user: str, raw: bytes) -> dict[str, object]:
        if raw != self._pending_raw():
            raise Refusal(500, "provided manifest does not match the pending manifest")
        if user not in self.acknowledged:
            self.acknowledged.append(user)
        answer = self._standing()
        message = "All users have acknowledged the update manifest. Update successfully applied"
        if answer["missingAcknowledgments"]:
            names = ", ".join(self._missing_users())
            message = f"{self._still()}.\nThe following users have not yet accepted: {names}"
        return answer | {"message": message}

    async def _cancel(self, request: web.Request) -> object:
        return {"message": await self._cancel_v1(request)}

    async def _cancel_v1(self, request: web.Request) -> object:
        user = self.user(request)
        self._pending_raw()
        if "UpdateManifest" in self.forbidden:
            raise Refusal(500, f"user {user} is not allowed to cancel the manifest update")
        self.pending = None
        return "Update successfully cancelled"

    async def _read(self, request: web.Request) -> object:
        return {"secrets": self._wanted(request, v2=True)}

    async def _read_v1(self, request: web.Request) -> object:
        return self._wanted(request, v2=False)

    def _wanted(self, request: web.Request, *, v2: bool) -> dict[str, dict[str, object]]:
        user = self.user(request, v2=v2)
        names = request.query.getall("s", [])
        if not names:
            raise Refusal(400, "invalid query: endpoint requires at least one query parameter", fail=v2)
        if any(name in self.forbidden or name not in self.secrets for name in names):
            text = f"user {user} is not allowed to read one or more secrets of: [{' '.join(names)}]"
            raise Refusal(500 if v2 else 400, text)
        return {name: self.secrets[name] for name in names}

    async def _write(self, request: web.Request) -> object:
        self._written(self.user(request), (await request.json())["secrets"])
        return None

    async def _write_v1(self, request: web.Request) -> object:
        self._written(self.user(request, v2=False), await request.json())
        return None

    def _written(self, user: str, uploaded: dict[str, object]) -> None:
        for name in uploaded:
            if name not in self.secrets:
                text = "parsing new secrets: secret manifest specifies a secret which the original manifest does not"
                raise Refusal(500, f"{text} contain")
            if name in self.forbidden:
                raise Refusal(500, f"user {user} is not allowed to update secret: {name}")
        self.uploads.append(uploaded)
