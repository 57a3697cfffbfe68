# SPDX-License-Identifier: Apache-2.0
"""Where quotes come from: the small port that the worker and the Coordinator need."""

from __future__ import annotations

from typing import Protocol

from sds.attestation.evidence import Evidence, Tee


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
