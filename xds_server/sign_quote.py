# SPDX-License-Identifier: Apache-2.0
"""Sign-quote: an SGX quote is verified and its TCB status signed by the root, for those who cannot verify themselves.

The quote is not compared with any package, and a bad TCB level is no error: it is what the answer says.
"""

from __future__ import annotations

import base64

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from sds.ca import CertificateAuthority
from xds_server.answers import SignedQuote
from xds_server.errors import CoordinatorError


def sign_with_root(ca: CertificateAuthority, data: bytes) -> bytes:
    """ASN.1 ECDSA by the root key over SHA-256 of `data`: P-384 with the shorter digest, as MarbleRun's clients
    expect."""
    key = ca.root_key.load()
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CoordinatorError("the root key is not an elliptic-curve key")
    return key.sign(data, ec.ECDSA(SHA256()))


def sign_quote(ca: CertificateAuthority, quote: bytes, tcb_status: str) -> SignedQuote:
    """`quote` exactly as it was sent, with or without Open Enclave's header."""
    return SignedQuote(tcb_status, sign_with_root(ca, base64.b64encode(quote) + tcb_status.encode()))
