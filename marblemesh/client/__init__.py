# SPDX-License-Identifier: Apache-2.0
"""Client library for a Coordinator's client API: attest it, pin it, read and set its manifest.

client.py      `Client`: attested, pinned or (knowingly) unverified; status, manifest, set_manifest
pin.py         reading a pinned root certificate from a file
transport.py   one pinned, bounded HTTPS request, and its failures in words
errors.py      `ClientError` and its kinds
"""

from marblemesh.client.client import Client, ManifestStatement, Status
from marblemesh.client.errors import (
    AddressError,
    BadAnswer,
    ClientError,
    NotTrusted,
    RequestRefused,
    Unreachable,
)

__all__ = [
    "AddressError",
    "BadAnswer",
    "Client",
    "ClientError",
    "ManifestStatement",
    "NotTrusted",
    "RequestRefused",
    "Status",
    "Unreachable",
]
