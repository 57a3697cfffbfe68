# SPDX-License-Identifier: Apache-2.0
"""A TLS 1.3 client whose private key never leaves a PKCS#11 token: the few calls of GnuTLS that this takes.

Why GnuTLS, and why by ctypes: neither the standard library's `ssl` nor pyOpenSSL nor cryptography can sign a handshake
with a key they do not hold. OpenSSL's own ways (an engine, gone in OpenSSL 4; a provider, absent from Debian 12) must
be configured before Python starts and are bound to the OpenSSL that Python was built with. tlslite-ng can, but calls
its own ciphers insecure (no constant time). GnuTLS has an interface made for this, `gnutls_privkey_import_ext4`, its
ABI (libgnutls.so.30) has been the same since 2015, and what it needs of us is one callback that signs a digest.

Everything here blocks; callers use a thread. The library is loaded at the first use, so that nobody else needs it.
"""

from __future__ import annotations

import ctypes
import select
import socket
import time
from collections.abc import Callable, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_ssize_t, c_uint, c_void_p
from functools import cache
from typing import Protocol

from marblemesh.client.errors import ClientError

_LIBRARIES = ("libgnutls.so.30", "libgnutls.30.dylib")
# TLS 1.3 alone: every Coordinator speaks it, and there a client signs digests with PSS or ECDSA and nothing else.
_PRIORITY = b"NORMAL:-VERS-ALL:+VERS-TLS1.3"

# Numbers of gnutls/gnutls.h and gnutls/abstract.h.
_CLIENT, _NONBLOCK, _NO_SIGNAL, _FORCE_CLIENT_CERT, _NO_TICKETS = 1 << 1, 1 << 3, 1 << 6, 1 << 9, 1 << 10
_X509_DER = 0
_CRD_CERTIFICATE = 1
_SHUT_WR = 1
# It would sign a test message with the token; `key` vouches for the pair instead (see token.TokenIdentity).
_SKIP_KEY_CERT_MATCH = 1
_INFO_PK_ALGO, _INFO_HAVE_SIGN_ALGO, _INFO_BITS, _SIGN_ALGO_SHIFT = 1, 1 << 2, 1 << 3, 20
_PK = {"RSA": 1, "EC": 4}
_E_AGAIN, _E_INTERRUPTED = -28, -52
_E_FATAL_ALERT, _E_CERTIFICATE, _E_SIGN_FAILED = -12, -43, -46


class GnuTlsError(ClientError):
    """TLS by GnuTLS failed, or the library is not there."""


class HandshakeKey(Protocol):
    """A private key that can sign, wherever it is."""

    kind: str
    """RSA or EC."""
    bits: int

    def can_sign(self, scheme: str) -> bool:
        """Whether the key signs by this TLS 1.3 scheme, as GnuTLS spells it (RSA-PSS-RSAE-SHA256, …)."""

    def sign_digest(self, scheme: str, digest: bytes) -> bytes:
        """The signature as TLS wants it: PSS block, or DER of ECDSA's r and s."""


class _Datum(ctypes.Structure):
    _fields_ = (("data", c_void_p), ("size", c_uint))


class _PeerCertificate(ctypes.Structure):
    _fields_ = (("public_key", c_void_p), ("certificate", _Datum), ("type", c_int))


_SIGN = ctypes.CFUNCTYPE(c_int, c_void_p, c_int, c_void_p, c_uint, POINTER(_Datum), POINTER(_Datum))
_INFO = ctypes.CFUNCTYPE(c_int, c_void_p, c_uint, c_void_p)
_VERIFY = ctypes.CFUNCTYPE(c_int, c_void_p)
_MALLOC = ctypes.CFUNCTYPE(c_void_p, c_size_t)

