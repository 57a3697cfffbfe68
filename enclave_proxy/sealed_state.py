# SPDX-License-Identifier: Apache-2.0
"""The last good configuration as bytes that only this very code on this very machine can open.

    u32 LE length ‖ header (JSON, in clear) ‖ nonce ‖ AES-256-GCM(key, state JSON), associated data = header
    key = HKDF-SHA256(the TEE's key for this measurement, salt of the header, purpose ‖ header)

The header has `v`, `platform` and `salt`; nothing in it can be changed unnoticed. Each writing has a salt and so a key
of its own. The sealing policy is always UniqueKey: another version of the worker has to ask the Coordinator.
"""

from __future__ import annotations

import base64
import json
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from enclave_proxy.apply import AppParameters
from enclave_proxy.bootstrap import Credentials
from enclave_proxy.errors import ProxyError
from sds.attestation.errors import DeviceUnavailable
from sds.attestation.sealing_keys import SealingKeySource, SealPolicy
from sds.keys import PrivateKey
from sds.material import Identity, MaterialError, TrustBundle
from sds.resources import Resource
from sds.wire.marble_pb2 import Parameters

_PURPOSE = b"marblemesh worker offline state 1\0"
_VERSION = 1
_SALT, _NONCE, _TAG = 32, 12, 16
_MAX_HEADER = 1024
# Parameters are 4 MiB at most, a mesh of 10 000 endpoints a few more; base64 makes four thirds of all that.
MAX_SEALED = 64 * 1024 * 1024


class Unsealable(ProxyError):
    """The sealed configuration cannot be used; says why, never what is in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineState:
    """All that a start without Coordinator needs. `pin`: how the Coordinator was attested that said so, empty: not at
    all. `heard`: when it was connected last; `allowed_until`: heard + what the manifest allows."""

    marble_type: str
    uuid: str
    pin: str
    heard: datetime
    allowed_until: datetime
    credentials: Credentials = field(repr=False)
    parameters: AppParameters = field(repr=False)
    resources: tuple[Resource, ...] = field(repr=False)

    @property
    def expires(self) -> datetime:
        """The allowed time or the identity's life, whichever ends first."""
        return min(self.allowed_until, self.credentials.identity.not_after)

    def to_json(self) -> bytes:
        credentials, parameters = self.credentials, self.parameters
        document = {
            "marble_type": self.marble_type,
            "uuid": self.uuid,
            "pin": self.pin,
            "heard": self.heard.timestamp(),
            "allowed_until": self.allowed_until.timestamp(),
            "chain": credentials.identity.chain.decode("ascii"),
            "key": credentials.identity.key.pem.decode("ascii"),
            "bundle": credentials.bundle.pem.decode("ascii"),
            "coordinator_root": credentials.coordinator_root.pem.decode("ascii"),
            "files": {name: _text(content) for name, content in parameters.files.items()},
            "env": {name: _text(value) for name, value in parameters.env.items()},
            "argv": parameters.argv,
            "resources": [[r.type_url, r.name, r.version, _text(r.body)] for r in self.resources],
        }
        return json.dumps(document, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Raises Unsealable. Only ever given what this code has sealed, and still takes nothing for granted."""
        try:
            document: dict[str, Any] = json.loads(text)
            parameters = Parameters(
                files={name: _bytes(content) for name, content in document["files"].items()},
                env={name: _bytes(value) for name, value in document["env"].items()},
                argv=document["argv"],
            )
            identity = Identity(document["chain"].encode(), PrivateKey(document["key"].encode()))
            bundle, root = (TrustBundle(document[name].encode()) for name in ("bundle", "coordinator_root"))
            return cls(
                marble_type=document["marble_type"],
                uuid=document["uuid"],
                pin=document["pin"],
                heard=datetime.fromtimestamp(document["heard"], UTC),
                allowed_until=datetime.fromtimestamp(document["allowed_until"], UTC),
                credentials=Credentials(identity, bundle, root),
                parameters=AppParameters.parse(parameters),
                resources=tuple(
                    Resource(kind, name, version, _bytes(body)) for kind, name, version, body in document["resources"]
                ),
            )
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, MaterialError, ProxyError):
            # What is wrong in it may be a secret.
            raise Unsealable("what was sealed is not a configuration of this version") from None


def seal(state: OfflineState, keys: SealingKeySource) -> bytes:
    """Raises Unsealable if the TEE gives no key."""
    salt = secrets.token_bytes(_SALT)
    document = {"v": _VERSION, "platform": keys.platform, "salt": salt.hex()}
    header = json.dumps(document, separators=(",", ":")).encode()
    nonce = secrets.token_bytes(_NONCE)
    sealed = AESGCM(_key(keys, salt, header)).encrypt(nonce, state.to_json(), header)
    return len(header).to_bytes(4, "little") + header + nonce + sealed


def unseal(data: bytes, keys: SealingKeySource) -> OfflineState:
    """Raises Unsealable. Says nothing of whether the state may still be used: see `offline`."""
    size = int.from_bytes(data[:4], "little")
    if not 4 < 4 + size <= len(data) - _NONCE - _TAG or size > _MAX_HEADER:
        raise Unsealable("it is no sealed configuration")
    header, nonce, sealed = data[4 : 4 + size], data[4 + size :][:_NONCE], data[4 + size + _NONCE :]
    salt = _read_header(header, keys.platform)
    try:
        text = AESGCM(_key(keys, salt, header)).decrypt(nonce, sealed, header)
    except InvalidTag:
        raise Unsealable("it was sealed by another enclave or on another machine, or was changed") from None
    return OfflineState.from_json(text)


def _read_header(header: bytes, platform: str) -> bytes:
    try:
        document = json.loads(header)
        version, sealed_on, salt = document["v"], document["platform"], bytes.fromhex(document["salt"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Unsealable("it is no sealed configuration") from None
    if version != _VERSION or len(salt) != _SALT:
        raise Unsealable("it is of a version that this program does not know")
    if sealed_on != platform:
        raise Unsealable(f"it was sealed on platform {str(sealed_on)[:40]!a}, this is {platform}")
    return salt


def _key(keys: SealingKeySource, salt: bytes, header: bytes) -> bytes:
    try:
        return keys.derive(SealPolicy.UNIQUE_KEY, salt, _PURPOSE + header)
    except DeviceUnavailable as error:
        raise Unsealable(f"the TEE gives no sealing key: {error}") from error


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
