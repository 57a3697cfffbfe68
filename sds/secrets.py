# SPDX-License-Identifier: Apache-2.0
"""A secret of the mesh: what it is, and its bytes. Values only; who makes and who may read them stands elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class SecretKind(StrEnum):
    """The words of the manifest."""

    SYMMETRIC_KEY = "symmetric-key"
    PLAIN = "plain"
    CERT_RSA = "cert-rsa"
    CERT_ECDSA = "cert-ecdsa"
    CERT_ED25519 = "cert-ed25519"

    @property
    def is_certificate(self) -> bool:
        return self in (SecretKind.CERT_RSA, SecretKind.CERT_ECDSA, SecretKind.CERT_ED25519)


@dataclass(frozen=True, slots=True)
class Secret:
    """One secret. A user-defined one that nobody has set yet has empty `private`, `public` and no `certificate`.

    `private`: PKCS#8 DER of a certificate's key, or the symmetric key or data itself; `public`: PKIX DER of a
    certificate's public key, or again the key or data; `certificate`: DER; `size` in bits; `valid_for` in days.
    """

    kind: SecretKind
    size: int = 0
    shared: bool = False
    user_defined: bool = False
    valid_for: int = 0
    certificate: bytes | None = None
    private: bytes = field(default=b"", repr=False)
    public: bytes = field(default=b"", repr=False)
