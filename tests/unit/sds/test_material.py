# SPDX-License-Identifier: Apache-2.0
"""What our verifier accepts, and everything that a stock proxy would take although it should not."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from sds.ca import CertificateAuthority, pem_of
from sds.keys import PrivateKey
from sds.material import Identity, MaterialError, TrustBundle, check_bundle, check_identity
from sds.tls import client_context, server_context
from tests.kit.pki import HOUR, marble, now, odd_leaf, other_ca, private_key, shared_ca


def leaf_pem(identity: Identity) -> bytes:
    return pem_of(identity.leaf)


def test_a_good_identity_is_accepted() -> None:
    ca = shared_ca()
    check_identity(marble(ca), ca.bundle, now())
    check_identity(Identity(leaf_pem(good := marble(ca)), good.key), ca.bundle, now())


def test_an_anchor_that_stands_in_the_chain_is_enough() -> None:
    ca = shared_ca()
    good = marble(ca)
    check_identity(good, TrustBundle(pem_of(ca.intermediate)), now())
    check_identity(Identity(good.chain + pem_of(ca.root), good.key), TrustBundle(pem_of(ca.root)), now())


BAD: list[tuple[Callable[[CertificateAuthority], Identity], str]] = [
    (lambda ca: odd_leaf(ca, not_before=now() - 2 * HOUR, not_after=now() - HOUR), "leaf expired at"),
    (lambda ca: odd_leaf(ca, not_before=now() + HOUR, not_after=now() + 2 * HOUR), "leaf is not valid before"),
    (lambda ca: odd_leaf(ca, is_ca=True), "leaf is a CA"),
    (lambda ca: odd_leaf(ca, usages=[ExtendedKeyUsageOID.SERVER_AUTH]), "lacks clientAuth"),
    (lambda ca: odd_leaf(ca, usages=[ExtendedKeyUsageOID.CLIENT_AUTH]), "lacks serverAuth"),
    (lambda ca: odd_leaf(ca, self_signed=True), "does not end in the trust bundle"),
    (lambda ca: marble(other_ca()), "does not end in the trust bundle"),
    (lambda ca: Identity((m := marble(ca)).chain + pem_of(ca.marble_root), m.key), "not in order at certificate 2"),
    (lambda ca: Identity(leaf_pem(m := marble(ca)) + leaf_pem(m), m.key), "not in order at certificate 1"),
    (lambda ca: Identity(leaf_pem(m := marble(ca)) + pem_of(ca.root), m.key), "not in order at certificate 1"),
]


@pytest.mark.parametrize(("make", "why"), BAD)
def test_a_bad_identity_is_refused(make: Callable[[CertificateAuthority], Identity], why: str) -> None:
    ca = shared_ca()
    with pytest.raises(MaterialError, match=why):
        check_identity(make(ca), ca.bundle, now())


def test_an_identity_at_rest_is_the_same_one_and_as_good() -> None:
    ca = shared_ca()
    good = marble(ca)
    rest = good.at_rest()
    assert (rest, hash(rest), rest.certificates) == (good, hash(good), good.certificates)
    assert (rest.not_before, rest.not_after) == (good.not_before, good.not_after)
    assert rest.certificates is not rest.certificates, "nothing parsed is kept"
    used = rest.in_use()
    assert used == good
    assert used.certificates is used.certificates
    assert good.in_use() is good
    check_identity(rest, ca.bundle, now())


def test_time_is_the_callers() -> None:
    ca = shared_ca()
    identity = marble(ca)
    with pytest.raises(MaterialError, match="expired"):
        check_identity(identity, ca.bundle, identity.not_after + timedelta(seconds=1))
    with pytest.raises(MaterialError, match="not valid before"):
        check_identity(identity, ca.bundle, identity.not_before - timedelta(seconds=1))


def test_a_key_of_another_identity_is_refused() -> None:
    ca = shared_ca()
    with pytest.raises(MaterialError, match="does not belong to the first certificate"):
        Identity(marble(ca).chain, marble(ca).key)


def test_a_chain_in_wrong_order_is_refused() -> None:
    ca = shared_ca()
    good = marble(ca)
    with pytest.raises(MaterialError, match="does not belong to the first certificate"):
        Identity(pem_of(ca.intermediate) + leaf_pem(good), good.key)


NOT_CERTIFICATES = [b"", b"  \n", b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]


@pytest.mark.parametrize("pem", NOT_CERTIFICATES)
def test_what_is_no_certificate_is_neither_a_bundle_nor_a_chain(pem: bytes) -> None:
    with pytest.raises(MaterialError):
        TrustBundle(pem)
    with pytest.raises(MaterialError):
        Identity(pem, shared_ca().root_key)


@pytest.mark.parametrize("extra", [b"x", b"-----BEGIN CERTIFICATE-----\n", b"-----BEGIN EC PRIVATE KEY-----\n"])
def test_nothing_else_may_stand_beside_certificates(extra: bytes) -> None:
    pem = pem_of(shared_ca().root)
    for text in (pem + extra, extra + b"\n" + pem, pem + extra + b"\n" + pem):
        with pytest.raises(MaterialError, match="plain sequence"):
            TrustBundle(text)


def test_cut_certificates_are_refused() -> None:
    pem = pem_of(shared_ca().root)
    lines = pem.splitlines(keepends=True)
    with pytest.raises(MaterialError, match="cannot be parsed"):
        TrustBundle(b"".join(lines[:4] + lines[5:]))


def test_size_and_number_are_bounded() -> None:
    pem = pem_of(shared_ca().root)
    with pytest.raises(MaterialError, match="at most 64"):
        TrustBundle(pem * 65)
    with pytest.raises(MaterialError, match="bytes, at most"):
        TrustBundle(pem * 5000)


@given(st.binary(max_size=200))
def test_no_bytes_make_a_bundle_but_certificates(data: bytes) -> None:
    with pytest.raises(MaterialError):
        TrustBundle(data)


def test_a_good_bundle_is_accepted() -> None:
    check_bundle(shared_ca().bundle, now())
    check_bundle(TrustBundle(shared_ca().bundle.pem + other_ca().bundle.pem), now())


def test_a_leaf_is_no_ca() -> None:
    ca = shared_ca()
    with pytest.raises(MaterialError, match="certificate 2: certificate is not a CA"):
        check_bundle(TrustBundle(ca.bundle.pem + leaf_pem(marble(ca))), now())


def test_a_pinned_leaf_needs_a_ca_beside_it() -> None:
    ca = shared_ca()
    pin = odd_leaf(ca, self_signed=True).chain
    check_bundle(TrustBundle(ca.bundle.pem + pin), now(), pinned_leaves=True)
    with pytest.raises(MaterialError, match="no CA"):
        check_bundle(TrustBundle(pin), now(), pinned_leaves=True)


def test_a_bundle_is_good_only_while_all_of_it_is_valid() -> None:
    ca = shared_ca()
    with pytest.raises(MaterialError, match="certificate 1 is not valid before"):
        check_bundle(ca.bundle, ca.marble_root.not_valid_before_utc - HOUR)
    with pytest.raises(MaterialError, match="certificate 1 expired"):
        check_bundle(ca.bundle, ca.marble_root.not_valid_after_utc + HOUR)


def self_signed_ca(*extensions: x509.ExtensionType) -> TrustBundle:
    return TrustBundle(odd_leaf(shared_ca(), is_ca=True, self_signed=True, extensions=extensions).chain)


def test_a_ca_that_may_not_sign_is_refused() -> None:
    usage = x509.KeyUsage(True, False, False, False, False, False, True, False, False)
    with pytest.raises(MaterialError, match="lacks keyCertSign"):
        check_bundle(self_signed_ca(usage), now())


def test_weak_and_foreign_keys_are_refused() -> None:
    weak = private_key(rsa.generate_private_key(65537, 1024))
    with pytest.raises(MaterialError, match="1024 bits"):
        weak.load()
    with pytest.raises(MaterialError, match="cannot sign"):
        private_key(dsa.generate_private_key(2048)).load()
    small = private_key(ec.generate_private_key(ec.SECP192R1()))
    with pytest.raises(MaterialError, match="192 bits"):
        check_bundle(TrustBundle(odd_leaf(shared_ca(), is_ca=True, self_signed=True, key=small).chain), now())


def test_an_encrypted_key_and_no_key_are_refused_without_quoting_them() -> None:
    key = PrivateKey.generate_p256().load()
    encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    for pem in (encrypted, b"hush", b"", b"x" * 20_000):
        with pytest.raises(MaterialError) as caught:
            PrivateKey(pem).load()
        assert "hush" not in str(caught.value)
        assert "ENCRYPTED" not in str(caught.value)


@pytest.mark.parametrize("make", [make for make, _ in BAD if make is not BAD[2][0] and make is not BAD[7][0]])
def test_what_is_refused_here_fails_in_a_real_handshake_too(make: Callable[[CertificateAuthority], Identity]) -> None:
    """As server or as client. Not among them: a CA as leaf, which OpenSSL takes, and a needless chain certificate."""
    ca = shared_ca()
    good, bad = marble(ca), make(ca)
    broken = [
        pair
        for pair in ((bad, good), (good, bad))
        if not shakes_hands(
            server_context(pair[0], ca.bundle, require_client_certificate=True), client_context(pair[1], ca.bundle)
        )
    ]
    # A leaf with a wrong neighbour is still accepted by a peer that holds its issuer: our rule is the stricter one.
    assert broken or len(bad.certificates) == 2


def shakes_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> bool:
    """A whole handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_side=False),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    pending = set(ends)
    for _ in range(10):
        for end in list(pending):
            try:
                end.do_handshake()
                pending.discard(end)
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError:
                return False
    return not pending


def test_good_identities_shake_hands() -> None:
    ca = shared_ca()
    server = server_context(marble(ca), ca.bundle, require_client_certificate=True)
    assert shakes_hands(server, client_context(marble(ca), ca.bundle))
