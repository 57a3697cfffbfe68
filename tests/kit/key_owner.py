# SPDX-License-Identifier: Apache-2.0
"""Somebody with a recovery key and OpenSSL, as the operator's guide has it."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from tests.kit.openssl_judge import openssl
from tests.kit.users import key_pem, public_pem, recovery_key

# What a recovery secret is encrypted with: SHA-256 for hash and MGF1, no label.
OAEP = (
    *("-pkeyopt", "rsa_padding_mode:oaep"),
    *("-pkeyopt", "rsa_oaep_md:sha256"),
    *("-pkeyopt", "rsa_mgf1_md:sha256"),
)


@dataclass(frozen=True, slots=True)
class KeyOwner:
    """The private half of a recovery key in a file, the public one (PEM) for the manifest."""

    key: Path
    pem: str

    def decrypt(self, ciphertext: str, parameters: tuple[str, ...] = OAEP) -> bytes:
        """The secret in what the Coordinator handed out, in base64."""
        data = base64.b64decode(ciphertext)
        return openssl("pkeyutl", "-decrypt", "-inkey", str(self.key), *parameters, data=data)

    def sign(self, secret: bytes, *flags: str) -> bytes:
        """RSASSA-PKCS1-v1_5 with SHA-256 over the secret, unless flags say otherwise."""
        return openssl("dgst", *(flags or ("-sha256",)), "-sign", str(self.key), data=secret)


def key_owner(directory: Path, number: int = 0) -> KeyOwner:
    """One of several owners, always the same key by number."""
    key, path = recovery_key(2 * number), directory / f"owner{number}.key"
    path.write_bytes(key_pem(key))
    return KeyOwner(path, public_pem(key.public_key()).decode())


def encrypted(public_key: Path, secret: bytes) -> bytes:
    """A secret for the holder of a public key in a DER file."""
    to = ("-encrypt", "-pubin", "-keyform", "DER", "-inkey", str(public_key))
    return openssl("pkeyutl", *to, *OAEP, data=secret)
