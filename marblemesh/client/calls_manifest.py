# SPDX-License-Identifier: Apache-2.0
"""Calls about the manifest: read it, set it, update it, read its log. API v2; v1 where there is only that."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from marblemesh.client.answer import Answer, encoded, printable
from marblemesh.client.errors import BadAnswer, NoSuchCall, RequestRefused
from marblemesh.client.transport import Transport

NO_MANIFEST = "requested value not set"
"""The message of a Coordinator that has no manifest yet."""


@dataclass(frozen=True, slots=True)
class ManifestStatement:
    """The manifest in force. `fingerprint` is the hex SHA-256 of `raw`; the root's signature over it was verified."""

    raw: bytes = field(repr=False)
    fingerprint: str
    signature: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """How an update stands after an upload or an acknowledgement: it is in force once none are missing.

    `recovery_secrets` (by key name, each encrypted for its key, in base64) are there only if the update changed the
    recovery keys and is in force; the Coordinator gives them out this once.
    """

    missing_acknowledgments: int
    missing_users: tuple[str, ...] = ()
    recovery_secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    message: str = ""


@dataclass(frozen=True, slots=True)
class PendingUpdate:
    """A full update that waits for acknowledgements."""

    raw: bytes = field(repr=False)
    message: str
    missing_users: tuple[str, ...]


async def get_manifest(transport: Transport, root: x509.Certificate) -> ManifestStatement:
    try:
        answer = await transport.request("GET", "/api/v2/manifest")
        stated = answer.text("manifestFingerprint")
    except NoSuchCall:
        answer = await transport.request("GET", "/manifest")
        if answer.member("Manifest") is None:
            raise RequestRefused(f"{answer.request}: {NO_MANIFEST}", 200, NO_MANIFEST) from None
        stated = answer.text("ManifestSignature")
    raw, signature = answer.decoded(answer.text("manifest")), answer.decoded(answer.text("manifestSignatureRootECDSA"))
    fingerprint = hashlib.sha256(raw).hexdigest()
    if not hmac.compare_digest(stated.lower().encode(), fingerprint.encode()):
        raise BadAnswer(f"{answer.request}: the fingerprint is not that of the manifest that came with it")
    check_root_signature(root, raw, signature, "the manifest")
    return ManifestStatement(raw, fingerprint, signature)


async def set_manifest(transport: Transport, raw: bytes) -> Mapping[str, str]:
    try:
        answer = await transport.request("POST", "/api/v2/manifest", {"manifest": encoded(raw)})
    except NoSuchCall:
        answer = await transport.request("POST", "/manifest", raw)
    return answer.text_map("RecoverySecrets")


async def get_log(transport: Transport) -> tuple[str, ...]:
    try:
        return (await transport.request("GET", "/api/v2/update")).texts("updateLog")
    except NoSuchCall:
        answer = await transport.request("GET", "/update")
    if not isinstance(answer.data, str):
        raise BadAnswer(f"{answer.request}: want a text as data")
    return tuple(answer.data.splitlines())


async def apply_update(transport: Transport, raw: bytes) -> UpdateResult:
    try:
        return _result(await transport.request("POST", "/api/v2/update", {"manifest": encoded(raw)}))
    except NoSuchCall:
        await transport.request("POST", "/update", raw)
        return UpdateResult(0)


async def get_update(transport: Transport) -> PendingUpdate:
    try:
        answer = await transport.request("GET", "/api/v2/update-manifest")
    except NoSuchCall:
        answer = await transport.request("GET", "/update-manifest")
    message = printable(answer.text("message").strip())
    return PendingUpdate(answer.decoded(answer.text("manifest")), message, answer.texts("missingUsers"))


async def acknowledge_update(transport: Transport, raw: bytes) -> UpdateResult:
    try:
        return _result(await transport.request("POST", "/api/v2/update-manifest", {"manifest": encoded(raw)}))
    except NoSuchCall:
        return _from_words(await transport.request("POST", "/update-manifest", raw))


async def cancel_update(transport: Transport) -> str:
    try:
        return printable((await transport.request("POST", "/api/v2/update-cancel")).text("message"))
    except NoSuchCall:
        return printable(str((await transport.request("POST", "/update-cancel")).data))


def check_root_signature(root: x509.Certificate, data: bytes, signature: bytes, what: str) -> None:
    """Raise BadAnswer unless the root key signed SHA-256 of `data` (a P-384 key with SHA-256, as MarbleRun does)."""
    key = root.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise BadAnswer(f"the Coordinator's root key is no ECDSA key, so it cannot have signed {what}")
    try:
        key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise BadAnswer(f"{what} is not signed by the Coordinator's root key") from None


def _result(answer: Answer) -> UpdateResult:
    message = answer.member("message")
    return UpdateResult(
        answer.integer("missingAcknowledgments"),
        answer.texts("missingUsers"),
        answer.text_map("recoverySecrets"),
        printable(message.replace("\n", " ")) if isinstance(message, str) else "",
    )


def _from_words(answer: Answer) -> UpdateResult:
    """Version 1 says in words how many acknowledgements are missing: `All users …`, or a number first."""
    words = answer.data if isinstance(answer.data, str) else ""
    first = re.match(r"(All|[0-9]{1,9})\b", words)
    if first is None:
        raise BadAnswer(f"{answer.request}: the answer does not say how many acknowledgements are missing")
    names = words.partition("not yet accepted:")[2].split(",")
    missing = tuple(printable(name.strip()) for name in names if name.strip())
    count = 0 if first[1] == "All" else int(first[1])
    return UpdateResult(count, missing, {}, printable(words.replace("\n", " ")))
