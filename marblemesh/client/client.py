# SPDX-License-Identifier: Apache-2.0
"""A data owner's or operator's view of a Coordinator.

    client = await Client.attested("coordinator:4433", appraiser, policy)     # proven, then pinned
    fingerprint = (await client.manifest()).fingerprint

Trust comes first and in one of three ways: `attested` (its quote proves code and root certificate), `Client(address,
root=…)` (a root certificate that was attested before), `unverified` (whoever answers; for trying things out). After
that every request goes to the holder of exactly that root certificate.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from marblemesh.client.errors import BadAnswer, ClientError, NotTrusted
from marblemesh.client.pin import read_pin
from marblemesh.client.transport import Transport, check_address, explain, printable
from sds.attestation.appraiser import Appraiser
from sds.attestation.coordinator import CoordinatorStatement, attest_coordinator, fetch_unverified
from sds.attestation.errors import AttestationError, CoordinatorUnavailable
from sds.attestation.policy import Policy

DEFAULT_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Status:
    """The Coordinator's state: 1 recovery, 2 waits for a manifest, 3 accepts Marbles."""

    code: int
    message: str


@dataclass(frozen=True, slots=True)
class ManifestStatement:
    """The manifest in force. `fingerprint` is the hex SHA-256 of `raw`; the root's signature over it was verified."""

    raw: bytes = field(repr=False)
    fingerprint: str
    signature: bytes = field(repr=False)


class Client:
    """Talks to the client API of one Coordinator whose root certificate is known."""

    def __init__(
        self,
        address: str,
        *,
        root: bytes | x509.Certificate,
        timeout: float = DEFAULT_TIMEOUT,
        statement: CoordinatorStatement | None = None,
    ) -> None:
        """`address` is host:port; `root` the pinned root certificate (PEM, also after others as in a chain file), for
        example from an earlier `statement.chain_pem`; `timeout` in seconds for one request.

        Raises AddressError, or NotTrusted if `root` holds no root certificate.
        """
        check_address(address)
        certificate = root if isinstance(root, x509.Certificate) else read_pin(root)
        self._transport = Transport(address, certificate, timeout)
        self._statement = statement

    @classmethod
    async def attested(
        cls,
        address: str,
        appraiser: Appraiser,
        policy: Policy,
        *,
        nonce: bytes | None = None,
        timeout: float = DEFAULT_TIMEOUT,  # noqa: ASYNC109 - of every later request too
    ) -> Client:
        """A client of the Coordinator at `address`, once its quote has proven that `policy` allows it.

        `nonce` (at most 64 bytes) makes the quote fresh; by default it is random. Raises AddressError, Unreachable,
        or NotTrusted with the check that failed.
        """
        check_address(address)
        try:
            statement = await attest_coordinator(address, appraiser, policy, nonce, timeout)
        except AttestationError as error:
            raise _translated(address, error, timeout) from error
        return cls(address, root=statement.root, timeout=timeout, statement=statement)

    @classmethod
    async def unverified(
        cls,
        address: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,  # noqa: ASYNC109 - of every later request too
    ) -> Client:
        """A client of whoever answers at `address` now; it cannot be exchanged later, but nothing is proven."""
        check_address(address)
        try:
            statement = await fetch_unverified(address, timeout)
        except AttestationError as error:
            raise _translated(address, error, timeout) from error
        return cls(address, root=statement.root, timeout=timeout, statement=statement)

    @property
    def root(self) -> x509.Certificate:
        return self._transport.root

    @property
    def statement(self) -> CoordinatorStatement | None:
        """What the Coordinator said (and, if `claims` is set, proved) when this client was made; None if pinned."""
        return self._statement

    async def status(self) -> Status:
        """What the Coordinator is doing."""
        answer = await self._transport.request("GET", "/api/v2/status")
        code = answer.member("code")
        if not isinstance(code, int) or isinstance(code, bool):
            raise BadAnswer(f"{answer.request}: the answer has no status code")
        return Status(code, printable(answer.text("message")))

    async def manifest(self) -> ManifestStatement:
        """The manifest in force; its fingerprint and the root key's signature have been checked.

        Raises RequestRefused if none is set.
        """
        answer = await self._transport.request("GET", "/api/v2/manifest")
        raw = _base64(answer.text("manifest"), answer.request)
        signature = _base64(answer.text("manifestSignatureRootECDSA"), answer.request)
        fingerprint = hashlib.sha256(raw).hexdigest()
        stated = answer.text("manifestFingerprint").lower()
        if not hmac.compare_digest(stated.encode(), fingerprint.encode()):
            raise BadAnswer(f"{answer.request}: the fingerprint is not that of the manifest that came with it")
        _check_signature(self.root, raw, signature)
        return ManifestStatement(raw, fingerprint, signature)

    async def set_manifest(self, raw: bytes) -> Mapping[str, str]:
        """Set the manifest (JSON, byte for byte). Returns the recovery secrets by key name, each encrypted for its key
        and in base64; empty if the manifest names no recovery keys.

        Raises RequestRefused with the Coordinator's reason: one is set already, or it is not acceptable.
        """
        body = {"manifest": base64.b64encode(raw).decode()}
        answer = await self._transport.request("POST", "/api/v2/manifest", body)
        secrets = answer.member("RecoverySecrets") if answer.data is not None else None
        if secrets is None:
            return {}
        if not isinstance(secrets, dict) or not all(isinstance(value, str) for value in secrets.values()):
            raise BadAnswer(f"{answer.request}: the recovery secrets are not a map of texts")
        return {str(name): str(value) for name, value in secrets.items()}


def _check_signature(root: x509.Certificate, raw: bytes, signature: bytes) -> None:
    """The root key signs SHA-256 of the raw manifest (a P-384 key with SHA-256, as MarbleRun does)."""
    key = root.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise BadAnswer("the Coordinator's root key is no ECDSA key, so it cannot have signed the manifest")
    try:
        key.verify(signature, raw, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise BadAnswer("the manifest is not signed by the Coordinator's root key") from None


def _base64(text: str, request: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise BadAnswer(f"{request}: the answer holds invalid base64") from None


def _translated(address: str, error: AttestationError, timeout: float) -> ClientError:
    if not isinstance(error, CoordinatorUnavailable):
        return NotTrusted(f"the Coordinator at {address} is not trusted: {printable(str(error), 2000)}")
    if error.__cause__ is not None:
        return explain(address, error.__cause__, timeout)
    return BadAnswer(printable(str(error)))
