# SPDX-License-Identifier: Apache-2.0
"""Keys that stay on a PKCS#11 token (smart card, HSM): for client authentication and for recovery.

Each operation opens a session, logs in and logs out again, so that nothing has to be closed and no login outlives its
use. All calls block (a token may take seconds); callers use a thread. python-pkcs11 is an optional extra and imported
at the first use.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from marblemesh.client.errors import TokenError
from marblemesh.client.oaep import unpad
from marblemesh.client.token_config import TokenConfig, TokenObject

if TYPE_CHECKING:
    import pkcs11

# Login is a property of the process, not of a session: the end of one session would end another's login.
_ONE_AT_A_TIME = threading.Lock()
# ASN.1 of DigestInfo for SHA-256 (RFC 8017, 9.2 note 1). Every token signs a given DigestInfo; not every token hashes.
_SHA256_DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")
_HASHES: dict[int, hashes.HashAlgorithm] = {32: hashes.SHA256(), 48: hashes.SHA384(), 64: hashes.SHA512()}
_CURVES = {256: "ECDSA-SECP256R1-SHA256", 384: "ECDSA-SECP384R1-SHA384", 521: "ECDSA-SECP521R1-SHA512"}
_PSS = ("RSA-PSS-RSAE-SHA256", "RSA-PSS-RSAE-SHA384", "RSA-PSS-RSAE-SHA512")


class TokenRecoveryKey:
    """The private half of a recovery key on a token. See `recovery.RecoveryKey`."""

    def __init__(self, config: TokenConfig, key: TokenObject) -> None:
        self._config, self._key = config, key

    def decrypt(self, ciphertext: bytes) -> bytes:
        """RSA-OAEP with SHA-256. Raises TokenError, also if the ciphertext is for another key."""

        def operation(p11: Any, key: Any) -> bytes:
            exceptions = (p11.MechanismInvalid, p11.MechanismParamInvalid, p11.ArgumentsBad, p11.FunctionNotSupported)
            parameters = (p11.Mechanism.SHA256, p11.MGF.SHA256, None)
            try:
                done = key.decrypt(ciphertext, mechanism=p11.Mechanism.RSA_PKCS_OAEP, mechanism_param=parameters)
            except exceptions:
                # OAEP with SHA-1 alone, or none at all (SoftHSM 2.6): the token computes, the padding is undone here.
                done = unpad(bytes(key.decrypt(ciphertext, mechanism=p11.Mechanism.RSA_X_509)))
            return bytes(done)

        try:
            return _with_key(self._config, self._key, "RSA", operation)
        except ValueError:
            raise TokenError("the recovery secret was not encrypted for this key") from None

    def sign(self, message: bytes) -> bytes:
        """RSASSA-PKCS1-v1_5 with SHA-256. Raises TokenError."""
        digest = hashes.Hash(hashes.SHA256())
        digest.update(message)
        info = _SHA256_DIGEST_INFO + digest.finalize()
        return _with_key(
            self._config, self._key, "RSA", lambda p11, key: bytes(key.sign(info, mechanism=p11.Mechanism.RSA_PKCS))
        )


class TokenIdentity:
    """A user of the manifest whose certificate and key are on a token. `gnutls.HandshakeKey` besides."""

    def __init__(self, config: TokenConfig, *, certificate: TokenObject, key: TokenObject) -> None:
        """Read the certificate. Raises TokenError."""
        self._config, self._key = config, key
        self.certificate = _certificate(config, certificate)
        self._schemes: tuple[str, ...]
        public = self.certificate.public_key()
        if isinstance(public, rsa.RSAPublicKey):
            self.kind, self._schemes = "RSA", _PSS
        elif isinstance(public, ec.EllipticCurvePublicKey) and public.key_size in _CURVES:
            self.kind, self._schemes = "EC", (_CURVES[public.key_size],)
        else:
            raise TokenError("the certificate on the token has a key that TLS cannot use here: want RSA, P-256 … P-521")
        self._public: rsa.RSAPublicKey | ec.EllipticCurvePublicKey = public
        self.bits = public.key_size

    @property
    def chain(self) -> tuple[bytes, ...]:
        """DER, leaf first. A Coordinator compares the leaf with its manifest's users and needs no more."""
        return (self.certificate.public_bytes(Encoding.DER),)

    def can_sign(self, scheme: str) -> bool:
        return scheme in self._schemes

    def sign_digest(self, scheme: str, digest: bytes) -> bytes:
        """A handshake's signature. Raises TokenError, also if the key does not belong to the certificate."""
        algorithm = _HASHES.get(len(digest))
        if not self.can_sign(scheme) or algorithm is None:
            raise TokenError(f"the token's key cannot sign by {scheme or 'an unknown scheme'}")

        def operation(p11: Any, key: Any) -> bytes:
            if self.kind == "EC":
                raw = bytes(key.sign(digest, mechanism=p11.Mechanism.ECDSA))
                half = len(raw) // 2
                return encode_dss_signature(int.from_bytes(raw[:half]), int.from_bytes(raw[half:]))
            name = algorithm.name.upper()
            parameters = (p11.Mechanism[name], p11.MGF[name], algorithm.digest_size)
            return bytes(key.sign(digest, mechanism=p11.Mechanism.RSA_PKCS_PSS, mechanism_param=parameters))

        signature = _with_key(self._config, self._key, self.kind, operation)
        self._check(signature, digest, algorithm)
        return signature

    def _check(self, signature: bytes, digest: bytes, algorithm: hashes.HashAlgorithm) -> None:
        try:
            if isinstance(self._public, rsa.RSAPublicKey):
                pss = padding.PSS(padding.MGF1(algorithm), algorithm.digest_size)
                self._public.verify(signature, digest, pss, Prehashed(algorithm))
            else:
                self._public.verify(signature, digest, ec.ECDSA(Prehashed(algorithm)))
        except InvalidSignature:
            raise TokenError(f"the token's key with {self._key} does not belong to its certificate") from None


