# SPDX-License-Identifier: Apache-2.0
"""Those who use the Coordinator: its operators over HTTPS, its Marbles over gRPC, and what all of them can see of it.

Independent clients: aiohttp and grpclib over the standard library's TLS.
"""

from __future__ import annotations

import base64
import json
import ssl
import tempfile
import uuid as uuids
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import aiohttp
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from grpclib import GRPCError, Status
from grpclib.exceptions import StreamTerminatedError

from sds.attestation.simulated import SIMULATED_SIGNER, SimulatedEnclave, SimulatedPlatform
from tests.crash.launch import Process
from tests.crash.verdict import Failed, View
from tests.kit.marble_client import MarbleCredentials, activate
from tests.kit.records import owners
from tests.kit.users import user

# As high as a security version can be: package updates raise what the manifest wants.
APP = SimulatedEnclave(
    SimulatedEnclave.default("app").unique_id, SIMULATED_SIGNER, product_id=7, security_version=65535
)
UNLIMITED = "counting"
COUNTER = "c"
SECRETS = ("key", "cert", "mine")
SERVING = 3


class Died(Exception):
    """The connection ended without an answer."""


class Refused(Exception):
    """The Coordinator answered, but not as asked."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        super().__init__(f"{status}: {text}")


@dataclass
class People:
    """What they have, and the Coordinator does not: keys, and what it gave to them. One set for a whole test."""

    marble: MarbleCredentials = field(default_factory=MarbleCredentials.make)
    instance: str = field(default_factory=lambda: str(uuids.uuid4()))
    recovery: bytes = b""
    _tls: dict[str, ssl.SSLContext] = field(default_factory=dict)

    def tls(self, name: str) -> ssl.SSLContext:
        """As a user of the manifest."""
        if name not in self._tls:
            self._tls[name] = shown(user(name).key + user(name).certificate)
        return self._tls[name]

    def keep_recovery_secret(self, encrypted: str) -> None:
        self.recovery = owners(2)[0].decrypt(base64.b64decode(encrypted))


class Machine:
    """A simulated machine, on which both a Coordinator and the Marble run."""

    def __init__(self, directory: Path, people: People) -> None:
        self.directory = directory
        platform = SimulatedPlatform.open(directory, datetime.now(UTC))
        self.quote = people.marble.quote(platform.issuer(APP))


class Visit:
    """Everything that they ask of one Coordinator. Methods raise Died and Refused."""

    def __init__(self, process: Process, machine: Machine, people: People) -> None:
        self.people = people
        self._quote = machine.quote
        self._client, self._mesh = process.port("client"), process.port("mesh")
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    # --- as an operator

    async def get(self, path: str, who: str = "alice") -> Any:
        """`data` of the reply."""
        return await self._request("GET", path, None, self.people.tls(who))

    async def post(self, path: str, body: Mapping[str, object], who: str = "alice") -> Any:
        """`data` of the reply."""
        return await self._request("POST", path, body, self.people.tls(who))

    async def _request(self, method: str, path: str, body: Mapping[str, object] | None, tls: ssl.SSLContext) -> Any:
        url = f"https://127.0.0.1:{self._client}{path}"
        try:
            async with self._session.request(method, url, json=body, ssl=tls) as reply:
                answer = json.loads(await reply.read())
        except aiohttp.ClientError as e:
            raise Died(f"{method} {path}: {e}") from e
        if reply.status != 200:
            raise Refused(reply.status, answer["message"])
        return answer["data"]

    # --- as a Marble

    async def activate(self, marble_type: str, instance: str | None = None) -> dict[str, bytes]:
        """The environment that it is given."""
        people = self.people
        try:
            parameters = await activate(
                "127.0.0.1", self._mesh, people.marble, self._quote, marble_type, instance, within=20
            )
        except GRPCError as e:
            raise Refused(e.status.value, e.message or "") from e
        except (StreamTerminatedError, OSError) as e:
            raise Died(f"activation: {e}") from e
        return dict(parameters.env)

    async def count(self, value: int) -> int:
        """The counter of the one instance raised to `value`; what it was before."""
        tls = await self._as_instance()
        answer = await self._request("POST", "/api/v2/monotonic-counter", {"name": COUNTER, "value": value}, tls)
        return int(answer["value"])

    async def left(self, marble_type: str, at_most: int = 5) -> int:
        """How many more instances of a type may be activated; afterwards none."""
        for number in range(at_most + 1):
            try:
                await self.activate(marble_type)
            except Refused as e:
                if "reached max activations count" not in str(e) or e.status != Status.PERMISSION_DENIED.value:
                    raise
                return number
        raise AssertionError(f"{marble_type} could be activated more than {at_most} times")

    async def _as_instance(self) -> ssl.SSLContext:
        """It activates before each use of the counter: an update replaces the root that the counter wants to see."""
        given = await self.activate(UNLIMITED, self.people.instance)
        return shown(given["MARBLE_PREDEFINED_PRIVATE_KEY"] + given["MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"])

    # --- what can be seen

    async def chain(self) -> tuple[bytes, bytes]:
        """Intermediate and root, PEM."""
        text = (await self.get("/api/v2/quote"))["cert"].encode()
        middle = text.index(b"-----BEGIN", 1)
        return text[:middle], text[middle:]

    async def view(self) -> View:
        """All of the state that the API shows; raises Failed if its parts do not belong to each other."""
        status = (await self.get("/api/v2/status"))["code"]
        if status != SERVING:
            return {"status": status}
        intermediate, root = await self.chain()
        manifest = await self.get("/api/v2/manifest")
        raw = base64.b64decode(manifest["manifest"])
        log = [json.loads(line) for line in (await self.get("/api/v2/update"))["updateLog"]]
        secrets = (await self.get(f"/api/v2/secrets?{'&'.join(f's={name}' for name in SECRETS)}"))["secrets"]
        _belong_together(intermediate, root, raw, manifest["manifestSignatureRootECDSA"], secrets["cert"]["Cert"])
        return {
            "status": status,
            "root": root,
            "intermediate": intermediate,
            "manifest": raw,
            "log": tuple(json.dumps({k: v for k, v in entry.items() if k != "time"}) for entry in log),
            "pending": await self._pending(),
            "counter": await self.count(0),
            **{f"secret {name}": json.dumps(secrets[name]) for name in SECRETS},
        }

    async def _pending(self) -> object:
        try:
            pending = await self.get("/api/v2/update-manifest")
        except Refused as e:
            if e.status != 404:
                raise
            return None
        return base64.b64decode(pending["manifest"]), tuple(pending["missingUsers"] or ())


def _belong_together(intermediate: bytes, root: bytes, manifest: bytes, signature: str, secret: str) -> None:
    """Chain, manifest and generated secrets are of one commit; raises Failed."""
    ca, top = x509.load_pem_x509_certificate(intermediate), x509.load_pem_x509_certificate(root)
    key = top.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    try:
        ca.verify_directly_issued_by(top)
        key.verify(base64.b64decode(signature), manifest, ec.ECDSA(SHA256()))
        x509.load_der_x509_certificate(base64.b64decode(secret)).verify_directly_issued_by(ca)
    except (InvalidSignature, ValueError) as e:
        raise Failed("half a commit: chain, manifest and generated secrets do not belong to each other") from e


def shown(pem: bytes) -> ssl.SSLContext:
    """A client that shows this key and chain, and verifies nothing: whom it talks to is seen in the chain."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "client.pem"
        path.write_bytes(pem)
        context.load_cert_chain(path)
    return context
