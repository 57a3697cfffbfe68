# SPDX-License-Identifier: Apache-2.0
"""Is this the Coordinator that was meant? Its quote against the era config, its manifest against a fingerprint.

    GET /api/v2/quote     quote over the root certificate: the era config's code made it, and it signed the intermediate
    GET /api/v2/manifest  read from the holder of that root's key; its SHA-256 is the fingerprint
    Marble API            must then show the intermediate's key (checked in the handshake by `activation_client`)

Without this a Marble gives itself into the hands of whoever answers: nobody else's secrets are at risk then (the peers
verify *us*), but our own app would run with a stranger's parameters.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Any

import aiohttp
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from enclave_proxy.activation_client import public_key_bytes
from enclave_proxy.config import HostPort
from enclave_proxy.errors import ActivationUnavailable, CoordinatorNotTrusted
from sds.attestation.appraiser import Appraiser
from sds.attestation.coordinator import attest_coordinator
from sds.attestation.errors import AttestationError, CollateralUnavailable, CoordinatorUnavailable
from sds.attestation.policy import Policy

TIMEOUT = 10.0
# A manifest of 1000 Marbles is 1 MB; base64 adds a third.
MAX_MANIFEST_REPLY = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class CoordinatorPin:
    """What the Coordinator behind `address` (its client API) must be."""

    address: HostPort
    appraiser: Appraiser
    policy: Policy
    fingerprint: str | None

    async def check(self) -> bytes:
        """Attest the Coordinator; gives the key (SubjectPublicKeyInfo DER) that its Marble API must have.

        Raises CoordinatorNotTrusted (final), or ActivationUnavailable if nobody answers or no manifest is set yet.
        """
        try:
            statement = await attest_coordinator(str(self.address), self.appraiser, self.policy, timeout=TIMEOUT)
        except (CoordinatorUnavailable, CollateralUnavailable) as error:
            raise ActivationUnavailable(f"cannot attest the Coordinator at {self.address}: {error}") from error
        except AttestationError as error:
            raise CoordinatorNotTrusted(
                f"the Coordinator at {self.address} does not match the era config: {error}"
            ) from error
        if self.fingerprint is not None:
            check_manifest(await self._manifest(statement.root), statement.root, self.fingerprint)
        return public_key_bytes(statement.intermediate)

    async def _manifest(self, root: x509.Certificate) -> dict[str, Any]:
        # The client API serves the root certificate itself: comparing it makes this the attested Coordinator's own and
        # present word, not a recording of what it signed before an update.
        pinned = aiohttp.Fingerprint(hashlib.sha256(root.public_bytes(Encoding.DER)).digest())
        url = f"https://{self.address}/api/v2/manifest"
        try:
            async with (
                asyncio.timeout(TIMEOUT),
                aiohttp.ClientSession() as session,
                session.get(url, ssl=pinned, allow_redirects=False) as reply,
            ):
                body = await reply.content.read(MAX_MANIFEST_REPLY + 1)
                status = reply.status
        except aiohttp.ServerFingerprintMismatch as error:
            raise CoordinatorNotTrusted(f"{url} does not show the attested root certificate") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ActivationUnavailable(f"no answer from {url}: {str(error) or type(error).__name__}") from error
        if status != 200:
            raise ActivationUnavailable(f"the Coordinator at {self.address} has no manifest yet (HTTP {status})")
        return _data(body, url)


def _data(body: bytes, url: str) -> dict[str, Any]:
    if len(body) > MAX_MANIFEST_REPLY:
        raise CoordinatorNotTrusted(f"{url} answers more than {MAX_MANIFEST_REPLY} bytes")
    try:
        data = json.loads(body)["data"]
        if not isinstance(data, dict):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CoordinatorNotTrusted(f"{url} does not answer as a Coordinator does") from error
    return data


def check_manifest(data: dict[str, Any], root: x509.Certificate, fingerprint: str) -> None:
    """Raise CoordinatorNotTrusted unless the root key signed the very manifest with this fingerprint (hex SHA-256)."""
    try:
        manifest = base64.b64decode(str(data["manifest"]), validate=True)
        signature = base64.b64decode(str(data["manifestSignatureRootECDSA"]), validate=True)
    except (KeyError, binascii.Error) as error:
        raise CoordinatorNotTrusted("the Coordinator's manifest reply lacks manifest or signature") from error
    key = root.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise CoordinatorNotTrusted("the Coordinator's root key is not an elliptic-curve key")
    try:
        key.verify(signature, manifest, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise CoordinatorNotTrusted("the manifest is not signed by the attested root key") from error
    actual = hashlib.sha256(manifest).hexdigest()
    if not hmac.compare_digest(actual, fingerprint):
        raise CoordinatorNotTrusted(
            f"the Coordinator's manifest has fingerprint {actual}, expected {fingerprint}: "
            "it runs another manifest than the one pinned"
        )
