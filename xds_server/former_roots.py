# SPDX-License-Identifier: Apache-2.0
"""The Marble roots before the present one, as far as a Coordinator that starts must know them. Pure.

    update ─► issuers   their roots are in every bundle; for who comes back with an identity of one of them
    RETIRE ─► departed  the roots alone, each with the time until which it opens the xDS port

Who comes back in the middle of a rotation is given another identity of the old root first: its peers may not have the
new root yet. Therefore an issuer is kept with its key, and only until its root has left the bundles. As long as there
is one, those that were turned out meanwhile are named: their certificates are of a root that is trusted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Self

from cryptography import x509

from sds.ca import CertificateAuthority
from sds.material import MaterialError, check_issued_by
from xds_server.revocation import MAX_REVOKED_INSTANCES, Instance
from xds_server.rotation import MAX_DEPARTED, MAX_ROOTS, Departed, Pace, Rotation


@dataclass(frozen=True, slots=True)
class FormerRoots:
    """`issuers`: the oldest first; `departed`: root and time (UTC, aware); `revoked`: who was turned out since the
    first of the issuers was replaced."""

    issuers: tuple[CertificateAuthority, ...] = ()
    departed: tuple[Departed, ...] = ()
    revoked: tuple[Instance, ...] = ()

    def replaced(self, ca: CertificateAuthority, turned_out: Iterable[Instance], now: datetime) -> Self:
        """A new CA takes the place of this one."""
        issuers = (*self.issuers, ca)
        gone = tuple((old.marble_root, now + Pace().grace) for old in issuers[: -(MAX_ROOTS - 1)])
        return replace(
            self,
            issuers=issuers[len(gone) :],
            departed=(*(one for one in self.departed if one[1] > now), *gone)[-MAX_DEPARTED:],
            revoked=tuple(dict.fromkeys((*self.revoked, *turned_out)))[-MAX_REVOKED_INSTANCES:],
        )

    def as_of(self, rotation: Rotation, now: datetime) -> Self:
        """As a rotation has it: of the issuers, only those are left whose roots are in the bundles."""
        issuers = tuple(ca for ca in self.issuers if ca.marble_root in rotation.roots)
        return replace(self, issuers=issuers, departed=rotation.departed(now), revoked=self.revoked if issuers else ())

    @property
    def trusted(self) -> tuple[x509.Certificate, ...]:
        """What is in the bundles beside the present root."""
        return tuple(ca.marble_root for ca in self.issuers)

    def issuer_of(self, certificate: x509.Certificate) -> CertificateAuthority | None:
        """Which of the issuers signed it, None if none of them did."""
        for ca in reversed(self.issuers):
            try:
                check_issued_by(certificate, ca.marble_root)
            except MaterialError:
                continue
            return ca
        return None


NO_FORMER_ROOTS = FormerRoots()
