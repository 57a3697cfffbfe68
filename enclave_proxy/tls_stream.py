# SPDX-License-Identifier: Apache-2.0
"""One TLS connection on a non-blocking socket: its handshake, and then the side of a relayed connection.

OpenSSL works on the socket itself, so that payload is copied once and a failed handshake's alert has left before the
call returns. The peer is judged inside the handshake: path (`tls_verify`), then rule and membership (`objection`), so
that who may not talk gets an alert that says why, as nearly as TLS has a word for it. Only where the path needs
certificates that OpenSSL does not show to the callback (intermediates), it is judged right after.

Ends: a close_notify passes on as the end of one direction (RFC 8446, 6.1), and the other goes on. A connection that
ends without one is broken, whatever TCP says: its last bytes may have been cut off by somebody.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from cryptography import x509

from enclave_proxy.admission import ALERTS, Refused, failed_handshake, failed_verification
from enclave_proxy.counters import Refusal
from enclave_proxy.stream import END, WANT_READ, WANT_WRITE, Watch, dismiss
from enclave_proxy.tls_callbacks import enter, leave
from enclave_proxy.tls_context import TlsContext
from enclave_proxy.tls_library import (
    CHUNK,
    RECORD,
    SSL_ERROR_SSL,
    SSL_ERROR_WANT_READ,
    SSL_ERROR_WANT_WRITE,
    SSL_ERROR_ZERO_RETURN,
    ffi,
    lib,
    scratch,
    ssl_do_handshake,
    ssl_get_error,
    ssl_read,
    ssl_shutdown,
    ssl_write,
    why,
)
from enclave_proxy.tls_verify import CHAIN_TOO_LONG, REJECTED, UNABLE_TO_GET_ISSUER, X509_V_OK, Verified

Objection = Callable[[x509.Certificate | None], Refused | None]

# What OpenSSL reports because its own store is empty; the answer to it is the verifier's. Anything else it reports
# (purpose, key strength, dates, ...) refuses the peer. The plain numbers are X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT,
# _DEPTH_ZERO_SELF_SIGNED_CERT, _SELF_SIGNED_CERT_IN_CHAIN and _UNABLE_TO_VERIFY_LEAF_SIGNATURE (x509_vfy.h).
_FOR_THE_VERIFIER = frozenset({UNABLE_TO_GET_ISSUER, CHAIN_TOO_LONG, 2, 18, 19, 21})
# Beside what `read` gives: the connection failed.
_BROKEN = -3


class Truncated(ConnectionError):
    """The connection ended without a close_notify."""


class Alerted(ConnectionError):
    """The peer sent a fatal alert. In TLS 1.3 this is how a client hears that its certificate was refused, because for
    itself the handshake is over by then (RFC 8446, 4.4.4)."""


class TlsStream:
    """TLS over one socket. Make it, await `accept` or `connect`, then use it as a Stream."""

    __slots__ = (
        "_broken", "_certificate", "_context", "_failed", "_given_up", "_last", "_missing_issuer", "_objection",
        "_peer_random", "_pointer", "_socket", "_ssl", "_watch", "descriptor", "unread",
    )  # fmt: skip

    def __init__(self, context: TlsContext, connection: socket.socket, objection: Objection) -> None:
        self.descriptor = connection.fileno()
        self._socket = connection
        self._context = context
        self._pointer = scratch.pointer
        self._objection = objection
        self._certificate: x509.Certificate | None = None
        self._missing_issuer = False
        self._failed: Exception | None = None
        self._given_up = False
        self._watch: Watch | None = None
        self._last = WANT_READ
        self.unread = False
        self._broken: OSError | None = None
        self._ssl = context.new()
        if lib.SSL_set_fd(self._ssl, self.descriptor) != 1:
            raise MemoryError(f"OpenSSL cannot use a socket: {why()[0]}")

    # ---- handshake

    @property
    def protocols(self) -> bytes:
        return self._context.protocols

    @property
    def alpn(self) -> str | None:
        """The protocol that was agreed upon."""
        name, size = ffi.new("unsigned char **"), ffi.new("unsigned int *")
        lib.SSL_get0_alpn_selected(self._ssl, name, size)
        return bytes(ffi.buffer(name[0], size[0])).decode("utf-8", "replace") if size[0] else None

    @property
    def peer(self) -> x509.Certificate | None:
        """The peer's certificate, from the moment in which its path was verified, whether it may talk or not."""
        return self._certificate

    def facts(self) -> tuple[str, str, bool]:
        """TLS version, cipher suite, and whether a session was resumed, after the handshake."""
        version = ffi.string(lib.SSL_get_version(self._ssl)).decode("ascii", "replace")
        cipher = ffi.string(lib.SSL_CIPHER_get_name(lib.SSL_get_current_cipher(self._ssl))).decode("ascii", "replace")
        return version, cipher, bool(lib.SSL_session_reused(self._ssl))

    async def accept(self, patience: float) -> x509.Certificate | None:
        """Shake hands as a server, within `patience` seconds. Gives the peer's certificate; raises Refused."""
        lib.SSL_set_accept_state(self._ssl)
        self._peer_random = lib.SSL_get_client_random
        return await self._shake_hands(patience)

    async def connect(self, patience: float, sni: str) -> x509.Certificate | None:
        """Shake hands as a client, naming `sni` (may be empty). Gives the peer's certificate; raises Refused."""
        lib.SSL_set_connect_state(self._ssl)
        self._peer_random = lib.SSL_get_server_random
        if sni:
            lib.SSL_set_tlsext_host_name(self._ssl, sni.encode("ascii"))
        return await self._shake_hands(patience)

    def give_up(self) -> None:
        """End the handshake that is under way, because others wait for its place."""
        self._given_up = True
        if self._watch is not None:
            self._watch.expire()

    async def _shake_hands(self, patience: float) -> x509.Certificate | None:
        key = enter(self._ssl, self)
        watch = self._watch = Watch(self.descriptor)
        timer = asyncio.get_running_loop().call_later(patience, watch.expire)
        try:
            while (want := self._step()) != END:
                await (watch.writable() if want == WANT_WRITE else watch.readable())
        except TimeoutError:
            if self._given_up:
                raise Refused(Refusal.LIMIT, "peer was silent while others waited for its place") from None
            raise Refused(Refusal.TIMEOUT, "peer did not finish the handshake in time") from None
        finally:
            self._watch = None
            timer.cancel()
            watch.close()
            leave(key)
        return self._checked()

    def _step(self) -> int:
        """Go on with the handshake; END when it is done, else what it waits for."""
        result = ssl_do_handshake(self._ssl)
        if self._failed is not None:
            why()
            raise self._failed
        if result == 1:
            return END
        error = ssl_get_error(self._ssl, result)
        if error == SSL_ERROR_WANT_READ:
            return WANT_READ
        if error == SSL_ERROR_WANT_WRITE:
            return WANT_WRITE
        name, alert = why()
        raise failed_handshake(name if error == SSL_ERROR_SSL else "", alert, greeted=self._greeted())

    def _greeted(self) -> bool:
        """Whether the peer's hello was read: its random bytes are there."""
        random = ffi.new("unsigned char[32]")
        self._peer_random(self._ssl, random, 32)
        return any(bytes(ffi.buffer(random)))

    def judge(self, ok: bool, store: Any) -> bool:
        """OpenSSL's question about the peer's certificate; see tls_callbacks."""
        refused: Exception | None
        try:
            refused, code = self._judged(ok, store)
        except Exception as e:  # it cannot pass through C: the step that called raises it again
            refused, code = e, REJECTED
        self._failed = refused
        lib.X509_STORE_CTX_set_error(store, code)
        return refused is None

    def _judged(self, ok: bool, store: Any) -> tuple[Refused | None, int]:
        error = int(lib.X509_STORE_CTX_get_error(store))
        if not ok and error not in _FOR_THE_VERIFIER:
            return failed_verification(error), error
        if self._certificate is not None or self._missing_issuer:
            return None, X509_V_OK  # it was judged at the first question
        verifier = self._context.verifier
        if verifier is None:
            raise RuntimeError("a peer without a verifier is not asked for a certificate")
        answer = verifier.leaf(lib.X509_STORE_CTX_get0_cert(store))
        if isinstance(answer, Verified):
            self._certificate = answer.certificate
            refused = self._objection(answer.certificate)
            return refused, X509_V_OK if refused is None else ALERTS.get(refused.reason, REJECTED)
        self._missing_issuer = answer.missing_issuer
        return (None, X509_V_OK) if answer.missing_issuer else (failed_verification(answer.code), answer.code)

    def _checked(self) -> x509.Certificate | None:
        """The peer's certificate after the handshake; what could not be judged in it is judged now."""
        peer = lib.SSL_get_peer_certificate(self._ssl)
        if peer != ffi.NULL:
            leaf = ffi.gc(peer, lib.X509_free)
            if self._certificate is not None:
                return self._certificate
            self._certificate = self._through_intermediates(leaf)
        if (refused := self._objection(self._certificate)) is not None:
            raise refused
        return self._certificate

    def _through_intermediates(self, leaf: Any) -> x509.Certificate:
        verifier = self._context.verifier
        if verifier is None or not self._missing_issuer:
            raise Refused(Refusal.UNTRUSTED, "peer certificate was not verified")
        sent = lib.SSL_get_peer_cert_chain(self._ssl)
        others = [] if sent == ffi.NULL else [lib.sk_X509_value(sent, i) for i in range(lib.sk_X509_num(sent))]
        answer = verifier.chain(leaf, others)
        if isinstance(answer, Verified):
            return answer.certificate
        raise failed_verification(answer.code)

    # ---- payload

    def read(self) -> int:
        if self._last != WANT_READ:
            return self._say(self._last)
        size: int = ssl_read(self._ssl, self._pointer, CHUNK)
        if size <= 0:
            return self._say(self._why_not(size))
        # Full records come in rows; anything shorter is the end of a message, and looking further would cost a call
        # into the kernel. OpenSSL reads no record before it is asked for one, so that the descriptor tells of the rest.
        while not size % RECORD and size < CHUNK:
            more: int = ssl_read(self._ssl, self._pointer + size, CHUNK - size)
            if more <= 0:
                self._last = self._why_not(more)
                self.unread = self._last != WANT_READ
                break
            size += more
        return size

    def _why_not(self, result: int) -> int:
        """What a read that gave nothing means."""
        error: int = ssl_get_error(self._ssl, result)
        if error == SSL_ERROR_WANT_READ:
            return WANT_READ
        if error == SSL_ERROR_WANT_WRITE:
            return WANT_WRITE
        if error == SSL_ERROR_ZERO_RETURN:
            return END
        name, alert = why()
        if error != SSL_ERROR_SSL or name == "UNEXPECTED_EOF_WHILE_READING":
            self._broken = Truncated("the connection ended without a close_notify")
        else:
            self._broken = (ConnectionError if alert is None else Alerted)(f"TLS failed: {name}")
        return _BROKEN

    def _say(self, last: int) -> int:
        # An end is said again to whoever asks again; OpenSSL would not.
        self._last = last if last in (END, _BROKEN) else WANT_READ
        self.unread = self._last != WANT_READ
        if last == _BROKEN and self._broken is not None:
            raise self._broken
        return last

    def send(self, size: int) -> int:
        result: int = ssl_write(self._ssl, self._pointer, size)
        return result if result > 0 else self._not_sent(result)

    def send_again(self, data: bytes) -> int:
        result: int = ssl_write(self._ssl, ffi.from_buffer(data), len(data))
        return result if result > 0 else self._not_sent(result)

    def _not_sent(self, result: int) -> int:
        if ssl_get_error(self._ssl, result) == SSL_ERROR_WANT_WRITE:
            return 0
        raise BrokenPipeError(f"TLS cannot send: {why()[0] or 'the connection is broken'}")

    def end_writing(self) -> bool:
        result = ssl_shutdown(self._ssl)
        if result < 0:
            if ssl_get_error(self._ssl, result) == SSL_ERROR_WANT_WRITE:
                return False
            raise BrokenPipeError(f"TLS cannot end: {why()[0] or 'the connection is broken'}")
        self._socket.shutdown(socket.SHUT_WR)
        return True

    def gone(self) -> bool:
        return False

    def close(self) -> None:
        self._ssl = None
        self._socket.close()

    def tear(self) -> None:
        self.close()  # without a close_notify, which says it

    def dismiss(self) -> None:
        """Close after a failed handshake, so that the alert arrives."""
        self._ssl = None
        dismiss(self._socket)
