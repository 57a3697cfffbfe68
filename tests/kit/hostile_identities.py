# SPDX-License-Identifier: Apache-2.0
"""What peers may show that no Coordinator would issue: a CA's key in the wrong hands, or a certificate of one's own."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from tempfile import NamedTemporaryFile
from typing import IO

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID, ObjectIdentifier

from sds.ca import CertificateAuthority, pem_of
from sds.keys import PrivateKey
from tests.kit.pki import HOUR, marble, now, odd_leaf

# An extension that nobody knows, so that nobody minds its size.
_UNKNOWN = ObjectIdentifier("1.3.6.1.4.1.99999.1")


class Shown:
    """A chain as it goes over the wire, leaf first, and the leaf's key. Nothing is checked."""

    def __init__(self, chain: Sequence[bytes], key: PrivateKey) -> None:
        self.chain = chain
        self.key = key

    def load(self, context: ssl.SSLContext) -> None:
        with NamedTemporaryFile(suffix=".pem") as file:
            self.write(file)
            context.load_cert_chain(file.name)

    def write(self, file: IO[bytes]) -> None:
        """Key and chain in PEM."""
        private = self.key.load().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        file.write(private + b"".join(self.chain))
        file.flush()


def good(ca: CertificateAuthority, marble_type: str) -> Shown:
    """As the Coordinator issues it."""
    identity = marble(ca, marble_type)
    return Shown([pem_of(c) for c in identity.certificates], identity.key)


def odd(
    ca: CertificateAuthority, marble_type: str = "client", *, more_uris: Sequence[str] = (), **changes: object
) -> Shown:
    """One of that type, changed as `odd_leaf` can change it."""
    uris = [str(marble(ca, marble_type).spiffe_id), *more_uris]
    identity = odd_leaf(ca, **({"uris": uris} | changes))  # type: ignore[arg-type]
    return Shown([pem_of(c) for c in identity.certificates], identity.key)


def everything_twice(ca: CertificateAuthority, marble_type: str) -> Shown:
    """Leaf, leaf, intermediate, intermediate, …"""
    shown = good(ca, marble_type)
    return Shown([pem for pem in shown.chain for _ in range(2)], shown.key)


def of_bytes(ca: CertificateAuthority, size: int) -> Shown:
    """A good certificate but for an extension of that size."""
    return odd(ca, extensions=[x509.UnrecognizedExtension(_UNKNOWN, bytes(size))])


def deep(ca: CertificateAuthority, depth: int, marble_type: str = "client") -> Shown:
    """A leaf at the end of `depth` intermediates, the first of which the CA has signed."""
    issuer, signer = ca.intermediate, ca.intermediate_key.load()
    chain: list[x509.Certificate] = []
    for number in range(depth + 1):
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = number == depth
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"link {number}")])
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer.subject)
            .serial_number(number + 1)
            .not_valid_before(now() - HOUR)
            .not_valid_after(now() + HOUR)
            .public_key(key.public_key())
            .add_extension(x509.BasicConstraints(ca=not leaf, path_length=None), critical=True)
        )
        if leaf:
            uri = x509.UniformResourceIdentifier(str(marble(ca, marble_type).spiffe_id))
            builder = builder.add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        issuer = builder.sign(signer, SHA256())  # type: ignore[arg-type]
        chain.insert(0, issuer)
        signer = key
    return Shown([pem_of(certificate) for certificate in chain], _private(signer))


def _private(key: object) -> PrivateKey:
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return PrivateKey(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
