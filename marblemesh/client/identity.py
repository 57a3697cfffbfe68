# SPDX-License-Identifier: Apache-2.0
"""Who asks: the certificate and key of a user that the manifest names, from PEM or on a token.

The Coordinator compares the certificate byte for byte with its manifest's; issuer and dates do not matter to it.
"""

from __future__ import annotations

import re

from marblemesh.client.errors import IdentityError
from marblemesh.client.token import TokenIdentity
from sds.keys import MaterialError, PrivateKey
from sds.material import Identity

ClientIdentity = Identity | TokenIdentity

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def identity_from_pem(certificate: bytes, key: bytes) -> Identity:
    """An identity from a certificate (or chain, leaf first; text around it, as OpenSSL writes it, is left out) and its
    unencrypted private key, both PEM. They stay in memory. Raises IdentityError, which never quotes the key."""
    blocks = _CERTIFICATE.findall(certificate)
    if not blocks:
        raise IdentityError("the client certificate is no PEM certificate")
    chain = b"".join(block.replace(b"\r\n", b"\n") + b"\n" for block in blocks)
    try:
        return Identity(chain, PrivateKey(key))
    except MaterialError as error:
        raise IdentityError(f"client authentication: {error}") from None
