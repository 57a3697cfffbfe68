# SPDX-License-Identifier: Apache-2.0
"""TLS contexts from identities and bundles. Always a new context; one that serves is never changed.

Neither the standard library nor pyOpenSSL lets a live context forget a CA, so rotation means: build a new context, use
it for the next connection, drop the old one with its last connection.

Names are not checked here (`check_hostname` stays off): peers are named by URI SANs, which OpenSSL's host-name check
does not know. Whoever uses these contexts must compare the peer's names after the handshake, before the first byte of
payload. OpenSSL does check the chain, the dates and the purpose (server or client authentication).
"""

from __future__ import annotations

import os
import secrets
import ssl
import tempfile

from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from sds.keys import MaterialError
from sds.material import Identity, TrustBundle


def server_context(
    identity: Identity,
    bundle: TrustBundle | None,
    *,
    require_client_certificate: bool,
    minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> ssl.SSLContext:
    """A context for accepting. Without a bundle no client certificate is asked for; with one and without
    `require_client_certificate` a certificate may be missing, but one that is shown must verify (as in Envoy).

    Raises MaterialError if client certificates are required and there is nothing to verify them against.
    """
    if require_client_certificate and bundle is None:
        raise MaterialError("client certificates are required but there is no trust bundle to verify them against")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # A resumed session skips the certificate check, so that it would outlive its peer's authorisation. TLS 1.3 resumes
    # by tickets alone, and none are given out. Where TLS 1.2 is allowed, OpenSSL's session cache stays within this
    # context, that is within this identity and bundle, and forgets after 5 minutes.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    _configure(context, bundle, minimum)
    if bundle is None:
        context.verify_mode = ssl.CERT_NONE
    else:
        context.verify_mode = ssl.CERT_REQUIRED if require_client_certificate else ssl.CERT_OPTIONAL
    _load(context, identity)
    return context


def client_context(
    identity: Identity | None, bundle: TrustBundle, minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> ssl.SSLContext:
    """A context for dialling: the server's chain must end in `bundle`, system roots are never looked at."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    _configure(context, bundle, minimum)
    if identity is not None:
        _load(context, identity)
    return context


def _configure(context: ssl.SSLContext, bundle: TrustBundle | None, minimum: ssl.TLSVersion) -> None:
    # SSLContext() itself, unlike create_default_context(), neither reads SSLKEYLOGFILE nor loads system roots.
    context.minimum_version = minimum
    if bundle is not None:
        # The bundle's certificates are the anchors, self-signed or not, as in Envoy; a certificate without the CA flag
        # can then vouch for itself only.
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=bundle.pem.decode("ascii"))


def _load(context: ssl.SSLContext, identity: Identity) -> None:
    """Give the context its chain and key. `load_cert_chain` takes files only, so memory poses as one: an anonymous file
    that has no name in any file system and is gone with its descriptor."""
    try:
        try:
            descriptor = os.memfd_create("identity", os.MFD_CLOEXEC)
        except (OSError, AttributeError):
            # A library OS may not have it. See there for what may then touch a disk.
            _load_encrypted(context, identity)
            return
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(identity.key.pem.rstrip() + b"\n" + identity.chain)
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
    except (OSError, ssl.SSLError) as e:
        reason = getattr(e, "reason", None) or e.strerror
        raise MaterialError(f"identity cannot be loaded into a TLS context: {reason}") from None


def _load_encrypted(context: ssl.SSLContext, identity: Identity) -> None:
    """The way without memfd: a temporary file whose key is encrypted under a password that never leaves this function.

    256 random bits are beyond guessing, so that the ciphertext may stay on whatever medium the file lay on.
    """
    password = secrets.token_urlsafe(32).encode()
    encrypted = identity.key.load().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password))
    with tempfile.NamedTemporaryFile(prefix="identity-") as file:
        file.write(encrypted + identity.chain)
        file.flush()
        context.load_cert_chain(file.name, password=password)
