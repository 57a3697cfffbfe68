# SPDX-License-Identifier: Apache-2.0
"""What the Coordinator answers to its clients, as values. How they look in JSON is the client API's business."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from xds_server.state import State


@dataclass(frozen=True, slots=True)
class Status:
    """`simulation`: attestation is simulated; `insecure`: there is none at all."""

    code: State
    message: str
    simulation: bool
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class CoordinatorQuote:
    """`chain_pem`: intermediate, then root; `quote`: MarbleRun's wire form, None without attestation."""

    chain_pem: bytes
    quote: bytes | None = field(repr=False)
    simulation: bool
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class SignedManifest:
    """`signature`: ASN.1 ECDSA by the root key over SHA-256 of `raw`; `fingerprint`: that digest in hex."""

    signature: bytes
    fingerprint: str
    raw: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class UpdateAnswer:
    """After an update was submitted or acknowledged. Nothing missing: it is in force.

    `missing_users` is None where MarbleRun answers null (nobody is missing). `recovery_secrets` (recovery key name →
    RSA-OAEP ciphertext) is None unless this call put a full update in force that changed the recovery keys or their
    threshold; a mapping may then still be empty (all keys removed).
    """

    missing_acknowledgments: int
    missing_users: tuple[str, ...] | None
    recovery_secrets: Mapping[str, bytes] | None = None


@dataclass(frozen=True, slots=True)
class AcknowledgeAnswer:
    """`update` as above; `message` is MarbleRun's sentence, whose first word tools read."""

    update: UpdateAnswer
    message: str


@dataclass(frozen=True, slots=True)
class PendingAnswer:
    """The full update that waits."""

    message: str
    missing_users: tuple[str, ...]
    manifest: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class RecoveryAnswer:
    """`remaining` 0: recovered."""

    remaining: int
    message: str


@dataclass(frozen=True, slots=True)
class SignedQuote:
    """`signature`: ASN.1 ECDSA by the root key over SHA-256(base64(quote as sent) || tcb_status)."""

    tcb_status: str
    signature: bytes
