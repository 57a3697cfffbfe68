# SPDX-License-Identifier: Apache-2.0
"""The fake Coordinator's recovery, signed quotes and monotonic counters."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sds.ca import CertificateAuthority
from tests.kit.fake_envelope import Refusal, Route
from xds_server.tls_connection import TlsTransport

Handler = Callable[[web.Request], Awaitable[object]]

OAEP = padding.OAEP(padding.MGF1(SHA256()), SHA256(), None)


@dataclass
class FakeRecovery:
    """Needs as many recovery secrets as it has `keys`, each signed by another one of them."""

    needed: bool = False
    keys: list[rsa.RSAPublicKey] = field(default_factory=list)
    secrets: list[bytes] = field(default_factory=list)
    """The plain ones that came."""
    ephemeral: rsa.RSAPrivateKey | None = None

    def routes(self) -> dict[Route, Handler]:
        return {
            ("POST", "/api/v2/recover"): self._recover,
            ("GET", "/api/v2/recover/public-key"): self._public_key,
            ("POST", "/recover"): self._recover_v1,
        }

    async def _recover(self, request: web.Request) -> object:
        body = await request.json()
        secret, signature = (base64.b64decode(body[n]) for n in ("recoverySecret", "recoverySecretSignature"))
        if not self.needed:
            raise Refusal(400, "failed to decrypt recovery secret: server is not in expected state", fail=True)
        if len(secret) not in (16, 32, 33):
            secret = self._decrypted(secret)
        self._check(secret, signature)
        self.secrets.append(secret)
        remaining = len(self.keys) - len(self.secrets)
        if remaining > 0:
            text = f"Secret was processed successfully. Upload the next secret. Remaining secrets: {remaining}"
            return {"remaining": remaining, "message": text}
        self.needed = False
        return {"remaining": 0, "message": "Recovery successful."}

    def _decrypted(self, secret: bytes) -> bytes:
        if self.ephemeral is None:
            raise Refusal(400, "failed to decrypt recovery secret: ephemeral secret key not set", fail=True)
        try:
            return self.ephemeral.decrypt(secret, OAEP)
        except ValueError:
            raise Refusal(400, "failed to decrypt recovery secret: crypto/rsa: decryption error", fail=True) from None

    def _check(self, secret: bytes, signature: bytes) -> None:
        for key in self.keys:
            try:
                key.verify(signature, secret, padding.PKCS1v15(), SHA256())
            except InvalidSignature:
                continue
            return
        raise Refusal(500, "no matching recovery public key found for recovery key")

    async def _public_key(self, request: web.Request) -> object:
        if not self.needed:
            raise Refusal(500, "server is not in expected state")
        self.ephemeral = self.ephemeral or rsa.generate_private_key(65537, 2048)
        der = self.ephemeral.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return {"algorithm": "RSA", "ephemeralPublicKey": base64.b64encode(der).decode()}

    async def _recover_v1(self, request: web.Request) -> object:
        raise Refusal(
            410,
            "Recovering the Coordinator using the /recover API endpoint has been disabled. "
            "Use the /api/v2/recover endpoint instead.",
        )


@dataclass
class FakeFeatures:
    """What feature gates allow."""

    sign_quote: bool = True
    monotonic_counter: bool = True
    tcb_status: str = "UpToDate"
    signed_instead: bytes | None = None
    counters: dict[str, int] = field(default_factory=dict)

    def routes(self, ca: CertificateAuthority) -> dict[Route, Handler]:
        async def sign(request: web.Request) -> object:
            return self._sign(ca, (await request.json())["sgxQuote"])

        return {("POST", "/api/v2/sign-quote"): sign, ("POST", "/api/v2/monotonic-counter"): self._count}

    def _sign(self, ca: CertificateAuthority, quote: str) -> object:
        if not self.sign_quote:
            raise Refusal(403, "SignQuoteEndpoint feature is not enabled in the manifest")
        if not quote:
            data = {"sgxQuote": "quote verification failed: empty report"}
            raise Refusal(400, "quote verification failed", fail=True, data=data)
        key = ca.root_key.load()
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        message = self.signed_instead or quote.encode() + self.tcb_status.encode()
        signature = key.sign(message, ec.ECDSA(SHA256()))
        return {"tcbStatus": self.tcb_status, "verificationSignature": base64.b64encode(signature).decode()}

    async def _count(self, request: web.Request) -> object:
        if not self.monotonic_counter:
            raise Refusal(403, "MonotonicCounter feature is not enabled in the manifest")
        assert isinstance(request.transport, TlsTransport)
        if request.transport.peer_certificate_der is None:
            raise Refusal(401, "unauthorized marble: no client certificate provided", fail=True)
        body = await request.json()
        before = self.counters.get(body["name"], 0)
        self.counters[body["name"]] = max(before, body["value"])
        return {"value": before}
