# SPDX-License-Identifier: Apache-2.0
"""What the SPIFFE Workload API says about an identity and a bundle: its messages, serialised once for all clients.

PEM becomes DER here (SPIFFE Workload API, section 5): chain and bundle as certificates one after the other, the key as
unencrypted PKCS#8. There are no CRLs: identities are short-lived, and a bundle that changes revokes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from enclave_proxy.bootstrap import Credentials
from enclave_proxy.local_secrets import spiffe_id_of
from sds.wire.workload_pb2 import X509SVID, X509BundlesResponse, X509SVIDResponse


@dataclass(frozen=True, slots=True)
class Answers:
    """Both responses, serialised. The first one holds the private key."""

    svid: bytes = field(repr=False)
    bundles: bytes = field(repr=False)

    @classmethod
    def of(cls, credentials: Credentials) -> Self | None:
        """None if the certificate has no SPIFFE ID: then it is no X.509-SVID."""
        identity = credentials.identity
        if (spiffe_id := spiffe_id_of(identity)) is None:
            return None
        bundle = _der(credentials.bundle.certificates)
        svid = X509SVID(
            spiffe_id=str(spiffe_id),
            x509_svid=_der(identity.certificates),
            x509_svid_key=identity.key.load().private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
            bundle=bundle,
        )
        bundles = X509BundlesResponse(bundles={f"spiffe://{spiffe_id.trust_domain}": bundle})
        return cls(
            X509SVIDResponse(svids=[svid]).SerializeToString(deterministic=True),
            bundles.SerializeToString(deterministic=True),
        )


def _der(certificates: Iterable[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.DER) for certificate in certificates)
