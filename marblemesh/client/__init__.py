# SPDX-License-Identifier: Apache-2.0
"""Client library for a Coordinator's client API: attest it, pin it, and do everything that its API offers.

    from marblemesh.client import Client, identity_from_pem

    client = await Client.attested("coordinator:4433", appraiser, policy, identity=identity_from_pem(cert, key))
    await client.set_manifest(manifest)
    secrets = await client.secret_get(["api-key"])

docs/sdk.md shows it whole. What is where:

client.py         `Client`: attested, pinned or (knowingly) unverified; a method per call
calls_manifest.py, calls_secrets.py, calls_xds.py, calls_more.py      the calls and what they return
identity.py       the user who asks: certificate and key from PEM
recovery.py       recovery secrets: decrypt, sign, encrypt
token.py          keys on a PKCS#11 token for both (token_config.py: which token, oaep.py: padding it cannot undo)
pin.py            reading a pinned root certificate from a file
transport.py      one pinned, bounded HTTPS request, and its failures in words (answer.py: the reply, opened)
token_http.py     the same with a key on a token, over gnutls.py
errors.py         `ClientError` and its kinds
"""

from marblemesh.client.calls_manifest import ManifestStatement, PendingUpdate, UpdateResult
from marblemesh.client.calls_more import Recovery, SignedQuote, Status, verify_signed_quote
from marblemesh.client.calls_secrets import NewSecret
from marblemesh.client.calls_xds import XdsDump, XdsStatus, XdsStream, XdsType, XdsWithheld
from marblemesh.client.client import Client
from marblemesh.client.errors import (
    AddressError,
    BadAnswer,
    ClientError,
    IdentityError,
    NoSuchCall,
    NotTrusted,
    RequestRefused,
    TokenError,
    Unreachable,
)
from marblemesh.client.identity import ClientIdentity, identity_from_pem
from marblemesh.client.recovery import (
    PemRecoveryKey,
    RecoveryKey,
    decrypt_recovery_data,
    encrypt_recovery_secret,
    parse_public_key,
)
from marblemesh.client.token import TokenIdentity, TokenRecoveryKey
from marblemesh.client.token_config import TokenConfig, TokenObject
from sds.secrets import Secret, SecretKind

__all__ = [
    "AddressError",
    "BadAnswer",
    "Client",
    "ClientError",
    "ClientIdentity",
    "IdentityError",
    "ManifestStatement",
    "NewSecret",
    "NoSuchCall",
    "NotTrusted",
    "PemRecoveryKey",
    "PendingUpdate",
    "Recovery",
    "RecoveryKey",
    "RequestRefused",
    "Secret",
    "SecretKind",
    "SignedQuote",
    "Status",
    "TokenConfig",
    "TokenError",
    "TokenIdentity",
    "TokenObject",
    "TokenRecoveryKey",
    "Unreachable",
    "UpdateResult",
    "XdsDump",
    "XdsStatus",
    "XdsStream",
    "XdsType",
    "XdsWithheld",
    "decrypt_recovery_data",
    "encrypt_recovery_secret",
    "identity_from_pem",
    "parse_public_key",
    "verify_signed_quote",
]
