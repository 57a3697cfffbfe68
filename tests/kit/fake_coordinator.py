# SPDX-License-Identifier: Apache-2.0
"""A Coordinator's client API with knobs for lying: real TLS, real certificates, real (simulated) quotes."""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
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
    posts: list[bytes] = field(default_factory=list)
    address: str = ""

    def __post_init__(self) -> None:
        self.platform = SimulatedPlatform.open(self.directory / "platform", datetime.now(UTC))
        self.ca = CertificateAuthority.create(["localhost"], [], self.born)

    def start_anew(self) -> None:
        """What a restart without sealed state does: another root, no manifest."""
        self.ca, self.manifest = CertificateAuthority.create(["localhost"], [], self.born), None

    @asynccontextmanager
    async def serving(self, presented: CertificateAuthority | None = None) -> AsyncIterator[FakeCoordinator]:
        """Serve on a free port; `presented` shows another certificate in TLS than the one that the quote binds."""
        app = web.Application(middlewares=[self._canned])
        app.router.add_get("/api/v2/quote", self._quote)
        app.router.add_get("/api/v2/status", self._status)
        app.router.add_get("/api/v2/manifest", self._get_manifest)
        app.router.add_post("/api/v2/manifest", self._set_manifest)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self._tls(presented or self.ca))
            await site.start()
            self.address = f"127.0.0.1:{runner.addresses[0][1]}"
            yield self
        finally:
            await runner.cleanup()

    def _tls(self, ca: CertificateAuthority) -> ssl.SSLContext:
        pem = self.directory / "root.pem"
        pem.write_bytes(ca.chain_pem[ca.chain_pem.rindex(b"-----BEGIN") :] + ca.root_key.pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        return context

    @web.middleware
    async def _canned(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        return await handler(request) if self.raw_answer is None else web.Response(body=self.raw_answer)

    async def _quote(self, request: web.Request) -> web.Response:
        nonce = base64.urlsafe_b64decode(request.query.get("nonce", ""))
        report_data = coordinator_report_data(self.ca.root_der, b"" if self.replayed_quote else nonce)
        quote = self.platform.issuer(self.enclave).issue(report_data).to_wire()
        stated = None if self.without_quote else base64.b64encode(quote).decode()
        return _success({"cert": self.ca.chain_pem.decode(), "quote": stated})

    async def _status(self, request: web.Request) -> web.Response:
        if self.manifest is None:
            return _success({"code": 2, "message": "Coordinator is ready to accept a manifest."})
        return _success({"code": 3, "message": "Coordinator is running correctly and ready to accept marbles."})

    async def _get_manifest(self, request: web.Request) -> web.Response:
        if self.manifest is None:
            return _error(500, "requested value not set")
        key = self.ca.root_key.load()
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        signature = key.sign(self.signed_instead or self.manifest, ec.ECDSA(hashes.SHA256()))
        return _success(
            {
                "manifestSignatureRootECDSA": base64.b64encode(signature).decode(),
                "manifestFingerprint": self.stated_fingerprint or hashlib.sha256(self.manifest).hexdigest(),
                "manifest": base64.b64encode(self.manifest).decode(),
            }
        )

    async def _set_manifest(self, request: web.Request) -> web.Response:
        raw = base64.b64decode((await request.json())["manifest"])
        self.posts.append(raw)
        if self.manifest is not None:
            return _error(500, "server is not in expected state")
        self.manifest = raw
        return _success({"RecoverySecrets": self.recovery_secrets})


def _success(data: object) -> web.Response:
    return web.json_response({"status": "success", "data": data})


def _error(status: int, message: str) -> web.Response:
    body = json.dumps({"status": "error", "data": None, "message": message})
    return web.Response(status=status, text=body, content_type="text/plain")
