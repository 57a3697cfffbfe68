# SPDX-License-Identifier: Apache-2.0
"""TLS contexts of the relay, from identities and bundles that never leave memory. One that serves is never changed.

OpenSSL itself checks what it is good at (versions, signatures of the handshake, purpose, dates, key strength) and asks
back about the rest (`tls_stream`): its own store stays empty and its path building is turned off, so that a certificate
that was verified before is not verified again, and one that may not talk is refused inside the handshake. Should a
library build paths all the same, it costs time and changes no answer: ours counts.

No session is ever resumed: a resumed session skips the certificate. The server keeps none, so that the tickets which
OpenSSL sends (their number cannot be set through these bindings) are worth nothing.
"""

from __future__ import annotations

from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from enclave_proxy.relay_config import TlsOptions
from enclave_proxy.tls_callbacks import choose_protocol, verify_peer
from enclave_proxy.tls_library import certificate_from, ffi, lib, read_bio, why
from enclave_proxy.tls_verify import CLIENT, SERVER, PeerVerifier
from sds.keys import MaterialError
from sds.material import Identity, TrustBundle

# TLS1_2_VERSION and TLS1_3_VERSION (RFC 8446, 4.1.2).
_VERSIONS = {"1.2": 0x0303, "1.3": 0x0304}
# Of TLS 1.2, what 1.3 has kept: ephemeral keys and authenticated encryption (RFC 9325, 4.2). 1.3 has its own list.
_SUITES_1_2 = b"ECDHE+AESGCM:ECDHE+CHACHA20"
# Below zero no path is built; see above.
_NO_PATH = -2


class TlsContext:
    """What one side of handshakes is made from. `verifier` None: peers are not asked for a certificate."""

    def __init__(self, handle: Any, identity: Identity, options: TlsOptions, verifier: PeerVerifier | None) -> None:
        if handle == ffi.NULL:
            raise MaterialError(f"no TLS context can be made: {why()[0]}")
        self.handle = ffi.gc(handle, lib.SSL_CTX_free)
        self.verifier = verifier
        self.protocols = _wire(options.alpn)
        if (
            lib.SSL_CTX_set_min_proto_version(self.handle, _VERSIONS[options.minimum]) != 1
            or lib.SSL_CTX_set_max_proto_version(self.handle, _VERSIONS["1.3"]) != 1
        ):
            raise MaterialError(f"TLS {options.minimum} cannot be had: {why()[0]}")
        if lib.SSL_CTX_set_cipher_list(self.handle, _SUITES_1_2) != 1:
            raise MaterialError(f"TLS 1.2 has none of the wanted cipher suites: {why()[0]}")
        no = lib.SSL_OP_NO_TICKET | lib.SSL_OP_NO_RENEGOTIATION | lib.SSL_OP_NO_COMPRESSION
        lib.SSL_CTX_set_options(self.handle, no)
        lib.SSL_CTX_set_session_cache_mode(self.handle, lib.SSL_SESS_CACHE_OFF | lib.SSL_SESS_CACHE_NO_INTERNAL)
        # An idle connection keeps no buffers; an unfinished write is continued from wherever its bytes are then.
        lib.SSL_CTX_set_mode(self.handle, lib.SSL_MODE_RELEASE_BUFFERS | lib.SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER)
        lib.SSL_CTX_set_verify_depth(self.handle, _NO_PATH)
        _load(self.handle, identity)

    def new(self) -> Any:
        """An `SSL *` of this context."""
        made = lib.SSL_new(self.handle)
        if made == ffi.NULL:
            raise MemoryError(f"OpenSSL cannot make a connection: {why()[0]}")
        return ffi.gc(made, lib.SSL_free)


def accepting(
    identity: Identity, bundle: TrustBundle | None, options: TlsOptions, *, require_client_certificate: bool
) -> TlsContext:
    """A context for a server. Without a bundle no certificate is asked for; with one and without
    `require_client_certificate` it may be missing, but one that is shown must verify (as in Envoy).

    Raises MaterialError if certificates are required and there is nothing to verify them against.
    """
    if require_client_certificate and bundle is None:
        raise MaterialError("client certificates are required but there is no trust bundle to verify them against")
    verifier = None if bundle is None else PeerVerifier(bundle, CLIENT)
    context = TlsContext(lib.SSL_CTX_new(lib.TLS_server_method()), identity, options, verifier)
    if bundle is not None:
        required = lib.SSL_VERIFY_FAIL_IF_NO_PEER_CERT if require_client_certificate else 0
        lib.SSL_CTX_set_verify(context.handle, lib.SSL_VERIFY_PEER | required, verify_peer)
    if context.protocols:
        lib.SSL_CTX_set_alpn_select_cb(context.handle, choose_protocol, ffi.NULL)
    return context


def dialling(identity: Identity, bundle: TrustBundle, options: TlsOptions) -> TlsContext:
    """A context for a client: the server's chain must end in `bundle`, system roots are never looked at."""
    verifier = PeerVerifier(bundle, SERVER)
    context = TlsContext(lib.SSL_CTX_new(lib.TLS_client_method()), identity, options, verifier)
    lib.SSL_CTX_set_verify(context.handle, lib.SSL_VERIFY_PEER, verify_peer)
    if context.protocols:
        lib.SSL_CTX_set_alpn_protos(context.handle, context.protocols, len(context.protocols))
    return context


def _wire(alpn: tuple[str, ...]) -> bytes:
    """ALPN names as TLS carries them, each behind its length (RFC 7301, 3.1)."""
    names = [name.encode("utf-8") for name in alpn]
    if any(not 0 < len(name) < 256 for name in names):
        raise MaterialError("an ALPN protocol name has 1 to 255 bytes")
    return b"".join(bytes([len(name)]) + name for name in names)


def _load(handle: Any, identity: Identity) -> None:
    """Give the context its chain and key, from memory to memory."""
    leaf, *others = (certificate_from(c.public_bytes(Encoding.DER)) for c in identity.certificates)
    key = identity.key.load().private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    loaded = lib.d2i_PrivateKey_bio(read_bio(key), ffi.NULL)
    if loaded == ffi.NULL:
        raise MaterialError(f"identity's key cannot be loaded: {why()[0]}")
    loaded = ffi.gc(loaded, lib.EVP_PKEY_free)
    if lib.SSL_CTX_use_certificate(handle, leaf) != 1 or lib.SSL_CTX_use_PrivateKey(handle, loaded) != 1:
        raise MaterialError(f"identity cannot be loaded into a TLS context: {why()[0]}")
    for other in others:
        lib.X509_up_ref(other)  # the context becomes an owner of its own
        if lib.SSL_CTX_add_extra_chain_cert(handle, other) != 1:
            lib.X509_free(other)
            raise MaterialError(f"identity's chain cannot be loaded into a TLS context: {why()[0]}")
