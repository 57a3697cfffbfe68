# SPDX-License-Identifier: Apache-2.0
"""Manifests for tests: a small valid one to change, and certificates that it may carry."""

from __future__ import annotations

import copy
import datetime
import json
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SGX_PACKAGE = {"SignerID": "ab" * 32, "ProductID": 1, "SecurityVersion": 1}
TDX_PACKAGE = {"TDX": {"MRTD": "cd" * 48, "RTMR1": "01" * 48, "RTMR2": "02" * 48}}

_BASE: dict[str, Any] = {
    "Packages": {"p": SGX_PACKAGE, "vm": TDX_PACKAGE},
    "Marbles": {"web": {"Package": "p"}, "db": {"Package": "vm"}},
}


def manifest(**members: Any) -> dict[str, Any]:
    """A valid manifest (Marbles `web` on SGX and `db` on TDX) with top-level members added or replaced."""
    return {**copy.deepcopy(_BASE), **members}


def raw(document: object) -> bytes:
    return json.dumps(document).encode()


def certificate(*, ca: bool | None = False, uri: str | None = "spiffe://edge/gateway", cert_sign: bool = False) -> str:
    """A self-signed certificate as PEM; `ca` None leaves BasicConstraints out."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody")])
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=3650))
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    if cert_sign:
        unused = (
            "content_commitment key_encipherment data_encipherment key_agreement crl_sign encipher_only decipher_only"
        )
        usage = dict.fromkeys(unused.split(), False)
        builder = builder.add_extension(
            x509.KeyUsage(digital_signature=True, key_cert_sign=True, **usage), critical=True
        )
    if uri is not None:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False
        )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
