# SPDX-License-Identifier: Apache-2.0
"""Where quotes come from: the small port that the worker and the Coordinator need, and what all devices have in common.

A device is part of the host's world: what it answers is checked before anybody relies on it.
"""

from __future__ import annotations

import hmac
import os
from pathlib import Path
from typing import Protocol

from sds.attestation.errors import DeviceUnavailable, Malformed, Unsupported
from sds.attestation.evidence import Evidence
from sds.attestation.quote import Quote
from sds.attestation.report_data import REPORT_DATA_SIZE
from sds.attestation.tee import Tee


class Issuer(Protocol):
    """Asks the TEE that this code runs in for evidence about itself."""

    @property
    def tee(self) -> Tee:
        """What kind of evidence comes out."""

    def issue(self, report_data: bytes) -> Evidence:
        """Make evidence that carries these 64 bytes.

        Blocks for milliseconds to seconds (the host's quoting service takes part): call it in a thread.

        :raises ValueError: if ``report_data`` is not 64 bytes.
        :raises DeviceUnavailable: if there is no device, or it does not answer as it must.
        """


def check_request(report_data: bytes) -> None:
    """:raises ValueError: if this cannot be report data; devices would pad or cut it silently."""
    if len(report_data) != REPORT_DATA_SIZE:
        raise ValueError(f"report data must be {REPORT_DATA_SIZE} bytes, got {len(report_data)}")


def check_answer(answer: bytes, tee: Tee, report_data: bytes, where: Path) -> Evidence:
    """Read what a device gave.

    :raises DeviceUnavailable: if it is no quote of this TEE, or one with other report data: then something else used
        the device between our write and our read.
    """
    try:
        evidence = Evidence.parse(answer)
    except (Malformed, Unsupported) as e:
        raise DeviceUnavailable(f"{where}: {e}") from e
    if evidence.tee is not tee:
        raise DeviceUnavailable(f"{where}: a quote of {evidence.tee.value}, expected {tee.value}")
    if not hmac.compare_digest(Quote.parse(evidence.quote).report_data, report_data):
        raise DeviceUnavailable(
            f"{where}: the quote does not carry the report data that was asked for; does something else write there?"
        )
    return evidence


def read_device(path: Path, limit: int) -> bytes:
    """Read a pseudo file to its end, unbuffered; at most one byte over the limit, which the parser then refuses."""
    with path.open("rb", buffering=0) as file:
        data = b""
        while len(data) <= limit and (piece := os.read(file.fileno(), limit + 1 - len(data))):
            data += piece
        return data
