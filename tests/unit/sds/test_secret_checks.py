# SPDX-License-Identifier: Apache-2.0
"""Which secrets are never published. One row per case: what Envoy 1.40 takes although it is dangerous, what it refuses
(and then keeps the old one without a word to whoever runs the control plane), and what is good."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID
from google.protobuf.any_pb2 import Any
from hypothesis import given
from hypothesis import strategies as st

from sds.keys import PrivateKey
from sds.resources import CLUSTER, REVOKED_NAME, SECRET, Resource, bundle_secret, identity_secret, revoked_secret
from sds.secret_checks import SecretRefused, check_secret
from sds.spiffe_validator import spiffe_validator_secret
from sds.wire import envoy_pb2
from sds.wire import secret_pb2 as pb
from tests.kit.pki import HOUR, marble, now, odd_leaf, other_ca, private_key, shared_ca
from tests.kit.secrets import (
    certificate,
    encrypted,
    inline,
    joined,
    revocation_list,
    secret,
    self_signed,
    staple,
    trust,
    validator,
    weak_key,
)

CA, OTHER = shared_ca(), other_ca()
GOOD = marble(CA)
ID = str(GOOD.spiffe_id)
DOMAIN = GOOD.spiffe_id.trust_domain
ROOT = CA.bundle.pem
WEAK_CA = self_signed(rsa.generate_private_key(65537, 1024))
OLD_CA = self_signed(ec.generate_private_key(ec.SECP256R1()), not_before=now() - 2 * HOUR, not_after=now() - HOUR)
NEXT_CA = self_signed(ec.generate_private_key(ec.SECP256R1()), not_before=now() + HOUR, not_after=now() + 2 * HOUR)
NO_CA = self_signed(ec.generate_private_key(ec.SECP256R1()), ca=False)
OLD_PIN = self_signed(
    ec.generate_private_key(ec.SECP256R1()), ca=False, not_before=now() - 2 * HOUR, not_after=now() - HOUR
)


def own(name: str = "default", **parts: bytes) -> Resource:
    return secret(name, certificate(GOOD, **parts))


def root(name: str = "ROOTCA", pem: bytes | None = ROOT, **more: Any) -> Resource:
    return secret(name, trust(pem, **more))


def with_unknown_field() -> Resource:
    good = own()
    return replace(good, body=good.body + b"\x62\x00")  # field 12


def allows_expired() -> Resource:
    """`allow_expired_certificate: true`: a field of Envoy's that nothing here may set."""
    context = trust(ROOT).SerializeToString() + b"\x40\x01"
    return Resource(
        SECRET, "ROOTCA", "1", b"\x0a\x06ROOTCA\x22" + bytes([0x80 | len(context) & 0x7F, len(context) >> 7]) + context
    )


def foreign_validator() -> Resource:
    return secret("v", validator(("td.test", ROOT), name="envoy.tls.cert_validator.unheard_of"))