_PROTOTYPES: dict[str, tuple[object, tuple[object, ...]]] = {
    "gnutls_init": (c_int, (POINTER(c_void_p), c_uint)),
    "gnutls_deinit": (None, (c_void_p,)),
    "gnutls_priority_set_direct": (c_int, (c_void_p, c_char_p, POINTER(c_char_p))),
    "gnutls_transport_set_int2": (None, (c_void_p, c_int, c_int)),
    "gnutls_credentials_set": (c_int, (c_void_p, c_int, c_void_p)),
    "gnutls_certificate_allocate_credentials": (c_int, (POINTER(c_void_p),)),
    "gnutls_certificate_free_credentials": (None, (c_void_p,)),
    "gnutls_certificate_set_flags": (None, (c_void_p, c_uint)),
    "gnutls_certificate_set_key": (c_int, (c_void_p, c_void_p, c_int, POINTER(_PeerCertificate), c_int, c_void_p)),
    "gnutls_certificate_get_peers": (POINTER(_Datum), (c_void_p, POINTER(c_uint))),
    "gnutls_pcert_import_x509_raw": (c_int, (POINTER(_PeerCertificate), POINTER(_Datum), c_int, c_uint)),
    "gnutls_privkey_init": (c_int, (POINTER(c_void_p),)),
    "gnutls_privkey_import_ext4": (
        c_int,
        (c_void_p, c_void_p, c_void_p, _SIGN, c_void_p, c_void_p, _INFO, c_uint),
    ),
    "gnutls_session_set_verify_function": (None, (c_void_p, _VERIFY)),
    "gnutls_handshake": (c_int, (c_void_p,)),
    "gnutls_record_send": (c_ssize_t, (c_void_p, c_char_p, c_size_t)),
    "gnutls_record_recv": (c_ssize_t, (c_void_p, c_void_p, c_size_t)),
    "gnutls_record_get_direction": (c_int, (c_void_p,)),
    "gnutls_bye": (c_int, (c_void_p, c_int)),
    "gnutls_alert_get": (c_int, (c_void_p,)),
    "gnutls_alert_get_name": (c_char_p, (c_int,)),
    "gnutls_sign_get_name": (c_char_p, (c_int,)),
    "gnutls_strerror": (c_char_p, (c_int,)),
}


@cache
def _library() -> ctypes.CDLL:
    """GnuTLS with its prototypes. Raises GnuTlsError that says what to install."""
    for name in _LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        for function, (result, arguments) in _PROTOTYPES.items():
            prototype = getattr(library, function)
            prototype.restype, prototype.argtypes = result, arguments
        return library
    raise GnuTlsError(
        "TLS with a key on a PKCS#11 token needs GnuTLS 3.6 or newer: install libgnutls30 (libgnutls30t64, gnutls)"
    )


