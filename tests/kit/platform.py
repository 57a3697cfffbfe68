# SPDX-License-Identifier: Apache-2.0
"""Simulated platforms for tests: one shared by a test process, and a builder with knobs for what must be refused."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from sds.attestation.appraiser import Appraiser
from sds.attestation.collateral import Collateral, CollateralKey
from sds.attestation.evidence import Evidence
from sds.attestation.simulated import SimulatedEnclave, SimulatedPlatform, SimulatedTd
from sds.attestation.simulated.documents import Verdict, make_collateral
from sds.attestation.simulated.pki import Pair, Pki
from sds.attestation.simulated.quoting import QuotingEnclave, sgx_body, td_body
from sds.attestation.tee import Tee
from sds.attestation.verify import DcapVerifier

NOW = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)
REPORT_DATA = bytes(range(64))
ENCLAVE = SimulatedEnclave.default("test")
TRUST_DOMAIN = SimulatedTd.default("test")


@functools.cache
def shared_platform() -> SimulatedPlatform:
    """One platform for all tests of this process, opened at the real time; its directory goes with the process."""
    directory = tempfile.TemporaryDirectory(prefix="simulated-platform-")
    _KEPT.append(directory)
    return SimulatedPlatform.open(Path(directory.name) / "platform", datetime.now(UTC))


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


def simulated_appraiser(platform: SimulatedPlatform | None = None) -> Appraiser:
    """What judges the quotes of this platform, at the real time."""
    platform = platform or shared_platform()
    return Appraiser(platform.verifier(), platform.collateral, lambda: datetime.now(UTC))


@dataclass(frozen=True)
class Lab:
    """A platform in memory, at a pinned time, whose documents say what a test wants them to say."""

    pki: Pki = field(default_factory=Pki.create)
    verdict: Verdict = field(default_factory=Verdict)
    signer: Pair | None = None
    now: datetime = NOW
    documents_from: datetime = NOW
    quoting: QuotingEnclave = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "quoting", QuotingEnclave.start(self.pki))

    def saying(self, **verdict: object) -> Lab:
        """The same platform with another verdict."""
        return replace(self, verdict=replace(self.verdict, **verdict))  # type: ignore[arg-type]

    def sgx(self, enclave: SimulatedEnclave = ENCLAVE, report_data: bytes = REPORT_DATA) -> Evidence:
        return Evidence(Tee.SGX, self.quoting.quote_sgx(sgx_body(enclave, report_data)))

    def tdx(
        self,
        td: SimulatedTd = TRUST_DOMAIN,
        report_data: bytes = REPORT_DATA,
        *,
        version: int = 4,
        size: int = 584,
    ) -> Evidence:
        return Evidence(Tee.TDX, self.quoting.quote_td(td_body(td, report_data, size), version))

    def collateral(self, tee: Tee = Tee.SGX) -> Collateral:
        return make_collateral(self.pki, tee, self.documents_from, self.verdict, self.signer)

    def verifier(self) -> DcapVerifier:
        return DcapVerifier(self.pki.root_der, simulated=True)

    async def get(self, key: CollateralKey) -> Collateral:
        """A lab is its own source of collateral."""
        return self.collateral(key.tee)

    def appraiser(self) -> Appraiser:
        return Appraiser(self.verifier(), self, lambda: self.now)


@functools.cache
def lab() -> Lab:
    """One lab in perfect order for all tests of this process."""
    return Lab()
