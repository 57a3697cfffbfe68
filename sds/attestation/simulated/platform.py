# SPDX-License-Identifier: Apache-2.0
"""The simulated platform as programs use it: open it, take its issuer, its verifier and its collateral."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Self

from sds.attestation.collateral import Collateral, CollateralKey
from sds.attestation.errors import CollateralUnavailable, DeviceUnavailable
from sds.attestation.evidence import Evidence
from sds.attestation.issuer import Issuer
from sds.attestation.simulated.enclave import SimulatedEnclave, SimulatedTd
from sds.attestation.simulated.pki import FMSPC, Pki
from sds.attestation.simulated.quoting import QuotingEnclave, sgx_body, td_body
from sds.attestation.simulated.sealing import SimulatedSealingKeys
from sds.attestation.simulated.store import PlatformStore
from sds.attestation.tee import Tee
from sds.attestation.verify import DcapVerifier


def default_platform_dir(env: Mapping[str, str]) -> Path:
    """Where a user's simulated platform lies: the XDG state directory, so that all of one user's programs share it.

    :raises DeviceUnavailable: if the environment names neither it nor a home.
    """
    if (state := env.get("XDG_STATE_HOME", "")).startswith("/"):  # the XDG specification has relative paths ignored
        return Path(state) / "marblemesh" / "simulated-platform"
    if home := env.get("HOME"):
        return Path(home) / ".local" / "state" / "marblemesh" / "simulated-platform"
    raise DeviceUnavailable(
        "simulated platform: neither XDG_STATE_HOME nor HOME is set: give its directory with "
        "--simulated-platform (EDG_SIMULATED_PLATFORM_DIR)"
    )


@dataclass(frozen=True, slots=True)
class SimulatedIssuer:
    """Makes the quotes of one simulated enclave or trust domain."""

    quoting: QuotingEnclave = field(repr=False)
    code: SimulatedEnclave | SimulatedTd

    @property
    def tee(self) -> Tee:
        return Tee.SGX if isinstance(self.code, SimulatedEnclave) else Tee.TDX

    def issue(self, report_data: bytes) -> Evidence:
        """See :class:`sds.attestation.issuer.Issuer`; takes 0.1 ms."""
        if isinstance(self.code, SimulatedEnclave):
            return Evidence(Tee.SGX, self.quoting.quote_sgx(sgx_body(self.code, report_data)))
        return Evidence(Tee.TDX, self.quoting.quote_td(td_body(self.code, report_data)))


@dataclass(slots=True)
class SimulatedCollateral:
    """The platform's collateral; renewed in a long-running process that gave its clock."""

    store: PlatformStore
    pki: Pki = field(repr=False)
    clock: Callable[[], datetime]
    known: dict[Tee, Collateral] = field(default_factory=dict)

    async def get(self, key: CollateralKey) -> Collateral:
        """See :class:`sds.attestation.collateral.CollateralSource`."""
        if key.fmspc != FMSPC or key.ca != "platform":
            raise CollateralUnavailable(
                f"collateral: a simulated platform has none for {key}; is this quote from real hardware?"
            )
        now = self.clock()
        known = self.known.get(key.tee)
        if known is None or not self.store.in_time(known, now):
            known = await asyncio.to_thread(self.store.collateral, self.pki, key.tee, now)
            self.known[key.tee] = known
        return known


@dataclass(frozen=True, slots=True)
class SimulatedPlatform:
    """One simulated machine with a quoting enclave. Processes that open the same directory are on the same machine."""

    pki: Pki = field(repr=False)
    collateral: SimulatedCollateral = field(repr=False)
    quoting: QuotingEnclave = field(repr=False)

    @classmethod
    def open(cls, directory: Path, now: datetime, clock: Callable[[], datetime] | None = None) -> Self:
        """Use the platform in this directory; it is made on first use.

        :param now: the time that collateral must be good for.
        :param clock: asked instead of ``now`` each time that collateral is fetched; give it in a program that runs for
            weeks.
        :raises DeviceUnavailable: if the directory cannot be used or what is in it is damaged.
        """
        store = PlatformStore(directory)
        pki = store.identity()
        for tee in Tee:
            store.collateral(pki, tee, now)  # now, so that later ones only read, and a full disk shows at the start
        return cls(pki, SimulatedCollateral(store, pki, clock or (lambda: now)), QuotingEnclave.start(pki))

    @property
    def root_der(self) -> bytes:
        """The root that a verifier must be given to believe this platform."""
        return self.pki.root_der

    def verifier(self) -> DcapVerifier:
        """The production verifier, with this platform's root in place of Intel's."""
        return DcapVerifier(self.root_der, simulated=True)

    def issuer(self, code: SimulatedEnclave | SimulatedTd) -> Issuer:
        """What makes quotes for this enclave or trust domain."""
        return SimulatedIssuer(self.quoting, code)

    def sealing_keys(self, enclave: SimulatedEnclave) -> SimulatedSealingKeys:
        """The keys that this enclave gets on this machine.

        :raises DeviceUnavailable: if the platform's secret cannot be had.
        """
        return SimulatedSealingKeys(self.collateral.store.sealing_secret(), enclave)
