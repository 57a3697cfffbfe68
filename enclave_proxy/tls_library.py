# SPDX-License-Identifier: Apache-2.0
"""The TLS library below the relay: the OpenSSL that comes inside `cryptography`, called without a layer between.

Why not the standard library's `ssl`: it cannot take a key from memory, cannot say why a peer was refused inside the
handshake (so that the peer gets the wrong alert or none), verifies the same certificate anew for each connection, and
costs a copy and an exception where OpenSSL has a return value. Measured per new connection: twice the CPU time. The
bindings are those that pyOpenSSL is made of; this is the only module that reaches for them, and importing it fails at
once if they lack something.

Errors: OpenSSL keeps a queue for each thread. Whoever sees a call fail takes the reason with `why()`, which empties it.
"""

from __future__ import annotations

import threading
from typing import Any, Final

from cryptography.hazmat.bindings.openssl.binding import Binding

lib: Final[Any] = Binding.lib
ffi: Final[Any] = Binding.ffi

ssl_read, ssl_write, ssl_get_error = lib.SSL_read, lib.SSL_write, lib.SSL_get_error
ssl_do_handshake, ssl_shutdown = lib.SSL_do_handshake, lib.SSL_shutdown
SSL_ERROR_SSL: Final[int] = lib.SSL_ERROR_SSL
SSL_ERROR_WANT_READ: Final[int] = lib.SSL_ERROR_WANT_READ
SSL_ERROR_WANT_WRITE: Final[int] = lib.SSL_ERROR_WANT_WRITE
SSL_ERROR_ZERO_RETURN: Final[int] = lib.SSL_ERROR_ZERO_RETURN

# One TLS record of payload (RFC 8446, 5.1), and how much of a connection is read at once: four of them.
RECORD = 16 * 1024
CHUNK = 4 * RECORD

# Reasons of alerts that the peer sent are its alert codes above this (SSL_AD_REASON_OFFSET, ssl.h).
_ALERTS = 1000
_SHA256 = lib.EVP_get_digestbyname(b"SHA256")


class Scratch(threading.local):
    """The buffer through which a thread's event loop moves everything: full only within one callback."""

    def __init__(self) -> None:
        self.bytes = bytearray(CHUNK)
        self.view = memoryview(self.bytes)
        self.pointer = ffi.from_buffer(self.bytes)


scratch: Final = Scratch()


def why() -> tuple[str, int | None]:
    """OpenSSL's name of the last failure, like WRONG_VERSION_NUMBER, and the alert's code if the peer sent one.

    Empties the error queue. ("", None): the queue was empty.
    """
    name, alert = "", None
    while error := lib.ERR_get_error():
        if not name:
            text = lib.ERR_reason_error_string(error)
            reason = int(lib.ERR_GET_REASON(error))
            name = f"REASON_{reason}" if text == ffi.NULL else _name(ffi.string(text).decode("ascii", "replace"))
            alert = reason - _ALERTS if _ALERTS < reason < _ALERTS + 256 else None
    return name, alert


def _name(text: str) -> str:
    return text.upper().replace(" ", "_").replace("/", "_")


def read_bio(data: bytes) -> Any:
    """`data` as a BIO to read from; it is copied."""
    bio = lib.BIO_new(lib.BIO_s_mem())
    if bio == ffi.NULL:
        raise MemoryError("OpenSSL has no memory")
    bio = ffi.gc(bio, lib.BIO_free)
    if lib.BIO_write(bio, data, len(data)) != len(data):
        raise MemoryError("OpenSSL has no memory")
    return bio


def certificate_from(der: bytes) -> Any:
    """An `X509 *` of our own. Raises ValueError if OpenSSL cannot read it."""
    made = lib.d2i_X509_bio(read_bio(der), ffi.NULL)
    if made == ffi.NULL:
        raise ValueError(f"certificate cannot be read: {why()[0]}")
    return ffi.gc(made, lib.X509_free)


def der_of(certificate: Any) -> bytes:
    """The DER bytes of an `X509 *`."""
    bio = read_bio(b"")
    if lib.i2d_X509_bio(bio, certificate) != 1:
        raise ValueError(f"certificate cannot be written: {why()[0]}")
    start = ffi.new("char **")
    size = lib.BIO_get_mem_data(bio, start)
    return bytes(ffi.buffer(start[0], size))


def digest_of(certificate: Any) -> bytes:
    """The SHA-256 of an `X509 *`."""
    out = ffi.new("unsigned char[32]")
    if lib.X509_digest(certificate, _SHA256, out, ffi.new("unsigned int *", 32)) != 1:
        raise ValueError(f"certificate cannot be digested: {why()[0]}")
    return bytes(ffi.buffer(out))
