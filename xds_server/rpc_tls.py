# SPDX-License-Identifier: Apache-2.0
"""TLS for thousands of mostly quiet connections: the standard library's engine, with one pair of buffers for all.

An SSLObject reads from one memory BIO and writes to another, and a memory BIO keeps the size it once had: a handshake
leaves 5 kB behind at each connection. But a BIO is empty whenever nobody is inside of it (what of a record is
incomplete OpenSSL keeps itself), and everything happens in one thread, so all connections share two.
"""

from __future__ import annotations

import ssl
from contextlib import suppress

from sds.tls import server_context
from xds_server.xds_credentials import ServerTls, TlsMaterial

ALPN = "h2"
# RFC 9113, section 9.2.2: forward secrecy and AEAD. The suites of TLS 1.3 are all of that kind.
_CIPHERS_1_2 = "ECDHE+AESGCM:ECDHE+CHACHA20"
# The largest plaintext of a record.
_RECORD = 16 * 1024


class TlsFault(Exception):
    """The connection cannot go on; OpenSSL's words. Whatever `Tls.out` returns next is the alert for the peer."""


class Tls:
    """One port's side of TLS. Every method leaves both buffers empty."""

    def __init__(self, material: ServerTls) -> None:
        self._material = material
        self._context: tuple[TlsMaterial, ssl.SSLContext] | None = None
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._buffer = bytearray(_RECORD)
        self._view = memoryview(self._buffer)

    def accept(self) -> ssl.SSLObject:
        """A connection under what is current now."""
        current = self._material.current
        if self._context is None or self._context[0] is not current:
            self._context = current, _context(current)
        return self._context[1].wrap_bio(self._in, self._out, server_side=True)

    def shake(self, tls: ssl.SSLObject, data: bytes) -> tuple[bool, bytes, bytes]:
        """Go on with a handshake: whether it is done, what is to be sent, and the plaintext that came behind it.

        Raises TlsFault, whose second argument is what is still to be sent.
        """
        self._feed(data)
        try:
            tls.do_handshake()
            if tls.selected_alpn_protocol() != ALPN:
                raise TlsFault("client did not offer h2 by ALPN", self._abandon())
            plain, _ = self._read(tls)
        except ssl.SSLWantReadError:
            return False, self._out.read(), b""
        except (ssl.SSLError, OSError) as e:
            raise TlsFault(_reason(e), self._abandon()) from None
        return True, self._out.read(), plain

    def decrypt(self, tls: ssl.SSLObject, data: bytes) -> tuple[bytes, bytes, bool]:
        """Plaintext, what TLS itself wants sent (answers to key updates), and whether the peer has said its last.

        Raises TlsFault as `shake` does.
        """
        self._feed(data)
        try:
            plain, ended = self._read(tls)
        except (ssl.SSLError, OSError) as e:
            raise TlsFault(_reason(e), self._abandon()) from None
        if ended:
            self._in.read()
        return plain, self._out.read() if self._out.pending else b"", ended

    def _read(self, tls: ssl.SSLObject) -> tuple[bytes, bool]:
        parts: list[bytes] = []
        ended = False
        try:
            while True:
                count = int(tls.read(_RECORD, self._buffer))
                if not count:
                    ended = True
                    break
                parts.append(bytes(self._view[:count]))
                if not self._in.pending and not tls.pending():
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            ended = True
        return parts[0] if len(parts) == 1 else b"".join(parts), ended

    def _feed(self, data: bytes) -> None:
        if self._in.pending or self._out.pending:
            raise RuntimeError("bytes of one connection would reach another")
        self._in.write(data)

    def encrypt(self, tls: ssl.SSLObject, data: bytes) -> bytes:
        """Ciphertext. Raises TlsFault as `shake` does."""
        view = memoryview(data)
        sent = 0
        try:
            while sent < len(view):
                sent += tls.write(view[sent:])
        except (ssl.SSLError, OSError) as e:
            raise TlsFault(_reason(e), self._abandon()) from None
        return self._out.read()

    def goodbye(self, tls: ssl.SSLObject) -> bytes:
        """The close_notify alert; nothing where the connection is past that."""
        with suppress(ssl.SSLError, OSError):  # it waits for the peer's, which we do not: the alert is written
            tls.unwrap()
        self._in.read()
        return self._out.read()

    def _abandon(self) -> bytes:
        self._in.read()
        return self._out.read()


def _context(material: TlsMaterial) -> ssl.SSLContext:
    # TLS 1.2 because it is what an Envoy offers as a client unless its bootstrap says otherwise.
    context = server_context(material.identity, None, require_client_certificate=False, minimum=ssl.TLSVersion.TLSv1_2)
    context.set_alpn_protocols([ALPN])
    context.set_ciphers(_CIPHERS_1_2)
    context.options |= ssl.OP_NO_RENEGOTIATION
    # What is trusted are exactly these, self-signed or not: roots of the mesh, and the gateways' own certificates.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=material.trusted.decode("ascii"))
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"client certificate: {error.verify_message}"
    return getattr(error, "reason", None) or "tls protocol error"