# Made when the test runs, so that a slow key does not slow down everybody else's collection.
DANGEROUS: dict[str, tuple[str, Callable[[], Resource]]] = {
    "expired certificate": (
        "chain",
        lambda: secret("x", certificate(odd_leaf(CA, not_after=now() - timedelta(minutes=1)))),
    ),
    "certificate of tomorrow": (
        "chain",
        lambda: secret("x", certificate(odd_leaf(CA, not_before=now() + timedelta(minutes=1)))),
    ),
    "leaf and garbage behind it": ("chain", lambda: own("x", chain=GOOD.chain + b"garbage")),
    "leaf and half a certificate": ("chain", lambda: own("x", chain=GOOD.chain[:-40])),
    "expired CA": ("bundle", lambda: root(pem=joined([OLD_CA]))),
    "expired CA beside a good one": ("bundle", lambda: root(pem=ROOT + joined([OLD_CA]))),
    "CA of tomorrow": ("bundle", lambda: root(pem=joined([NEXT_CA]))),
    "leaf as CA": ("bundle", lambda: root(pem=joined([GOOD.leaf]))),
    "leaf beside a CA": ("bundle", lambda: root(pem=ROOT + joined([NO_CA]))),
    "no CA at all": ("bundle", lambda: root(pem=None)),
    "pinned leaves and no CA": ("bundle", lambda: root("ROOTCA|443", joined([NO_CA]))),
    "garbage CRL": ("crl", lambda: root(crl=b"-----BEGIN X509 CRL-----\nZ2FyYmFnZQ==\n-----END X509 CRL-----\n")),
    "CRL that is no PEM": ("crl", lambda: root(crl=b"garbage")),
    "CRL and garbage behind it": ("crl", lambda: root(crl=revocation_list(CA) + b"garbage")),
    "CRL that does not cover every CA": ("crl", lambda: root(pem=ROOT + OTHER.bundle.pem, crl=revocation_list(CA))),
    "CRL of another CA": ("crl", lambda: root(crl=revocation_list(OTHER))),
    "outdated CRL": ("crl", lambda: root(crl=revocation_list(CA, end=now() - timedelta(minutes=1)))),
    "SPIFFE validator without a trust domain": ("validator", lambda: secret("ALL", validator())),
    "SPIFFE validator with a scheme": ("validator", lambda: secret("ALL", validator(("spiffe://td.test", ROOT)))),
    "identity that is a CA": ("chain", lambda: secret("default", certificate(odd_leaf(CA, is_ca=True)))),
    "identity of another name": ("name", lambda: secret(ID, certificate(marble(CA)))),
    "identity without a SPIFFE ID": ("name", lambda: secret(ID, certificate(odd_leaf(CA, uris=())))),
    "identity that cannot be a client": (
        "chain",
        lambda: secret("default", certificate(odd_leaf(CA, usages=[ExtendedKeyUsageOID.SERVER_AUTH]))),
    ),
    "OCSP staple about another certificate": ("ocsp", lambda: own(staple=staple(CA, marble(CA).leaf))),
    "OCSP staple that revokes": ("ocsp", lambda: own(staple=staple(CA, GOOD.leaf, status=ocsp.OCSPCertStatus.REVOKED))),
    "outdated OCSP staple": ("ocsp", lambda: own(staple=staple(CA, GOOD.leaf, end=now() - timedelta(minutes=1)))),
    "expired certificates allowed": ("field", allows_expired),
    "unknown field": ("field", with_unknown_field),
    "unknown validator": ("validator", foreign_validator),
    "list of ours that says something else": (
        "list",
        lambda: secret(REVOKED_NAME, pb.GenericSecret(secret=inline(b"x"))),
    ),
}
REFUSED: dict[str, tuple[str, Callable[[], Resource]]] = {
    "RSA of 1024 bits": ("key", lambda: own("x", key=weak_key().pem)),
    "CA with RSA of 1024 bits": ("bundle", lambda: root(pem=joined([WEAK_CA]))),
    "key of another certificate": ("chain", lambda: own("x", key=marble(CA).key.pem)),
    "chain in the wrong order": ("chain", lambda: own("x", chain=joined(GOOD.certificates[::-1]))),
    "chain with a stranger in it": ("chain", lambda: own("x", chain=joined([GOOD.leaf, OTHER.intermediate]))),
    "empty chain": ("chain", lambda: own("x", chain=b"")),
    "blank chain": ("chain", lambda: own("x", chain=b"\n")),
    "garbage chain": ("chain", lambda: own("x", chain=b"garbage")),
    "missing key": ("key", lambda: own("x", key=b"")),
    "garbage key": ("key", lambda: own("x", key=b"garbage")),
    "encrypted key without a password": ("key", lambda: own("x", key=encrypted(GOOD.key, b"open"))),
    "encrypted key with a wrong password": (
        "key",
        lambda: own("x", key=encrypted(GOOD.key, b"open"), password=b"shut"),
    ),
    "garbage OCSP staple": ("ocsp", lambda: own(staple=b"garbage")),
    "empty bundle": ("bundle", lambda: root(pem=b"")),
    "blank bundle": ("bundle", lambda: root(pem=b"\n")),
    "garbage bundle": ("bundle", lambda: root(pem=b"garbage")),
    "CRL without CA": ("bundle", lambda: root(pem=None, crl=revocation_list(CA))),
    "duplicate trust domain": ("validator", lambda: secret("ALL", validator(("td.test", ROOT), ("td.test", ROOT)))),
    "trust domain with an empty bundle": ("validator", lambda: secret("ALL", validator(("td.test", b"")))),
    "trust domain with a garbage bundle": ("validator", lambda: secret("ALL", validator(("td.test", b"garbage")))),
    "session ticket key of 48 bytes": (
        "ticket_keys",
        lambda: secret("t", pb.TlsSessionTicketKeys(keys=[inline(bytes(48))])),
    ),
    "no session ticket key": ("ticket_keys", lambda: secret("t", pb.TlsSessionTicketKeys())),
    "another name inside": ("name", lambda: secret("default", certificate(GOOD), called="zzz")),
    "no name inside": ("name", lambda: secret("default", certificate(GOOD), called="")),
    "bundle where an identity belongs": ("kind", lambda: root("default")),
    "bundle under the name of an instance": ("kind", lambda: root(ID)),
    "identity where a bundle belongs": ("kind", lambda: own("ROOTCA")),
    "identity under the name of a trust domain": ("kind", lambda: own(f"spiffe://{DOMAIN}")),
    "identity where the bundle of a port belongs": ("kind", lambda: own("ROOTCA|443")),
    "generic secret where an identity belongs": (
        "kind",
        lambda: secret("default", pb.GenericSecret(secret=inline(b"x"))),
    ),
    "empty generic secret": ("generic", lambda: secret("g", pb.GenericSecret())),
    "secret without content": ("kind", lambda: Resource(SECRET, "x", "1", pb.Secret(name="x").SerializeToString())),
    "resource of another type": ("kind", lambda: replace(own(), type_url=CLUSTER)),
    "noise": ("malformed", lambda: replace(own(), body=b"\xff" * 20)),
    "cut off": ("malformed", lambda: replace(own(), body=own().body[:-1])),
    "more than any secret is": ("size", lambda: replace(own(), body=bytes(3 * 1024 * 1024))),
    "a name that is nearly a SPIFFE ID": ("name", lambda: own("spiffe://UPPER.test/x")),
}


