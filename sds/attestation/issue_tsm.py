# SPDX-License-Identifier: Apache-2.0
"""TDX quotes from the kernel's configfs-tsm (Linux 6.7 and later, Documentation/ABI/testing/configfs-tsm).

A request is a directory: make it, and its attributes are there; write ``inblob``, read ``outblob``, compare
``generation``, remove it. The attributes cannot be unlinked, so it is ``rmdir`` and never a recursive delete.
"""

from __future__ import annotations

import errno
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from sds.attestation.errors import DeviceUnavailable
from sds.attestation.evidence import Evidence
from sds.attestation.issuer import check_answer, check_request, read_device
from sds.attestation.quote import MAX_QUOTE
from sds.attestation.tee import Tee

TSM_REPORT = Path("/sys/kernel/config/tsm/report")
_PROVIDER = "tdx_guest"

# The kernel answers EBUSY while another request of this VM is under way; one takes tens of milliseconds.
_ATTEMPTS = 8
_FIRST_PAUSE = 0.05

T = TypeVar("T")


class Files(Protocol):
    """The four operations that configfs needs; a test gives a directory that behaves like it."""

    def mkdir(self, path: Path) -> None: ...
    def rmdir(self, path: Path) -> None: ...
    def read(self, path: Path, limit: int) -> bytes: ...
    def write(self, path: Path, data: bytes) -> None: ...


class ConfigFs:
    """The real one: unbuffered, because one write is one request and a buffered reader would ask twice."""

    def mkdir(self, path: Path) -> None:
        path.mkdir()

    def rmdir(self, path: Path) -> None:
        path.rmdir()

    def read(self, path: Path, limit: int) -> bytes:
        return read_device(path, limit)

    def write(self, path: Path, data: bytes) -> None:
        with path.open("r+b", buffering=0) as file:
            if file.write(data) != len(data):
                raise OSError(errno.EIO, "short write")


class TsmIssuer:
    """Evidence about the trust domain that this code runs in."""

    def __init__(
        self, base: Path = TSM_REPORT, files: Files | None = None, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._base = base
        self._files = files or ConfigFs()
        self._pause = pause

    @property
    def tee(self) -> Tee:
        return Tee.TDX

    def issue(self, report_data: bytes) -> Evidence:
        """See :class:`sds.attestation.issuer.Issuer`."""
        check_request(report_data)
        request = self._base / f"marblemesh-{secrets.token_hex(8)}"
        try:
            self._files.mkdir(request)
            try:
                quote = self._request(request, report_data)
            finally:
                self._files.rmdir(request)
        except OSError as e:
            raise DeviceUnavailable(f"{e.filename or request}: {e.strerror}{_hint(e)}") from e
        return check_answer(quote, Tee.TDX, report_data, self._base)

    def _request(self, request: Path, report_data: bytes) -> bytes:
        provider = self._files.read(request / "provider", 64).decode("ascii", "replace").strip()
        if provider != _PROVIDER:
            raise DeviceUnavailable(f"{request / 'provider'} is {provider!r}, expected {_PROVIDER!r}")
        self._retry(lambda: self._files.write(request / "inblob", report_data))
        quote = self._retry(lambda: self._files.read(request / "outblob", MAX_QUOTE))
        # The kernel counts writes. One is ours; with more, somebody else wrote inblob and this may be their quote.
        generation = self._files.read(request / "generation", 64).strip()
        if generation != b"1":
            raise DeviceUnavailable(
                f"{request / 'generation'} is {generation.decode('ascii', 'replace')!r}, expected '1':"
                " another process wrote to this request"
            )
        return quote

    def _retry(self, ask: Callable[[], T]) -> T:
        pause = _FIRST_PAUSE
        for _ in range(_ATTEMPTS - 1):
            try:
                return ask()
            except OSError as e:
                if e.errno not in (errno.EBUSY, errno.EWOULDBLOCK):
                    raise
            self._pause(pause)
            pause *= 2
        return ask()


def _hint(e: OSError) -> str:
    match e.errno:
        case errno.ENOENT:
            return ": is this a TDX guest with Linux 6.7 or later, and configfs mounted?"
        case errno.EACCES | errno.EPERM:
            return ": needs root"
        case errno.ENXIO | errno.ENODEV:
            return ": no attestation provider is loaded (tdx_guest)"
        case errno.EIO:
            return ": the host's quote generation service failed"
        case _:
            return ""
