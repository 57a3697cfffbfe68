# SPDX-License-Identifier: Apache-2.0
"""Whether a peer's certificate ends in a trust bundle: OpenSSL's answer, remembered as long as it cannot change.

Verifying is the dearest part of a handshake (the mesh's CA is P-384: 0.4 ms of 0.9), and peers come again. The answer
depends on the certificate, the bundle and the time alone: a verifier belongs to one bundle and is thrown away with it,
an entry counts only between the dates of every certificate of the path, and nothing else is remembered: not whether the
peer may talk (that is asked anew each time), and no failure.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from enclave_proxy.tls_library import certificate_from, der_of, digest_of, ffi, lib, why
from sds.keys import MIN_RSA_BITS
from sds.material import MAX_CHAIN, TrustBundle
from sds.x509_errors import X509_ERRORS

# Peers remembered by one bundle: 1024 of about 4 KB. Who is forgotten costs one more verification.
REMEMBERED = 1024
# X509_PURPOSE_SSL_CLIENT and X509_PURPOSE_SSL_SERVER (x509v3.h): what the peer is to us.
CLIENT, SERVER = 1, 2

X509_V_OK = 0
UNABLE_TO_GET_ISSUER: int = lib.X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY
CHAIN_TOO_LONG: int = lib.X509_V_ERR_CERT_CHAIN_TOO_LONG
REJECTED: int = lib.X509_V_ERR_CERT_REJECTED
# X509_V_ERR_CA_MD_TOO_WEAK and X509_V_ERR_EE_KEY_TOO_SMALL (x509_vfy.h).
_WEAK_SIGNATURE, _WEAK_KEY = 68, 66
# X509_V_ERR_INVALID_PURPOSE
_PURPOSE = 26
_STRONG = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


@dataclass(frozen=True, slots=True)
class Verified:
    """A certificate whose path was verified, good between two points of Unix time (seconds)."""

    certificate: x509.Certificate
    not_before: float
    not_after: float


@dataclass(frozen=True, slots=True)
class NotVerified:
    """`code` is OpenSSL's X509_V_ERR_…; `missing_issuer`: certificates that the peer has sent along may mend it."""

    code: int
    missing_issuer: bool = False


class PeerVerifier:
    """Verifies leaves against one bundle, for one purpose."""

    def __init__(self, bundle: TrustBundle, purpose: int, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._known: OrderedDict[bytes, Verified] = OrderedDict()
        self._store = ffi.gc(lib.X509_STORE_new(), lib.X509_STORE_free)
        for anchor in bundle.certificates:
            if lib.X509_STORE_add_cert(self._store, certificate_from(anchor.public_bytes(Encoding.DER))) != 1:
                raise MemoryError(f"OpenSSL cannot take a trust anchor: {why()[0]}")
        # The bundle's certificates are the anchors, self-signed or not, as in Envoy; one without the CA flag can then
        # vouch for itself only.
        lib.X509_STORE_set_flags(self._store, lib.X509_V_FLAG_PARTIAL_CHAIN)
        lib.X509_STORE_set_purpose(self._store, purpose)
        self._subjects = {anchor.subject for anchor in bundle.certificates}

    def __len__(self) -> int:
        return len(self._known)

    def leaf(self, leaf: Any) -> Verified | NotVerified:
        """The answer for an `X509 *` without looking at what the peer has sent beside it."""
        digest = digest_of(leaf)
        known = self._known.get(digest)
        if known is not None and known.not_before <= self._clock() <= known.not_after:
            self._known.move_to_end(digest)
            return known
        self._known.pop(digest, None)
        return self._verify(digest, leaf, ())

    def chain(self, leaf: Any, others: Iterable[Any]) -> Verified | NotVerified:
        """The answer for a leaf with the certificates that the peer has sent beside it."""
        others = tuple(others)
        if len(others) > MAX_CHAIN:
            return NotVerified(CHAIN_TOO_LONG)
        return self._verify(digest_of(leaf), leaf, others)

    def _verify(self, digest: bytes, leaf: Any, others: tuple[Any, ...]) -> Verified | NotVerified:
        path = self._path(leaf, others)
        if isinstance(path, int):
            return NotVerified(path, path == UNABLE_TO_GET_ISSUER and not others and self._may_have_issuer(leaf))
        try:
            certificates = [x509.load_der_x509_certificate(der) for der in path]
            if code := _not_a_leaf(certificates[0]) or _weakness(certificates):
                return NotVerified(code)
        except X509_ERRORS:
            return NotVerified(REJECTED)
        verified = Verified(
            certificates[0],
            max(c.not_valid_before_utc.timestamp() for c in certificates),
            min(c.not_valid_after_utc.timestamp() for c in certificates),
        )
        self._known[digest] = verified
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return verified

    def _path(self, leaf: Any, others: tuple[Any, ...]) -> list[bytes] | int:
        """The verified path in DER, leaf first; or OpenSSL's code of what is wrong."""
        untrusted = ffi.gc(lib.sk_X509_new_null(), lib.sk_X509_free)
        for other in others:
            lib.sk_X509_push(untrusted, other)
        store = ffi.gc(lib.X509_STORE_CTX_new(), lib.X509_STORE_CTX_free)
        try:
            if lib.X509_STORE_CTX_init(store, self._store, leaf, untrusted) != 1:
                return int(lib.X509_V_ERR_OUT_OF_MEM)
            if lib.X509_verify_cert(store) != 1:
                return int(lib.X509_STORE_CTX_get_error(store)) or REJECTED
        finally:
            why()
        path = lib.X509_STORE_CTX_get1_chain(store)
        held = [ffi.gc(lib.sk_X509_value(path, i), lib.X509_free) for i in range(lib.sk_X509_num(path))]
        lib.sk_X509_free(path)
        return [der_of(certificate) for certificate in held]

    def _may_have_issuer(self, leaf: Any) -> bool:
        """Whether an intermediate certificate could lead from this leaf to the bundle.

        Not where the leaf names an anchor as its issuer and that anchor did not sign it: it is of another mesh, or of a
        key that is trusted no more, and the peer is to hear so in the handshake.
        """
        try:
            return x509.load_der_x509_certificate(der_of(leaf)).issuer not in self._subjects
        except X509_ERRORS:
            return False


def _not_a_leaf(certificate: x509.Certificate) -> int:
    """A peer that shows a CA could issue itself further names; SPIFFE forbids it (X509-SVID, 4.1 and 5.2)."""
    extensions = certificate.extensions
    with suppress(x509.ExtensionNotFound):
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return _PURPOSE
    with suppress(x509.ExtensionNotFound):
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        if usage.key_cert_sign or usage.crl_sign:
            return _PURPOSE
    return X509_V_OK


def _weakness(path: list[x509.Certificate]) -> int:
    """What a TLS library checks beside the path (its security level): keys and signatures of 112 bits or more."""
    for certificate in path:
        match certificate.public_key():
            case rsa.RSAPublicKey() as key if key.key_size < MIN_RSA_BITS:
                return _WEAK_KEY
            case ec.EllipticCurvePublicKey() as key if key.curve.key_size < 224:
                return _WEAK_KEY
    # The anchor is trusted for itself, its signature says nothing.
    for certificate in path[:-1]:
        algorithm = certificate.signature_hash_algorithm  # None: Ed25519 and its like
        if algorithm is not None and not isinstance(algorithm, _STRONG):
            return _WEAK_SIGNATURE
    return X509_V_OK
