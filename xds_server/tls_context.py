# SPDX-License-Identifier: Apache-2.0
"""How the Coordinator's two public ports speak TLS: one pyOpenSSL context per server certificate.

Both ports want what neither the standard library nor grpcio can do: *ask* for a client certificate and accept any,
expired and self-signed ones included. On the client API a certificate is compared with the manifest's users, byte for
byte; on the Marble API it is proven by the quote that carries its hash. A chain check would prove nothing in either
case. What TLS itself proves, that the client holds the certificate's key, it still proves.

The default groups of OpenSSL 3 stay: they offer P-256, P-384 and P-521 besides X25519, which clients in FIPS mode need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from OpenSSL import SSL

from sds.keys import SigningKey

# TLS 1.2 without forward secrecy or AEAD is refused. The suites of TLS 1.3 are OpenSSL's own list.
CIPHERS_1_2 = b"ECDHE+AESGCM:ECDHE+CHACHA20"


@dataclass(frozen=True, slots=True, eq=False)
class ServerCredential:
    """What a port shows: certificates, leaf first, and the leaf's key. One object (by identity), one context."""

    chain: tuple[x509.Certificate, ...]
    key: SigningKey = field(repr=False)


CredentialProvider = Callable[[], ServerCredential | None]


def make_context(
    credential: ServerCredential, *, require_client_certificate: bool, alpn: Sequence[bytes]
) -> SSL.Context:
    """A server context for `credential`; raises SSL.Error if the key does not belong to the leaf."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(CIPHERS_1_2)
    # A resumed session would skip the certificate of this connection, which the quote is bound to.
    context.set_options(
        SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION | SSL.OP_CIPHER_SERVER_PREFERENCE
    )
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    mode = SSL.VERIFY_PEER | (SSL.VERIFY_FAIL_IF_NO_PEER_CERT if require_client_certificate else 0)
    context.set_verify(mode, _accept_any)
    context.use_certificate(credential.chain[0])
    for certificate in credential.chain[1:]:
        context.add_extra_chain_cert(certificate)
    context.use_privatekey(credential.key)
    context.check_privatekey()
    offered = tuple(alpn)

    def select(_connection: SSL.Connection, wanted: list[bytes]) -> bytes | object:
        return next((name for name in offered if name in wanted), SSL.NO_OVERLAPPING_PROTOCOLS)

    context.set_alpn_select_callback(select)  # type: ignore[arg-type]
    return context


def _accept_any(_connection: SSL.Connection, _certificate: object, _error: int, _depth: int, _ok: int) -> bool:
    return True


def reason_of(error: SSL.Error) -> str:
    """OpenSSL's words for what went wrong, without its file names."""
    if isinstance(error, SSL.SysCallError):
        return "connection cut during the handshake"
    queue = error.args[0] if error.args and isinstance(error.args[0], list) else []
    words = [entry[-1] for entry in queue if isinstance(entry, tuple) and entry and entry[-1]]
    if "http request" in words:
        return "plain http on a TLS port: use https"
    return "; ".join(words) or "tls protocol error"