class GnuTlsConnection:
    """One connection over a connected socket; `with` ends it. All calls raise TimeoutError after `deadline`
    (time.monotonic()), and GnuTlsError; what `key` raises while it signs comes out of the constructor."""

    def __init__(
        self,
        connection: socket.socket,
        chain: Sequence[bytes],
        key: HandshakeKey,
        server_certificate: bytes,
        deadline: float,
    ) -> None:
        """Shake hands: `chain` (DER, leaf first) and `key` are ours, `server_certificate` (DER) is the only leaf that
        the server may show; the key signs nothing for another."""
        self._gnutls = _library()
        self._socket, self._key, self._expected, self._deadline = connection, key, server_certificate, deadline
        self._failure: Exception | None = None
        # C keeps pointers to these: they must live as long as the session.
        self._callbacks = (_SIGN(self._sign), _INFO(self._info), _VERIFY(self._verify))
        self._session, self._credentials = c_void_p(), c_void_p()
        connection.setblocking(False)
        try:
            self._prepare(chain)
            self._retry(lambda: self._gnutls.gnutls_handshake(self._session))
        except BaseException:
            self._free()
            raise

    def send(self, data: bytes) -> None:
        """Send everything."""
        view = memoryview(data)
        while view:
            # After E_AGAIN the same data must come again; GnuTLS cuts records of 16 KiB itself.
            piece = bytes(view[: 64 * 1024])
            sent = self._retry(lambda piece=piece: self._gnutls.gnutls_record_send(self._session, piece, len(piece)))  # type: ignore[misc]
            view = view[sent:]

    def receive(self, limit: int) -> bytes:
        """At most `limit` bytes; none once the server has said goodbye."""
        buffer = ctypes.create_string_buffer(limit)
        size = self._retry(lambda: self._gnutls.gnutls_record_recv(self._session, buffer, limit))
        return buffer.raw[:size]

    def close(self) -> None:
        """Say goodbye without waiting for an answer. The socket stays the caller's."""
        if self._session.value:
            self._gnutls.gnutls_bye(self._session, _SHUT_WR)
        self._free()

    def __enter__(self) -> GnuTlsConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self, chain: Sequence[bytes]) -> None:
        gnutls = self._gnutls
        flags = _CLIENT | _NONBLOCK | _NO_SIGNAL | _FORCE_CLIENT_CERT | _NO_TICKETS
        self._check(gnutls.gnutls_init(byref(self._session), flags))
        self._check(gnutls.gnutls_priority_set_direct(self._session, _PRIORITY, None))
        gnutls.gnutls_transport_set_int2(self._session, self._socket.fileno(), self._socket.fileno())
        gnutls.gnutls_session_set_verify_function(self._session, self._callbacks[2])
        self._check(gnutls.gnutls_certificate_allocate_credentials(byref(self._credentials)))
        gnutls.gnutls_certificate_set_flags(self._credentials, _SKIP_KEY_CERT_MATCH)
        certificates = (_PeerCertificate * len(chain))()
        for place, der in zip(certificates, chain, strict=True):
            datum = _Datum(ctypes.cast(c_char_p(der), c_void_p), len(der))
            self._check(gnutls.gnutls_pcert_import_x509_raw(byref(place), byref(datum), _X509_DER, 0))
        key = c_void_p()
        self._check(gnutls.gnutls_privkey_init(byref(key)))
        sign, info, _ = self._callbacks
        self._check(gnutls.gnutls_privkey_import_ext4(key, None, None, sign, None, None, info, 0))
        # From here the credentials own key and certificates, and free them.
        self._check(gnutls.gnutls_certificate_set_key(self._credentials, None, 0, certificates, len(chain), key))
        self._check(gnutls.gnutls_credentials_set(self._session, _CRD_CERTIFICATE, self._credentials))

    def _retry(self, call: Callable[[], int]) -> int:
        """The result of a call that may have to wait for the network."""
        while (result := call()) in (_E_AGAIN, _E_INTERRUPTED):
            writing = self._gnutls.gnutls_record_get_direction(self._session) == 1
            left = self._deadline - time.monotonic()
            poll = select.poll()
            poll.register(self._socket, select.POLLOUT if writing else select.POLLIN)
            if left <= 0 or not poll.poll(left * 1000):
                raise TimeoutError("no answer in time")
        return self._check(result)

    def _check(self, result: int) -> int:
        if result >= 0:
            return result
        if self._failure is not None:
            raise self._failure
        if result == _E_FATAL_ALERT:
            alert = self._gnutls.gnutls_alert_get_name(self._gnutls.gnutls_alert_get(self._session)) or b"unknown"
            raise GnuTlsError(f"the server ended TLS: {alert.decode('ascii', 'replace').lower()}")
        text = self._gnutls.gnutls_strerror(result).decode("ascii", "replace")
        raise GnuTlsError(f"TLS failed: {text[:1].lower()}{text[1:].rstrip('.')}")

    def _free(self) -> None:
        session, self._session = self._session, c_void_p()
        credentials, self._credentials = self._credentials, c_void_p()
        if session.value:
            self._gnutls.gnutls_deinit(session)
        if credentials.value:
            self._gnutls.gnutls_certificate_free_credentials(credentials)

    def _scheme(self, algorithm: int) -> str:
        return (self._gnutls.gnutls_sign_get_name(algorithm) or b"").decode("ascii", "replace")

    # The callbacks run in the midst of C: an exception must wait until C has returned (see `_check`).

    def _sign(self, _key: int, algorithm: int, _data: int, _flags: int, digest: object, signature: object) -> int:
        try:
            given, wanted = digest.contents, signature.contents  # type: ignore[attr-defined]
            made = self._key.sign_digest(self._scheme(algorithm), ctypes.string_at(given.data, given.size))
            # GnuTLS frees the signature by its own free(), so it must come from its own malloc().
            memory = _MALLOC(c_void_p.in_dll(self._gnutls, "gnutls_malloc").value or 0)(len(made))
            if not memory:
                raise MemoryError
            ctypes.memmove(memory, made, len(made))
            wanted.data, wanted.size = memory, len(made)
        except Exception as error:
            self._failure = error
            return _E_SIGN_FAILED
        return 0

    def _info(self, _key: int, flags: int, _data: int) -> int:
        if flags & _INFO_HAVE_SIGN_ALGO:
            return int(self._key.can_sign(self._scheme(flags >> _SIGN_ALGO_SHIFT)))
        if flags & _INFO_PK_ALGO:
            return _PK[self._key.kind]
        return self._key.bits if flags & _INFO_BITS else -1

    def _verify(self, session: int) -> int:
        count = c_uint()
        chain = self._gnutls.gnutls_certificate_get_peers(session, byref(count))
        if chain and count.value and ctypes.string_at(chain[0].data, chain[0].size) == self._expected:
            return 0
        self._failure = AnotherServer("the server has another certificate than the pinned one")
        return _E_CERTIFICATE


class AnotherServer(GnuTlsError):
    """The server's certificate is not the expected one."""
