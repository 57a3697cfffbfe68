# SPDX-License-Identifier: Apache-2.0
"""New values of secrets on disk: the JSON that the API takes, or the PEM of one certificate and its key."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from marblemesh.cli.errors import CliError
from marblemesh.cli.files import read_file
from marblemesh.client import NewSecret

# The API's bodies may be that of a manifest; a secret is passed in environments and files of a Marble.
MAX_SECRETS = 16 * 1024 * 1024
_MEMBERS = {"key": "key", "cert": "certificate", "private": "private"}
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.+?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL)


def read_secrets(path: Path) -> Mapping[str, NewSecret]:
    """`{"name": {"Key": …} | {"Cert": …, "Private": …}}`, values in base64. Raises CliError that quotes no value."""
    raw = read_file(path, "secrets", MAX_SECRETS)
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        raise CliError(f"secrets {str(path)!r}: no JSON (for a certificate in PEM give --from-pem NAME)") from None
    if not isinstance(document, dict) or not document:
        raise CliError(f'secrets {str(path)!r}: want {{"name": {{"Key": "<base64>"}}}}')
    return {name: _secret(path, name, value) for name, value in document.items()}


def read_pem(path: Path) -> NewSecret:
    """The first certificate of a PEM file, and its private key if there is one. Raises CliError."""
    raw = read_file(path, "certificate", MAX_SECRETS)
    try:
        certificate = x509.load_pem_x509_certificates(raw)[0]
    except (ValueError, x509.InvalidVersion):
        raise CliError(f"{str(path)!r} holds no PEM certificate") from None
    block = _PRIVATE_KEY.search(raw)
    if block is None:
        return NewSecret(certificate=certificate.public_bytes(Encoding.DER))
    try:
        key = load_pem_private_key(block[0], password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CliError(f"the private key in {str(path)!r} cannot be read: want an unencrypted one") from None
    if key.public_key() != certificate.public_key():
        raise CliError(f"the private key in {str(path)!r} does not belong to the first certificate there")
    private = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return NewSecret(certificate=certificate.public_bytes(Encoding.DER), private=private)


def _secret(path: Path, name: str, value: object) -> NewSecret:
    place = f"secrets {str(path)!r}: {name[:80]!r}"
    if not isinstance(value, dict) or not value:
        raise CliError(f"{place}: want an object with Key, or with Cert and Private")
    members: dict[str, bytes] = {}
    for member, text in value.items():
        if member.lower() not in _MEMBERS:
            raise CliError(f"{place}: unknown member {member[:80]!r}, known are Key, Cert and Private")
        if text is None:
            continue
        try:
            members[_MEMBERS[member.lower()]] = base64.b64decode(text, validate=True)
        except (TypeError, ValueError):
            raise CliError(f"{place}: {member} is not base64") from None
    if ("key" in members) == ("certificate" in members) or ("key" in members and "private" in members):
        raise CliError(f"{place}: want either Key, or Cert (and Private)")
    return NewSecret(**members)
