# SPDX-License-Identifier: Apache-2.0
"""Ports that present a certificate secret instead of the Marble's identity (`Incoming.Cert`): which, and with what.

Such a port is for clients outside of the mesh: they show no certificate, and verify the secret's certificate against
the Marble root, the intermediate or the Coordinator's root. The chain therefore is the certificate and, if this
Coordinator issued it, the intermediate; a certificate that a user uploaded stands alone.

A worker gets the secret over SDS under the name that it has in the manifest. Shared and user-defined ones change with
the store (an update, an upload), per-Marble ones with the next activation. Pure but for the making of new certificates.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from datetime import datetime

from cryptography import x509

from manifests.model import Manifest
from manifests.model import Secret as Definition
from sds.ca import CertificateAuthority, pem_of
from sds.keys import MIN_RSA_BITS, PrivateKey
from sds.material import Identity, MaterialError
from sds.secrets import Secret, SecretKind
from xds_server.mesh_clients import ActiveMarble, Instance, Served, Unusable
from xds_server.records import Records
from xds_server.secret_definitions import SecretsRefused
from xds_server.secret_rules import instance_secret, is_stored

# What TLS 1.3 can sign with (RFC 8446, 4.2.3).
_MIN_ECDSA_BITS = 256


def served_names(manifest: Manifest, marble_type: str) -> frozenset[str]:
    """The certificate secrets that ports of this type present."""
    tags = (manifest.tls[tag] for tag in manifest.marbles[marble_type].tls)
    return frozenset(entry.cert for tag in tags for entry in tag.incoming if entry.cert)


def unfit(definition: Definition) -> str | None:
    """Why a secret of this definition cannot be presented by a port; None if it can."""
    kind = SecretKind(definition.type)
    if not kind.is_certificate:
        return f"a secret of type {kind.value} is not a certificate"
    if definition.user_defined:
        return None  # what is uploaded counts
    if kind is SecretKind.CERT_RSA and definition.size < MIN_RSA_BITS:
        return f"RSA keys of {definition.size} bits are too short for TLS, use {MIN_RSA_BITS} or more"
    if kind is SecretKind.CERT_ECDSA and definition.size < _MIN_ECDSA_BITS:
        return f"ECDSA keys of {definition.size} bits cannot be used with TLS 1.3, use 256, 384 or 521"
    return None


def identity_of(name: str, secret: Secret, ca: CertificateAuthority) -> Identity:
    """A certificate secret as what a listener presents. Raises SecretsRefused."""
    if not secret.certificate or not secret.private:
        raise SecretsRefused(f"secret {name} is not set: upload its certificate and private key")
    try:
        certificate = x509.load_der_x509_certificate(secret.certificate)
        chain = pem_of(certificate) if secret.user_defined else pem_of(certificate) + pem_of(ca.intermediate)
        return Identity(chain, PrivateKey(_key_pem(secret.private)))
    except (MaterialError, ValueError, x509.InvalidVersion) as e:
        raise SecretsRefused(f"secret {name} cannot be presented to clients: {e}") from None


def for_activation(
    manifest: Manifest, marble_type: str, secrets: Mapping[str, Secret], ca: CertificateAuthority
) -> dict[str, Identity]:
    """What a new instance presents, from its secrets. Raises SecretsRefused if one of them is not set."""
    return {name: identity_of(name, secrets[name], ca) for name in served_names(manifest, marble_type)}


def for_running(
    records: Records, manifest: Manifest, marbles: Iterable[ActiveMarble], now: datetime
) -> dict[Instance, Served]:
    """What running instances present after the store changed, of those for whom that is something else than before.

    Shared and user-defined secrets are as the store has them; a per-Marble one stays until the next activation, but an
    instance that has none (its port came with an update) gets one: without it the worker could not follow the update.
    A secret that cannot be presented leaves the old one in place, and says why. Slow if RSA keys are made: call it in
    a thread.
    """
    changed: dict[Instance, Served] = {}
    for marble in marbles:
        if marble.marble_type in manifest.marbles:
            served = _served(records, manifest, marble, now)
            if served != marble.served:
                changed[marble.marble_type, marble.uuid] = served
    return changed


def _served(records: Records, manifest: Manifest, marble: ActiveMarble, now: datetime) -> Served:
    found: dict[str, Identity | Unusable] = {}
    for name in sorted(served_names(manifest, marble.marble_type)):
        secret, before = records.secrets.get(name), marble.served.get(name)
        if secret is not None and (is_stored(secret) or not isinstance(before, Identity)):
            try:
                if not is_stored(secret):
                    secret = instance_secret(name, secret, records, manifest, marble.marble_type, marble.uuid, now)
                found[name] = identity_of(name, secret, records.ca)
            except SecretsRefused as e:
                found[name] = Unusable(str(e), before.last if isinstance(before, Unusable) else before)
        elif before is not None:
            found[name] = before
    return found


def _key_pem(der: bytes) -> bytes:
    body = base64.b64encode(der)
    lines = b"\n".join(body[start : start + 64] for start in range(0, len(body), 64))
    return b"-----BEGIN PRIVATE KEY-----\n" + lines + b"\n-----END PRIVATE KEY-----\n"
