# SPDX-License-Identifier: Apache-2.0
"""Secrets on the wire: what a user may upload, and how one is shown. Pure; who may do either is decided elsewhere.

Member names are matched in any case and unknown members ignored, as Go does. Texts are MarbleRun's; the client API puts
`parsing new secrets: ` before them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from manifests.model import Manifest
from sds.secrets import Secret, SecretKind
from xds_server.http_json import b64
from xds_server.secret_definitions import SecretsRefused, empty

# Everything lives in memory and in one file that every commit writes anew.
MAX_UPLOAD = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Values:
    """The members of one uploaded secret. `certificate` None: absent, or no base64, which counts as absent."""

    key: bytes = field(repr=False)
    certificate: bytes | None
    private: bytes = field(repr=False)
    names_certificate: bool

    @classmethod
    def read(cls, name: str, value: object) -> Self:
        if value is not None and not isinstance(value, Mapping):
            raise SecretsRefused(f"secret {name}: want an object with Key, or Cert and Private")
        members = {str(member).lower(): item for member, item in (value or {}).items() if item is not None}
        return cls(
            key=_bytes(name, "Key", members),
            certificate=_lenient(members.get("cert")),
            private=_bytes(name, "Private", members),
            names_certificate=bool(members.get("cert")),
        )


def parse_upload(payload: Mapping[str, object], manifest: Manifest, secrets: Mapping[str, Secret]) -> dict[str, Secret]:
    """The new values of user-defined secrets, all or nothing. Raises SecretsRefused.

    `payload` is the JSON object: name → {"Key": base64} or {"Cert": base64 DER, "Private": base64 PKCS#8 DER}. The
    private key of a certificate may be missing and is not compared with it, as in MarbleRun.
    """
    if not payload:
        raise SecretsRefused("no new secrets defined")
    found: dict[str, Secret] = {}
    for name, value in payload.items():
        definition = manifest.secrets.get(name)
        if definition is None:
            raise SecretsRefused("secret manifest specifies a secret which the original manifest does not contain")
        if not definition.user_defined:
            raise SecretsRefused(f"secret {name} is not writeable")
        target = secrets.get(name, empty(definition))
        found[name] = _accept(name, replace(target, certificate=None), _Values.read(name, value))
    return found


def to_json(secret: Secret) -> dict[str, object]:
    """A secret as the client API shows it; absent values are null."""
    return {
        "Type": secret.kind.value,
        "Size": secret.size,
        "Shared": secret.shared,
        "UserDefined": secret.user_defined,
        "Cert": b64(secret.certificate),
        "ValidFor": secret.valid_for,
        "Private": b64(secret.private or None),
        "Public": b64(secret.public or None),
    }


def _accept(name: str, target: Secret, values: _Values) -> Secret:
    if max(len(values.key), len(values.certificate or b""), len(values.private)) > MAX_UPLOAD:
        raise SecretsRefused(f"secret {name} is too large: at most {MAX_UPLOAD} bytes are stored")
    if target.kind.is_certificate:
        return _certificate(name, target, values)
    if values.names_certificate or values.private:
        raise SecretsRefused(
            f"secret {name} is set to be of type {target.kind.value} but specified values for a certificate"
        )
    if target.kind is SecretKind.SYMMETRIC_KEY:
        if not target.size or target.size % 8:
            raise SecretsRefused(f"invalid secret size: {name}")
        if len(values.key) * 8 != target.size:
            raise SecretsRefused(f"declared size and actual size don't match: {name}")
    return replace(target, private=values.key, public=values.key)


def _certificate(name: str, target: Secret, values: _Values) -> Secret:
    if values.key:
        raise SecretsRefused(
            f"secret {name} is set to be of type {target.kind.value} but specified values for a symmetric-key"
        )
    if not values.certificate:
        raise SecretsRefused("x509: unsupported public key type: <nil>")
    try:
        certificate = x509.load_der_x509_certificate(values.certificate)
        public = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as e:
        raise SecretsRefused(f"secret {name}: x509: malformed certificate: {e}") from None
    return replace(target, certificate=values.certificate, private=values.private, public=public)


def _bytes(name: str, member: str, members: Mapping[str, object]) -> bytes:
    value = members.get(member.lower(), "")
    if not isinstance(value, str):
        raise SecretsRefused(f"secret {name}: member {member} must be a base64 string")
    try:
        return base64.b64decode(value.replace("\r", "").replace("\n", "").encode("ascii", "replace"), validate=True)
    except binascii.Error:
        raise SecretsRefused(f"secret {name}: member {member} is not base64 with padding") from None


def _lenient(value: object) -> bytes | None:
    if not isinstance(value, str):
        return None
    try:
        return base64.b64decode(value.encode("ascii", "replace"), validate=True)
    except binascii.Error:
        return None