@pytest.mark.parametrize("case", DANGEROUS)
def test_what_envoy_takes_although_it_is_dangerous_never_leaves(case: str) -> None:
    refused(*DANGEROUS[case])


@pytest.mark.parametrize("case", REFUSED)
def test_what_envoy_refuses_never_leaves(case: str) -> None:
    refused(*REFUSED[case])


def refused(part: str, make: Callable[[], Resource]) -> None:
    resource = make()
    with pytest.raises(SecretRefused) as caught:
        check_secret(resource, now())
    assert caught.value.part == part, caught.value
    assert "BEGIN" not in str(caught.value)
    assert "garbage" not in str(caught.value)


def of_key(key: PrivateKey) -> Resource:
    return secret("x", certificate(odd_leaf(CA, key=key)))


def sec1() -> bytes:
    return GOOD.key.load().private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


FINE: dict[str, Callable[[], Resource]] = {
    "identity": lambda: identity_secret("default", GOOD),
    "identity by its name": lambda: identity_secret(ID, GOOD),
    "bundle": lambda: bundle_secret("ROOTCA", CA.bundle),
    "bundle by its trust domain": lambda: bundle_secret(f"spiffe://{DOMAIN}", CA.bundle),
    "bundle of a port with a gateway's own certificate": lambda: root("ROOTCA|443", ROOT + joined([NO_CA])),
    "the same when the gateway's certificate has expired": lambda: root("ROOTCA|443", ROOT + joined([OLD_PIN])),
    "two roots while one replaces the other": lambda: root(pem=ROOT + OTHER.bundle.pem),
    "nobody turned out": lambda: revoked_secret([]),
    "somebody turned out": lambda: revoked_secret([ID]),
    "P-384": lambda: of_key(PrivateKey.generate_p384()),
    "P-521": lambda: of_key(private_key(ec.generate_private_key(ec.SECP521R1()))),
    "Ed25519": lambda: of_key(private_key(ed25519.Ed25519PrivateKey.generate())),
    "RSA of 2048 bits": lambda: of_key(private_key(rsa.generate_private_key(65537, 2048))),
    "key in SEC 1": lambda: own(key=sec1()),
    "encrypted key with its password": lambda: own(key=encrypted(GOOD.key, b"open"), password=b"open"),
    "identity of a Coordinator that gives no SPIFFE IDs": lambda: secret("default", certificate(odd_leaf(CA, uris=()))),
    "certificate of a user, without a SPIFFE ID": lambda: secret("tls", certificate(odd_leaf(CA, uris=()))),
    "OCSP staple": lambda: own(staple=staple(CA, GOOD.leaf)),
    "a CRL for the one CA": lambda: root(crl=revocation_list(CA)),
    "a CRL for each CA": lambda: root(pem=ROOT + OTHER.bundle.pem, crl=revocation_list(CA) + revocation_list(OTHER)),
    "a CRL for leaves only": lambda: root(pem=ROOT + OTHER.bundle.pem, crl=revocation_list(CA), leaves_only=True),
    "SPIFFE validator": lambda: spiffe_validator_secret("ALL", {DOMAIN: CA.bundle, "other.test": OTHER.bundle}),
    "session ticket keys": lambda: secret("t", pb.TlsSessionTicketKeys(keys=[inline(bytes(80)), inline(bytes(80))])),
    "generic secret": lambda: secret("g", pb.GenericSecret(secret=inline(b"token"))),
}


@pytest.mark.parametrize("case", FINE)
def test_what_is_good_leaves(case: str) -> None:
    check_secret(FINE[case](), now())


def test_a_certificate_that_expires_is_refused_from_then_on() -> None:
    resource = own()
    check_secret(resource, GOOD.not_after)
    with pytest.raises(SecretRefused, match="expired"):
        check_secret(resource, GOOD.not_after + timedelta(seconds=1))


@given(st.binary(max_size=200), st.integers(0, 400))
def test_whatever_the_bytes_they_are_refused_or_fine(noise: bytes, at: int) -> None:
    good = own()
    for body in (noise, good.body[:at] + noise + good.body[at:]):
        with suppress(SecretRefused):
            check_secret(replace(good, body=body), now())


def test_the_worker_reads_what_is_published_to_it() -> None:
    """The messages of the check and those of the worker are two lists of the same fields."""
    assert envoy_pb2.Secret.FromString(own().body).tls_certificate.certificate_chain.inline_bytes == GOOD.chain
