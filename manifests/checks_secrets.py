# SPDX-License-Identifier: Apache-2.0
"""Rules for secrets: which sizes exist for which type, and when a generated certificate ends."""

from __future__ import annotations

from manifests.convert_secret import is_zero_time
from manifests.places import Findings
from manifests.wire import ManifestWire, SecretWire

ECDSA_SIZES = (224, 256, 384, 521)
MIN_RSA = 1024
# Ours: the time to find an RSA key grows with the fourth power of its size, 8192 bits take about ten seconds.
MAX_RSA = 8192
# HKDF-SHA256 yields at most 255 blocks of 32 bytes: 8160 bytes.
MAX_DERIVED_BITS = 255 * 32 * 8
# Ours: a shared key is drawn at random and held in memory and in every Marble's environment; 1 MiB is plenty.
MAX_RANDOM_BITS = 8 * 1024 * 1024


def check_secrets(document: ManifestWire, found: Findings) -> None:
    for name, secret in document.secrets.items():
        at = ("Secrets", name)
        if secret.cert is not None and secret.valid_for and not is_zero_time(secret.cert.not_after):
            found.error(
                f"ambiguous certificate validity duration for secret: {name}, both NotAfter and ValidFor are specified",
                *(*at, "ValidFor"),
            )
        # The size of a secret that a user uploads is compared at the upload.
        if not secret.user_defined:
            _check_generated(name, secret, found)


def _check_generated(name: str, secret: SecretWire, found: Findings) -> None:
    at = ("Secrets", name, "Size")
    match secret.type:
        case "plain":
            found.error(f"secret {name} is invalid: unsupported secret of type plain", "Secrets", name, "Type")
        case "symmetric-key":
            limit = MAX_RANDOM_BITS if secret.shared else MAX_DERIVED_BITS
            if not secret.size or secret.size % 8 or secret.size > limit:
                found.error(f"invalid secret size: {name}", *at)
        case "cert-rsa" if not MIN_RSA <= secret.size <= MAX_RSA:
            found.error(
                f"invalid secret size for cert-rsa secret {name}: unsupported size {secret.size}: "
                f"want {MIN_RSA} to {MAX_RSA} bits",
                *at,
            )
        case "cert-ecdsa" if secret.size not in ECDSA_SIZES:
            found.error(
                f"invalid secret size for cert-ecdsa secret {name}: unsupported size {secret.size}: "
                "does not map to a supported curve",
                *at,
            )
        case "cert-ed25519" if secret.size:
            found.error(
                f"invalid secret size for cert-ed25519 secret {name}: none is expected, got: {secret.size}", *at
            )
        case _:
            pass
