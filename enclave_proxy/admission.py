# SPDX-License-Identifier: Apache-2.0
"""Who may pass: what a finished or failed handshake means for a connection. Rules only, no sockets.

OpenSSL has verified the chain, the dates and the purpose of the peer's certificate before anything here is asked; what
is left is the name. A connection that is not admitted never reaches the app, not even as an accepted connection.
"""

from __future__ import annotations

from collections.abc import Callable

from cryptography import x509

from enclave_proxy.counters import Refusal
from enclave_proxy.errors import ProxyError
from enclave_proxy.relay_config import Membership, PeerRule, uris_of
from enclave_proxy.tls_library import ffi, lib
from sds.x509_errors import X509_ERRORS

# OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED (x509_vfy.h).
_DATE_ERRORS = (9, 10)
_EVERYBODY = Membership()
# What to tell OpenSSL of a peer that verifies and may not talk, so that it sends the nearest alert: certificate_revoked
# or bad_certificate (there is access_denied in TLS, but OpenSSL never sends it).
ALERTS: dict[Refusal, int] = {
    Refusal.REVOKED: lib.X509_V_ERR_CERT_REVOKED,
    Refusal.PEER_NOT_ALLOWED: lib.X509_V_ERR_CERT_REJECTED,
    Refusal.NO_CERTIFICATE: lib.X509_V_ERR_CERT_REJECTED,
}
# What OpenSSL says when the first bytes are no TLS record: an HTTP request, or anything else.
_PLAINTEXT = frozenset({"HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL"})


class Refused(ProxyError):
    """A connection that is not served: the reason to count and a text to log, without payload."""

    def __init__(self, reason: Refusal, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def admit(
    rule: PeerRule, certificate_der: bytes | None, membership: Membership = _EVERYBODY
) -> x509.Certificate | None:
    """The (verified) certificate of a peer that may talk, parsed; None: it showed none. Raises Refused."""
    try:
        certificate = None if certificate_der is None else x509.load_der_x509_certificate(certificate_der)
    except X509_ERRORS:
        raise Refused(Refusal.UNTRUSTED, "peer certificate cannot be read") from None
    if (refused := objection(rule, certificate, membership)) is not None:
        raise refused
    return certificate


def objection(rule: PeerRule, certificate: x509.Certificate | None, membership: Membership) -> Refused | None:
    """Why a peer may not talk, or no longer; None if it may.

    A peer without certificate gets here only where the listener does not require one; then there must be no rule that
    it would have to satisfy.
    """
    if certificate is None:
        if rule.matchers:
            return Refused(Refusal.NO_CERTIFICATE, "peer has no certificate, but only named peers may connect")
        return None
    if reason := _ambiguous(uris_of(certificate)):
        return Refused(Refusal.PEER_NOT_ALLOWED, reason)
    if (reason := _no_member(membership, certificate)) is not None:
        return Refused(Refusal.REVOKED, reason)
    if reason := rule.allows(certificate):
        return Refused(Refusal.PEER_NOT_ALLOWED, reason)
    return None


def _ambiguous(uris: list[str]) -> str | None:
    """SPIFFE: a certificate with a SPIFFE ID has no other URI name (X509-SVID, section 2). Otherwise it would be one
    thing to a rule and another to a log."""
    if len(uris) > 1 and any(uri.lower().startswith("spiffe:") for uri in uris):
        return f"peer has a SPIFFE ID among {len(uris)} URI names, and may have no other"
    return None


def _no_member(membership: Membership, certificate: x509.Certificate) -> str | None:
    for name in uris_of(certificate) if membership != _EVERYBODY else ():
        if name in membership.revoked:
            return f"peer was turned out of the mesh: {name}"
        if membership.types is not None and membership.types.lacks(name):
            return f"peer is of a type that the mesh does not have: {name[:512]}"
    return None


def failed_handshake(name: str, alert: int | None, *, greeted: bool = False) -> Refused:
    """What a failed handshake is counted as: `name` is OpenSSL's for the failure ("": the connection is gone), `alert`
    the code of the alert if the peer sent one, `greeted`: it began with a proper hello. No text of the peer's gets into
    the log."""
    if alert is not None:
        return Refused(Refusal.REFUSED_BY_PEER, f"peer refused the handshake: {name}")
    if not name or name == "UNEXPECTED_EOF_WHILE_READING":
        return Refused(Refusal.ABORTED, "peer went away during the handshake")
    if name == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return Refused(Refusal.NO_CERTIFICATE, "peer has no certificate")
    if name in _PLAINTEXT and not greeted:
        return Refused(Refusal.PLAINTEXT, "peer does not speak TLS")
    return Refused(Refusal.TLS_ERROR, f"handshake failed: {name}")


def failed_verification(code: int) -> Refused:
    """What a certificate is refused for that does not verify: `code` is OpenSSL's X509_V_ERR_…"""
    reason = Refusal.EXPIRED if code in _DATE_ERRORS else Refusal.UNTRUSTED
    text = ffi.string(lib.X509_verify_cert_error_string(code)).decode("ascii", "replace")
    return Refused(reason, f"peer certificate: {text}")


class LogBudget:
    """At most `per_second` lines in any second of `clock`, so that a port scan does not become a full disk."""

    def __init__(self, per_second: int, clock: Callable[[], float]) -> None:
        self._per_second = per_second
        self._clock = clock
        self._second = -1
        self._used = 0

    def take(self) -> bool:
        """Whether one more line may be written now."""
        second = int(self._clock())
        if second != self._second:
            self._second, self._used = second, 0
        self._used += 1
        return self._used <= self._per_second
