# SPDX-License-Identifier: Apache-2.0
"""What the client API may ask of the Coordinator: the seam between HTTP and the rules.

`certificates` are the DER certificates that the TLS client offered, leaf first, not verified; a user is whoever holds
the key of a certificate in the manifest, so the transport must have proven the leaf's key. Every method raises a
CoordinatorError whose text goes to the client; the subclasses that stand for another status than 500 (v1: 400) are
Unauthorized (401), FeatureDisabled (403), NoUpdate (404), QuoteNotVerified and SecretNotDecrypted (400).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from sds.secrets import Secret
from xds_server.answers import (
    AcknowledgeAnswer,
    CoordinatorQuote,
    PendingAnswer,
    RecoveryAnswer,
    SignedManifest,
    SignedQuote,
    Status,
    UpdateAnswer,
)

Certificates = Sequence[bytes]


class Operations(Protocol):
    """`Coordinator` is one; each method takes and gives plain values."""

    def status(self) -> Status: ...

    async def quote(self, nonce: bytes) -> CoordinatorQuote:
        """Our own statement. Raises QuoteUnavailable."""

    # --- manifest

    def check_accepts_manifest(self) -> None:
        """Raise WrongState where `set_manifest` would, before a body is read."""

    async def set_manifest(self, raw: bytes) -> Mapping[str, bytes]:
        """Put a first manifest in force; what each recovery key's owner has to keep (key name → ciphertext, maybe
        empty). Raises WrongState, ManifestRefused."""

    def manifest(self) -> SignedManifest:
        """Raises NotSet before there is one."""

    def update_log(self) -> tuple[str, ...]:
        """One JSON object per entry, oldest first. Raises NotSet before there is a manifest."""

    # --- users

    def check_user(self, certificates: Certificates) -> None:
        """Raise Unauthorized unless this is a user of the manifest: asked before a request is looked at."""

    def secrets_get(self, names: Sequence[str], certificates: Certificates) -> Mapping[str, Secret]:
        """The named secrets, all or none. Raises Unauthorized, WrongState, NotAllowed."""

    async def secrets_set(self, payload: Mapping[str, object], certificates: Certificates) -> None:
        """Set user-defined secrets, all or none; `payload` is the JSON object name → {Key | Cert, Private}.
        Raises Unauthorized, WrongState, secret_definitions.SecretsRefused, NotAllowed."""

    async def update_apply(self, raw: bytes, certificates: Certificates) -> UpdateAnswer:
        """Submit a package update or a full one. Raises Unauthorized, WrongState, UpdateRefused, NotAllowed."""

    def update_get(self) -> PendingAnswer:
        """Raises NoUpdate."""

    async def update_acknowledge(self, raw: bytes, certificates: Certificates) -> AcknowledgeAnswer:
        """Agree to the pending update. Raises Unauthorized, NoUpdate, UpdateRefused, NotAllowed."""

    async def update_cancel(self, certificates: Certificates) -> str:
        """Drop the pending update; the sentence to answer. Raises Unauthorized, NoUpdate, NotAllowed."""

    # --- recovery

    async def recovery_public_key(self) -> bytes:
        """PKIX DER of the ephemeral RSA key. Raises WrongState unless in recovery."""

    async def recover(self, secret: bytes, signature: bytes) -> RecoveryAnswer:
        """One owner's secret with its signature. Raises SecretNotDecrypted, RecoveryError, WrongState."""

    # --- for Marbles

    def check_sign_quote(self) -> None:
        """Raise FeatureDisabled unless the manifest enables SignQuoteEndpoint."""

    async def sign_quote(self, quote: bytes) -> SignedQuote:
        """Verify an SGX quote and attest its TCB status. Raises FeatureDisabled, QuoteNotVerified."""

    def check_counter(self, certificates: Certificates) -> None:
        """Raise FeatureDisabled or Unauthorized where `set_counter` would, before the body is parsed."""

    async def set_counter(self, certificates: Certificates, name: str, value: int) -> int:
        """Raise the caller's counter to `value` (0 to 2^64-1); its value before. Raises FeatureDisabled,
        Unauthorized."""
