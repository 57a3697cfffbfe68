# SPDX-License-Identifier: Apache-2.0
"""A data owner's or operator's view of a Coordinator.

    client = await Client.attested("coordinator:4433", appraiser, policy)     # proven, then pinned
    fingerprint = (await client.manifest()).fingerprint

Trust comes first and in one of three ways: `attested` (its quote proves code and root certificate), `Client(address,
root=…)` (a root certificate that was attested before), `unverified` (whoever answers; for trying things out). After
that every request goes to the holder of exactly that root certificate.

Calls of the manifest's users need an `identity`: `identity_from_pem(certificate, key)`, or a `TokenIdentity` on a
PKCS#11 token. Requests go to version 2 of the API, and to version 1 if the Coordinator answers that it has no other.
Every call raises Unreachable, NotTrusted, RequestRefused (with the Coordinator's own message) or BadAnswer.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from marblemesh.client import calls_manifest, calls_more, calls_secrets, calls_xds
from marblemesh.client.answer import printable
from marblemesh.client.calls_manifest import ManifestStatement, PendingUpdate, UpdateResult
from marblemesh.client.calls_more import Recovery, SignedQuote, Status
from marblemesh.client.calls_secrets import NewSecret
from marblemesh.client.calls_xds import XdsDump, XdsStatus
from marblemesh.client.errors import BadAnswer, ClientError, NotTrusted
from marblemesh.client.identity import ClientIdentity
from marblemesh.client.pin import read_pin
from marblemesh.client.recovery import RecoveryKey, decrypt_recovery_data
from marblemesh.client.transport import Transport, check_address, explain
from sds.attestation.appraiser import Appraiser
from sds.attestation.coordinator import CoordinatorStatement, attest_coordinator, fetch_unverified
from sds.attestation.errors import AttestationError, CoordinatorUnavailable
from sds.attestation.policy import Policy
from sds.secrets import Secret

DEFAULT_TIMEOUT = 10.0


class Client:
    """Talks to the client API of one Coordinator whose root certificate is known."""

    def __init__(
        self,
        address: str,
        *,
        root: bytes | x509.Certificate,
        identity: ClientIdentity | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        statement: CoordinatorStatement | None = None,
    ) -> None:
        """`address` is host:port; `root` the pinned root certificate (PEM, also after others as in a chain file), for
        example from an earlier `statement.chain_pem`; `identity` whom the manifest knows as a user (or, for the
        monotonic counter, a Marble); `timeout` in seconds for one request.

        Raises AddressError, or NotTrusted if `root` holds no root certificate.
        """
        check_address(address)
        certificate = root if isinstance(root, x509.Certificate) else read_pin(root)
        self._transport = Transport(address, certificate, timeout, identity)
        self._statement = statement

    @classmethod
    async def attested(
        cls,
        address: str,
        appraiser: Appraiser,
        policy: Policy,
        *,
        nonce: bytes | None = None,
        identity: ClientIdentity | None = None,
        timeout: float = DEFAULT_TIMEOUT,  # noqa: ASYNC109 - of every later request too
    ) -> Client:
        """A client of the Coordinator at `address`, once its quote has proven that `policy` allows it.

        `nonce` (at most 64 bytes) makes the quote fresh; by default it is random. Raises AddressError, Unreachable,
        or NotTrusted with the check that failed. A Coordinator with version 1 of the API alone cannot be attested:
        its quote has no nonce, so an old one cannot be told from a fresh one.
        """
        check_address(address)
        try:
            statement = await attest_coordinator(address, appraiser, policy, nonce, timeout)
        except AttestationError as error:
            raise _translated(address, error, timeout) from error
        return cls(address, root=statement.root, identity=identity, timeout=timeout, statement=statement)

    @classmethod
    async def unverified(
        cls,
        address: str,
        *,
        identity: ClientIdentity | None = None,
        timeout: float = DEFAULT_TIMEOUT,  # noqa: ASYNC109 - of every later request too
    ) -> Client:
        """A client of whoever answers at `address` now; it cannot be exchanged later, but nothing is proven."""
        check_address(address)
        try:
            statement = await fetch_unverified(address, timeout)
        except AttestationError as error:
            raise _translated(address, error, timeout) from error
        return cls(address, root=statement.root, identity=identity, timeout=timeout, statement=statement)

    @property
    def root(self) -> x509.Certificate:
        return self._transport.root

    @property
    def statement(self) -> CoordinatorStatement | None:
        """What the Coordinator said (and, if `claims` is set, proved) when this client was made; None if pinned."""
        return self._statement

    async def status(self) -> Status:
        """What the Coordinator is doing."""
        return await calls_more.get_status(self._transport)

    # The manifest

    async def manifest(self) -> ManifestStatement:
        """The manifest in force; its fingerprint and the root key's signature have been checked.

        Raises RequestRefused if none is set.
        """
        return await calls_manifest.get_manifest(self._transport, self.root)

    async def verify_manifest(self, expected: bytes | str) -> ManifestStatement:
        """The manifest in force, if it is exactly this one: its bytes, or its hex fingerprint. Raises NotTrusted."""
        wanted = hashlib.sha256(expected).hexdigest() if isinstance(expected, bytes) else expected.lower()
        found = await self.manifest()
        if found.fingerprint != wanted:
            raise NotTrusted(
                f"another manifest is in force at {self._transport.address}: its fingerprint is {found.fingerprint}, "
                f"expected {printable(wanted, 64)}"
            )
        return found

    async def set_manifest(self, raw: bytes) -> Mapping[str, str]:
        """Set the manifest (JSON, byte for byte). Returns the recovery secrets by key name, each encrypted for its key
        and in base64; empty if the manifest names no recovery keys.

        Raises RequestRefused with the Coordinator's reason: one is set already, or it is not acceptable.
        """
        return await calls_manifest.set_manifest(self._transport, raw)

    async def manifest_log(self) -> tuple[str, ...]:
        """What was done to the manifest and its secrets since it was set: one JSON text per entry, oldest first."""
        return await calls_manifest.get_log(self._transport)

    # Updates of the manifest

    async def update_apply(self, raw: bytes) -> UpdateResult:
        """Upload an update: a whole new manifest, or one with Packages alone that raises their SecurityVersion.

        Needs an identity with the permission UpdateManifest or UpdateSecurityVersion.
        """
        return await calls_manifest.apply_update(self._transport, raw)

    async def update_get(self) -> PendingUpdate:
        """The update that waits for acknowledgements. Raises RequestRefused (404) if none does."""
        return await calls_manifest.get_update(self._transport)

    async def update_acknowledge(self, raw: bytes) -> UpdateResult:
        """Agree to the pending update, which must be these very bytes. Needs an identity with UpdateManifest."""
        return await calls_manifest.acknowledge_update(self._transport, raw)

    async def update_cancel(self) -> str:
        """Drop the pending update; the Coordinator's message. Needs an identity with UpdateManifest."""
        return await calls_manifest.cancel_update(self._transport)

    # Secrets

    async def secret_get(self, names: Sequence[str]) -> Mapping[str, Secret]:
        """Secrets by name. Needs an identity with ReadSecret on each of them."""
        return await calls_secrets.get_secrets(self._transport, names)

    async def secret_set(self, secrets: Mapping[str, NewSecret]) -> None:
        """Give user-defined secrets their values: all, or none if one is refused. Needs WriteSecret on each."""
        await calls_secrets.set_secrets(self._transport, secrets)

    # The clients of the xDS port

    async def xds_status(self, clients: Sequence[str] = ()) -> XdsStatus:
        """Every discovery stream and how it stands; with `clients` (Marble types, type/uuid, gateways) only theirs.

        Needs an identity: any user of the manifest.
        """
        return await calls_xds.get_status(self._transport, clients)

    async def xds_dump(self, clients: Sequence[str] = ()) -> XdsDump:
        """The same resource by resource, with the content of listeners, clusters and endpoints; of secrets never."""
        return await calls_xds.get_dump(self._transport, clients)

    # Recovery

    async def recover(self, recovery_data: bytes, key: RecoveryKey) -> Recovery:
        """Give the Coordinator one recovery secret: decrypted with `key` unless it is plain already, and signed by it.

        `recovery_data` is what `set_manifest` returned for this key, decoded from base64. Raises IdentityError or
        TokenError if it is not this key's.
        """
        # The private key may be on a token, and RSA takes its time even in memory.
        secret = await asyncio.to_thread(decrypt_recovery_data, recovery_data, key)
        return await self.recover_with_signature(secret, await asyncio.to_thread(key.sign, secret))

    async def recover_with_signature(self, secret: bytes, signature: bytes) -> Recovery:
        """Give the Coordinator one recovery secret, plain or encrypted for its ephemeral key, and the signature that
        the key's owner made over the plain one (`RecoveryKey.sign`), perhaps elsewhere."""
        return await calls_more.recover(self._transport, secret, signature)

    async def recovery_public_key(self) -> rsa.RSAPublicKey:
        """The Coordinator's ephemeral key, for `encrypt_recovery_secret`. It has one only while it needs recovery."""
        return await calls_more.get_recovery_public_key(self._transport)

    # What feature gates of the manifest allow

    async def sign_quote(self, quote: bytes) -> SignedQuote:
        """Have the Coordinator verify an SGX quote and sign it with its TCB status; the signature has been checked."""
        return await calls_more.sign_quote(self._transport, self.root, quote)

    async def set_monotonic_counter(self, name: str, value: int) -> int:
        """Raise a Marble's counter to at least `value`; returns what it was before. Needs the Marble's identity."""
        if value < 0:
            raise ValueError("a monotonic counter cannot be negative")
        return await calls_more.set_monotonic_counter(self._transport, name, value)


def _translated(address: str, error: AttestationError, timeout: float) -> ClientError:
    if not isinstance(error, CoordinatorUnavailable):
        return NotTrusted(f"the Coordinator at {address} is not trusted: {printable(str(error), 2000)}")
    if error.__cause__ is not None:
        return explain(address, error.__cause__, timeout)
    return BadAnswer(printable(str(error)))
