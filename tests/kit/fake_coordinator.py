# SPDX-License-Identifier: Apache-2.0
"""A Coordinator's client API with knobs for lying: real TLS, real certificates, real (simulated) quotes.

What users of the manifest may call is in fake_users.py and fake_xds.py, recovery and feature gates in fake_features.py.
"""

from __future__ import annotations

import base64
import hashlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from sds.attestation.report_data import coordinator_report_data
from sds.attestation.simulated import SIMULATED_SIGNER, SimulatedEnclave, SimulatedPlatform
from sds.ca import CertificateAuthority
from tests.kit.fake_envelope import Refusal, Route, error, refused, success
from tests.kit.fake_features import FakeFeatures, FakeRecovery
from tests.kit.fake_users import FakeUsers
from tests.kit.fake_xds import FakeXds
from xds_server.tls_connection import TlsFrontConfig
from xds_server.tls_context import ServerCredential
from xds_server.tls_front import TlsFront

COORDINATOR = SimulatedEnclave(
    SimulatedEnclave.default("coordinator").unique_id, SIMULATED_SIGNER, product_id=3, security_version=3
)


@dataclass
class FakeCoordinator:
    """Answers as a Coordinator does; each knob makes one thing wrong."""

    directory: Path
    enclave: SimulatedEnclave = COORDINATOR
    manifest: bytes | None = None
    recovery_secrets: dict[str, str] = field(default_factory=dict)
    without_quote: bool = False
    replayed_quote: bool = False
    """Ignores the nonce, as whoever replays an old quote must."""
    born: datetime = field(default_factory=lambda: datetime.now(UTC))
    signed_instead: bytes | None = None
    stated_fingerprint: str | None = None
    raw_answer: bytes | None = None
    v1_only: bool = False
    """Knows version 1 of the API only, but for the quote."""
    posts: list[bytes] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """Method and path of every request."""
    address: str = ""
    users: FakeUsers = field(default_factory=FakeUsers)
    recovery: FakeRecovery = field(default_factory=FakeRecovery)
    features: FakeFeatures = field(default_factory=FakeFeatures)
    xds: FakeXds = field(default_factory=FakeXds)

    def __post_init__(self) -> None:
        self.platform = SimulatedPlatform.open(self.directory / "platform", datetime.now(UTC))
        self.ca = CertificateAuthority.create(["localhost"], [], self.born)

    def start_anew(self) -> None:
        """What a restart without sealed state does: another root, no manifest."""
        self.ca, self.manifest = CertificateAuthority.create(["localhost"], [], self.born), None

    @asynccontextmanager
    async def serving(self, presented: CertificateAuthority | None = None) -> AsyncIterator[FakeCoordinator]:
        """Serve on a free port; `presented` shows another certificate in TLS than the one that the quote binds."""
        app = web.Application(client_max_size=32 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app)
        await runner.setup()
        assert runner.server is not None
        server = runner.server
        ca = presented or self.ca
        credential = ServerCredential((ca.root,), ca.root_key.load())
        front = TlsFront(
            TlsFrontConfig(alpn=(b"http/1.1",)), lambda: credential, lambda _: server(), lambda _peer, _reason: None
        )
        listener = socket.create_server(("127.0.0.1", 0))
        await front.start(listener)
        try:
            self.address = f"127.0.0.1:{listener.getsockname()[1]}"
            yield self
        finally:
            await front.stop(0)
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.path}")
        if self.raw_answer is not None:
            return web.Response(body=self.raw_answer)
        handler = self._routes().get((request.method, request.path))
        hidden = self.v1_only and request.path.startswith("/api/v2/") and request.path != "/api/v2/quote"
        if handler is None or hidden:
            return error(405, "")
        try:
            return success(await handler(request))
        except Refusal as refusal:
            return refused(refusal)

    def _routes(self) -> dict[Route, Callable[[web.Request], Awaitable[object]]]:
        own: dict[Route, Callable[[web.Request], Awaitable[object]]] = {
            ("GET", "/api/v2/quote"): self._quote,
            ("GET", "/api/v2/status"): self._status,
            ("GET", "/status"): self._status_v1,
            ("GET", "/api/v2/manifest"): self._get_manifest,
            ("GET", "/manifest"): self._get_manifest_v1,
            ("POST", "/api/v2/manifest"): self._set_manifest,
            ("POST", "/manifest"): self._set_manifest_v1,
        }
        users = self.users.routes() | self.xds.routes(self.users)
        return own | users | self.recovery.routes() | self.features.routes(self.ca)

    async def _quote(self, request: web.Request) -> object:
        nonce = base64.urlsafe_b64decode(request.query.get("nonce", ""))
        report_data = coordinator_report_data(self.ca.root_der, b"" if self.replayed_quote else nonce)
        quote = self.platform.issuer(self.enclave).issue(report_data).to_wire()
        stated = None if self.without_quote else base64.b64encode(quote).decode()
        return {"cert": self.ca.chain_pem.decode(), "quote": stated}

    async def _status(self, request: web.Request) -> dict[str, object]:
        if self.recovery.needed:
            return {"code": 1, "message": "Coordinator is in recovery mode."}
        if self.manifest is None:
            return {"code": 2, "message": "Coordinator is ready to accept a manifest."}
        return {"code": 3, "message": "Coordinator is running correctly and ready to accept marbles."}

    async def _status_v1(self, request: web.Request) -> object:
        status = await self._status(request)
        return {"StatusCode": status["code"], "StatusMessage": status["message"]}

    async def _get_manifest(self, request: web.Request) -> object:
        if self.manifest is None:
            raise Refusal(500, "requested value not set")
        return {
            "manifestSignatureRootECDSA": self._signature(self.manifest),
            "manifestFingerprint": self.stated_fingerprint or hashlib.sha256(self.manifest).hexdigest(),
            "manifest": base64.b64encode(self.manifest).decode(),
        }

    async def _get_manifest_v1(self, request: web.Request) -> object:
        if self.manifest is None:
            return {"ManifestSignatureRootECDSA": None, "ManifestSignature": "", "Manifest": None}
        return {
            "ManifestSignatureRootECDSA": self._signature(self.manifest),
            "ManifestSignature": hashlib.sha256(self.manifest).hexdigest(),
            "Manifest": base64.b64encode(self.manifest).decode(),
        }

    def _signature(self, raw: bytes) -> str:
        key = self.ca.root_key.load()
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return base64.b64encode(key.sign(self.signed_instead or raw, ec.ECDSA(hashes.SHA256()))).decode()

    async def _set_manifest(self, request: web.Request) -> object:
        self._accept(base64.b64decode((await request.json())["manifest"]), 500)
        return {"RecoverySecrets": self.recovery_secrets}

    async def _set_manifest_v1(self, request: web.Request) -> object:
        self._accept(await request.read(), 400)
        return {"RecoverySecrets": self.recovery_secrets} if self.recovery_secrets else None

    def _accept(self, raw: bytes, status: int) -> None:
        self.posts.append(raw)
        if self.manifest is not None:
            raise Refusal(status, "server is not in expected state")
        self.manifest = raw