def _certificate(config: TokenConfig, wanted: TokenObject) -> x509.Certificate:
    with _session(config) as (p11, session):
        found = _one(p11, session, p11.ObjectClass.CERTIFICATE, wanted, "certificate")
        der = bytes(found[p11.Attribute.VALUE])
    try:
        return x509.load_der_x509_certificate(der)
    except (ValueError, x509.InvalidVersion):
        raise TokenError(f"the certificate with {wanted} on the token is no X.509 certificate") from None


def _with_key(config: TokenConfig, wanted: TokenObject, kind: str, operation: Callable[[Any, Any], bytes]) -> bytes:
    with _session(config) as (p11, session):
        key = _one(p11, session, p11.ObjectClass.PRIVATE_KEY, wanted, "private key")
        if key.key_type is not p11.KeyType[kind]:
            raise TokenError(f"the private key with {wanted} is of type {key.key_type.name}, want {kind}")
        return operation(p11, key)


def _one(p11: Any, session: Any, kind: Any, wanted: TokenObject, what: str) -> Any:
    attributes = {p11.Attribute.CLASS: kind}
    if wanted.id is not None:
        attributes[p11.Attribute.ID] = wanted.id
    if wanted.label is not None:
        attributes[p11.Attribute.LABEL] = wanted.label
    found = list(session.get_objects(attributes))
    if len(found) != 1:
        count = "no" if not found else f"{len(found)} times a"
        raise TokenError(f"the token has {count} {what} with {wanted}")
    return found[0]


@contextmanager
def _session(config: TokenConfig) -> Iterator[tuple[Any, pkcs11.Session]]:
    """python-pkcs11 and a session that is logged in, with its errors as TokenError."""
    try:
        import pkcs11
    except ImportError:
        raise TokenError("keys on a PKCS#11 token need python-pkcs11: pip install 'marblemesh[pkcs11]'") from None
    with _ONE_AT_A_TIME:
        try:
            token = _token(pkcs11, config)
            try:
                session = token.open(user_pin=config.pin)
            except pkcs11.UserAlreadyLoggedIn:
                session = token.open()  # the program around us logged in; its login also counts here
            with session:
                yield pkcs11, session
        except pkcs11.PKCS11Error as error:
            raise TokenError(_explain(pkcs11, error)) from None


def _token(p11: Any, config: TokenConfig) -> Any:
    try:
        slots = p11.lib(config.path).get_slots(token_present=True)
    except p11.PKCS11Error as error:
        reason = str(error).partition("while loading ")[2] or type(error).__name__
        raise TokenError(f"the PKCS#11 module {config.path!r} cannot be used: {reason}") from None
    serial = config.token_serial.encode() if config.token_serial is not None else None
    labels = []
    for slot in slots:
        token = slot.get_token()
        labels.append(token.label)
        chosen = (
            slot.slot_id == config.slot_number
            or (serial is not None and token.serial.rstrip(b"\0 ") == serial)
            or (config.token_label is not None and token.label == config.token_label)
        )
        if chosen:
            return token
    seen = ", ".join(repr(label) for label in labels if label) or "none"
    raise TokenError(f"the PKCS#11 module {config.path!r} has no such token; the labels of those it has: {seen}")


def _explain(p11: Any, error: Exception) -> str:
    match error:
        case p11.PinIncorrect() | p11.PinInvalid() | p11.PinLenRange():
            return "the token refuses the PIN of the PKCS#11 config; it locks itself after a few wrong ones"
        case p11.PinLocked():
            return "the token has locked itself after too many wrong PINs: its security officer can unlock it"
        case p11.EncryptedDataInvalid() | p11.EncryptedDataLenRange():
            return "the recovery secret was not encrypted for this key"
        case p11.MechanismInvalid() | p11.MechanismParamInvalid() | p11.KeyTypeInconsistent():
            return f"the token cannot do this with this key: {type(error).__name__}"
        case _:
            detail = f": {error}" if str(error) else ""
            return f"the token failed: {type(error).__name__}{detail}"
