# SPDX-License-Identifier: Apache-2.0
"""Secrets as somebody else's control plane might make them: any content under any name, nothing checked."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.x509 import ocsp
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from sds.ca import CertificateAuthority
from sds.keys import PrivateKey
from sds.material import Identity
from sds.resources import SECRET, Resource, make_resource
from sds.spiffe_validator import CONFIG, VALIDATOR
from sds.wire import secret_pb2 as pb
from tests.kit.pki import HOUR, now, private_key


def inline(content: bytes) -> pb.DataSource:
    return pb.DataSource(inline_bytes=content)


def secret(name: str, message: Message, called: str | None = None) -> Resource:
    """A resource `name` with a Secret that holds `message` and calls itself `called`."""
    members = {
        pb.TlsCertificate: "tls_certificate",
        pb.TlsSessionTicketKeys: "session_ticket_keys",
        pb.CertificateValidationContext: "validation_context",
        pb.GenericSecret: "generic_secret",
    }
    made = pb.Secret(name=name if called is None else called, **{members[type(message)]: message})  # type: ignore[arg-type]
    return make_resource(SECRET, name, made)


def certificate(
    identity: Identity,
    *,
    chain: bytes | None = None,
    key: bytes | None = None,
    password: bytes | None = None,
    staple: bytes | None = None,
) -> pb.TlsCertificate:
    """The identity, with parts of it replaced (b"": left out)."""
    made = pb.TlsCertificate()
    for field, content in (
        (made.certificate_chain, identity.chain if chain is None else chain),
        (made.private_key, identity.key.pem if key is None else key),
    ):
        if content:
            field.CopyFrom(inline(content))
    if password is not None:
        made.password.CopyFrom(inline(password))
    if staple is not None:
        made.ocsp_staple.CopyFrom(inline(staple))
    return made


def trust(pem: bytes | None, *, crl: bytes | None = None, leaves_only: bool = False) -> pb.CertificateValidationContext:
    """A validation context; `pem` None: without any CA, b"": with an empty one."""
    made = pb.CertificateValidationContext(only_verify_leaf_cert_crl=leaves_only)
    if pem is not None:
        made.trusted_ca.CopyFrom(inline(pem))
    if crl is not None:
        made.crl.CopyFrom(inline(crl))
    return made


def validator(*domains: tuple[str, bytes], name: str = VALIDATOR) -> pb.CertificateValidationContext:
    """A SPIFFE validator with these trust domains and bundles."""
    config = pb.SpiffeCertValidatorConfig(
        trust_domains=[pb.TrustDomain(name=domain, trust_bundle=inline(pem)) for domain, pem in domains]
    )
    typed = Any(type_url=CONFIG, value=config.SerializeToString())
    return pb.CertificateValidationContext(
        custom_validator_config=pb.TypedExtensionConfig(name=name, typed_config=typed)
    )


def encrypted(key: PrivateKey, password: bytes) -> bytes:
    return key.load().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password))


def weak_key() -> PrivateKey:
    """RSA of 1024 bits, which nothing of ours makes or loads."""
    return private_key(rsa.generate_private_key(65537, 1024))


def self_signed(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
    *,
    ca: bool = True,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "made by hand")])
    return (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(not_before or now() - HOUR)
        .not_valid_after(not_after or now() + HOUR)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(key, SHA256())
    )


def revocation_list(ca: CertificateAuthority, *, begin: datetime | None = None, end: datetime | None = None) -> bytes:
    """An empty list that is signed by the CA of Marbles."""
    builder = x509.CertificateRevocationListBuilder(
        ca.marble_root.subject, begin or now() - HOUR, end or now() + timedelta(days=1)
    )
    return builder.sign(ca.intermediate_key.load(), SHA384()).public_bytes(Encoding.PEM)  # type: ignore[arg-type]


def staple(
    ca: CertificateAuthority,
    leaf: x509.Certificate,
    *,
    status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD,
    end: datetime | None = None,
) -> bytes:
    """What an OCSP responder that is the CA itself says of a leaf."""
    gone = status is ocsp.OCSPCertStatus.REVOKED
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response(
            cert=leaf,
            issuer=ca.marble_root,
            algorithm=SHA256(),
            cert_status=status,
            this_update=now() - 2 * HOUR,
            next_update=end or now() + HOUR,
            revocation_time=now() - HOUR if gone else None,
            revocation_reason=None,
        )
        .responder_id(ocsp.OCSPResponderEncoding.HASH, ca.marble_root)
    )
    return builder.sign(ca.intermediate_key.load(), SHA384()).public_bytes(Encoding.DER)  # type: ignore[arg-type]


def joined(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(c.public_bytes(Encoding.PEM) for c in certificates)
