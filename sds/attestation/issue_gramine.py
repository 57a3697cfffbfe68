# SPDX-License-Identifier: Apache-2.0
"""SGX quotes from Gramine's pseudo files (gramine/libos, "Attestation and secret provisioning").

Writing ``user_report_data`` and reading ``quote`` are two steps on files that belong to the whole process, so they
happen under a lock; and since nothing else in the process is bound by our lock, the quote that comes back is checked to
carry what was asked for.
"""

from __future__ import annotations

import errno
import threading
from pathlib import Path

from sds.attestation.errors import DeviceUnavailable
from sds.attestation.evidence import Evidence
from sds.attestation.issuer import check_answer, check_request, read_device
from sds.attestation.quote import MAX_QUOTE
from sds.attestation.tee import Tee

GRAMINE_DEVICE = Path("/dev/attestation")

# Of the process, like the files.
_LOCK = threading.Lock()


class GramineIssuer:
    """Evidence about the enclave that this process runs in."""

    def __init__(self, base: Path = GRAMINE_DEVICE) -> None:
        self._base = base

    @property
    def tee(self) -> Tee:
        return Tee.SGX

    def issue(self, report_data: bytes) -> Evidence:
        """See :class:`sds.attestation.issuer.Issuer`."""
        check_request(report_data)
        with _LOCK:
            kind = self._read("attestation_type", 64).strip()
            if kind != b"dcap":
                raise DeviceUnavailable(
                    f"{self._base / 'attestation_type'} is {kind.decode('ascii', 'replace')!r}, expected 'dcap':"
                    ' set sgx.remote_attestation = "dcap" in the Gramine manifest'
                )
            self._write("user_report_data", report_data)
            quote = self._read("quote", MAX_QUOTE)
        return check_answer(quote, Tee.SGX, report_data, self._base / "quote")

    def _read(self, name: str, limit: int) -> bytes:
        try:
            return read_device(self._base / name, limit)
        except OSError as e:
            raise self._unavailable(name, e) from e

    def _write(self, name: str, data: bytes) -> None:
        try:
            with (self._base / name).open("r+b", buffering=0) as file:
                file.write(data)
        except OSError as e:
            raise self._unavailable(name, e) from e

    def _unavailable(self, name: str, e: OSError) -> DeviceUnavailable:
        hint = ""
        if name == "quote" and e.errno == errno.EACCES:
            hint = ": Gramine reports this when the host's AESM or quoting enclave fails; is aesmd running there?"
        return DeviceUnavailable(f"{self._base / name}: {e.strerror}{hint}")
