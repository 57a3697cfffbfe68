# SPDX-License-Identifier: Apache-2.0
"""The webhook's certificate: read again at the first handshake after its files have changed, as cert-manager does it.

Files that do not fit together (the certificate is new, its key not yet) or cannot be read change nothing: the last good
pair is served, the failure is logged and counted, and the files are tried again when they have changed again.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from cryptography import x509

from sds.logs import get_logger

_MAX_FILE = 1024 * 1024
_log = get_logger("injector")

_Signature = tuple[tuple[int, int, int, int] | None, ...]


class CertificateError(ValueError):
    """The pair cannot be served with; `str()` names the files and the reason."""


class ServedCertificate:
    """`context` is what to listen with. `loaded` hears of every pair that is taken over, by its expiry."""

    def __init__(self, certificate: Path, key: Path, loaded: Callable[[datetime], None]) -> None:
        """Read the pair for the first time. Raises CertificateError."""
        self.failures = 0
        self._files = (certificate, key)
        self._loaded = loaded
        self._signature = self._sign()
        self.context = self._current = self._read()
        self.context.sni_callback = self._on_hello  # called for every ClientHello, with a name or without

    def _on_hello(self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext) -> None:
        self.refresh()
        if self._current is not self.context:
            connection.context = self._current

    def refresh(self) -> None:
        """Read the pair again if a file has changed. Never raises: it is called in a handshake."""
        signature = self._sign()
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._current = self._read()
        except CertificateError as error:
            self.failures += 1
            _log.warning("certificate not taken over, the last good one stays", reason=str(error))
        else:
            _log.info("certificate taken over")

    def _sign(self) -> _Signature:
        return tuple(_signature(path) for path in self._files)

    def _read(self) -> ssl.SSLContext:
        certificate, key = self._files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        pem = _bytes(certificate)
        try:
            expiry = x509.load_pem_x509_certificate(pem).not_valid_after_utc
        except ValueError:
            raise CertificateError(f"--tls-cert-file {certificate}: is no certificate in PEM") from None
        _bytes(key)
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
        except ssl.SSLError as error:
            fits = error.reason != "KEY_VALUES_MISMATCH"
            why = "is no private key in PEM" if fits else f"is not the key of --tls-cert-file {certificate}"
            raise CertificateError(f"--tls-key-file {key}: {why}") from None
        except (OSError, ValueError) as error:
            raise CertificateError(f"--tls-key-file {key}: {error}") from None
        self._loaded(expiry)
        return context


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE)
    except OSError as error:
        raise CertificateError(f"cannot read {path}: {error.strerror}") from None


def _signature(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)


def _no_password() -> str:
    raise ValueError("the key is encrypted")
