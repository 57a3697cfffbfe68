# SPDX-License-Identifier: Apache-2.0
"""From one Marble root to the next without a dropped connection: which roots are trusted, and when to go on. Pure.

    update ─► INTRODUCE   every bundle: old roots + new one          until all hold it
              RENEW       every identity anew, under the new one     until all hold theirs
              RETIRE      every bundle: the new root alone           until all hold it
              SETTLED

Nobody ever shows a certificate whose root a connected peer does not have yet. "All" are the clients that are connected
or were within the endpoints' grace; who does not answer holds a phase up for `Pace.patience` at most, and finds the
newest state when it comes back, the bundle before the identity. After everybody has answered a phase lasts `settle`
longer, for those who stand behind somebody that answers: an Envoy on its worker's SDS socket, an Envoy's own threads.
RENEW lasts `finish` longer: whoever has begun a handshake with its old identity must still find the old root. Where a
busy machine takes longer for a handshake, it fails, unless whoever dials dials again, as our worker does where it can.

An update while another one is under way starts again at INTRODUCE, with one more root in the bundle. A root that nobody
was given an identity of is left out then, so that the bundle grows only if identities really are of many roots; beyond
MAX_ROOTS the oldest goes.

A Coordinator that starts with a state does not know who was connected to the one before. For `gather` it takes every
client for one that will come back: it does not leave INTRODUCE, where it begins if it finds roots that are still in
the bundles (`former_roots`).

A root that has left the bundle is good for nothing between Marbles. For `grace` the xDS port still takes certificates
of it, so that an instance that was away during the rotation can come back and fetch its new identity; who stays away
longer has to be activated again (a worker with a pin does that by itself).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum

from cryptography import x509

from sds.ca import pem_of
from sds.material import MaterialError, TrustBundle, authority_key_id, check_issued_by, subject_key_id

# A bundle holds 64 certificates, the gateways of a port included; eight roots leave room for 56 of them.
MAX_ROOTS = 8
# Roots that only the xDS port still takes. With a grace of ten minutes that is an update every 19 seconds.
MAX_DEPARTED = 32

Departed = tuple[x509.Certificate, datetime]  # a root that has left the bundles, and until when xDS takes it


class Phase(IntEnum):
    """How far a rotation is; the numbers are the values of the metric."""

    SETTLED = 0
    INTRODUCE = 1
    RENEW = 2
    RETIRE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long a phase waits for clients that do not answer, how long after the last answer (`finish`: in RENEW), how
    long after a start for clients to come back, and for how long certificates of a root that has gone still open the
    xDS port."""

    patience: timedelta = timedelta(seconds=10)
    # An Envoy takes a secret from its worker's socket and hands it to its threads within 10 ms.
    settle: timedelta = timedelta(milliseconds=200)
    finish: timedelta = timedelta(seconds=1)
    # A worker tries again every 30 s at least.
    gather: timedelta = timedelta(seconds=30)
    grace: timedelta = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class RotationStatus:
    """For status and metrics. `roots`: in the bundle now; `behind`: phases that ended before all had answered."""

    phase: Phase
    since: datetime | None
    roots: int
    behind: int


@dataclass(slots=True)
class _Root:
    certificate: x509.Certificate
    issued: bool  # somebody has, or had, an identity of it


class Rotation:
    """The roots of one mesh. Times are arguments; the caller sends the bundle, renews and counts answers."""

    def __init__(self, pace: Pace | None = None) -> None:
        self.pace = pace or Pace()
        self.phase = Phase.SETTLED
        self.since: datetime | None = None
        self.behind = 0
        self._roots: list[_Root] = []
        self._departed: list[Departed] = []
        self._progress: datetime | None = None
        self._calm: datetime | None = None
        self._gathered: datetime | None = None

    # ---- who is trusted

    @property
    def newest(self) -> x509.Certificate | None:
        """The root that identities are issued under."""
        return self._roots[-1].certificate if self._roots else None

    @property
    def roots(self) -> tuple[x509.Certificate, ...]:
        """What Marbles believe each other for, the newest last."""
        return tuple(root.certificate for root in self._roots)

    def known(self, now: datetime) -> tuple[x509.Certificate, ...]:
        """What opens the xDS port: the roots, and those that have left within the grace."""
        self._departed = [(root, until) for root, until in self._departed if until > now]
        return (*self.roots, *(root for root, _ in self._departed))

    @property
    def bundle(self) -> TrustBundle:
        """The bundle in force. Raises MaterialError while there is no root."""
        return _bundle(self.roots)

    def check_issued(self, certificate: x509.Certificate, now: datetime) -> None:
        """One of the known roots signed it. Raises MaterialError (sds.material).

        All roots have the same name, so that which one is meant shows only in its key.
        """
        *others, last = reversed(self.known(now))
        for root in others:
            try:
                check_issued_by(certificate, root)
            except MaterialError:
                continue
            return
        check_issued_by(certificate, last)

    def names_key_of(self, certificate: x509.Certificate, now: datetime) -> bool:
        """Whether a certificate says that it is of one of the known roots. It proves nothing."""
        key = authority_key_id(certificate)
        return key is not None and any(subject_key_id(root) == key for root in self.known(now))

    # ---- what happens

    def reset(self, root: x509.Certificate) -> None:
        """This root and no other, at once: a mesh begins."""
        self._roots, self._departed = [_Root(root, issued=False)], []
        self.phase, self.since, self._gathered = Phase.SETTLED, None, None

    def resume(
        self, root: x509.Certificate, now: datetime, former: Iterable[x509.Certificate], departed: Iterable[Departed]
    ) -> None:
        """A mesh goes on, maybe in the middle of a rotation: then `former` are the roots that are in the bundles beside
        this one. `departed`: those that only open the xDS port."""
        self._roots = [_Root(certificate, issued=True) for certificate in (*former, root)]
        self._departed = list(departed)
        self.phase, self.since = Phase.SETTLED, None
        if len(self._roots) > 1:
            self._enter(Phase.INTRODUCE, now)
        self._gathered = now + self.pace.gather

    def begin(self, root: x509.Certificate, now: datetime) -> None:
        """A new root comes. Identities of the old ones must not be issued from here on, of the new one only for
        instances that are new, until the phase is RENEW."""
        kept = self._kept(root)
        for gone in self._roots:
            if gone not in kept and gone.certificate != root:
                self._depart(gone.certificate, now)
        self._roots = [*kept, _Root(root, issued=False)]
        self._enter(Phase.INTRODUCE, now)

    def issued(self) -> None:
        """Somebody was given an identity of the newest root: it must stay until that one has another."""
        if self._roots:
            self._roots[-1].issued = True

    def renewed(self, now: datetime) -> None:
        """Identities were renewed. A fleet of 20 000 takes a minute, so patience counts from the last of them."""
        self.issued()
        if self.phase is Phase.RENEW:
            self._progress, self._calm = now, None

    def advance(self, now: datetime, *, answered: bool) -> bool:
        """Go on if it is time; whether the phase changed. `answered`: all clients hold what the phase gave them."""
        if self.phase is Phase.SETTLED:
            return False
        if not answered:
            self._calm = None
            if now - (self._progress or now) < self.pace.patience:
                return False
        else:
            self._calm = self._calm or now
            if now - self._calm < (self.pace.finish if self.phase is Phase.RENEW else self.pace.settle):
                return False
        if self.phase is Phase.INTRODUCE and self._gathered is not None and now < self._gathered:
            return False
        self.behind += not answered
        self._enter(_NEXT[self.phase], now)
        return True

    def is_newest(self, certificate: x509.Certificate) -> bool:
        """Whether the root that identities are issued under signed it."""
        try:
            check_issued_by(certificate, self._roots[-1].certificate)
        except MaterialError:
            return False
        return True

    def departed(self, now: datetime) -> tuple[Departed, ...]:
        """Roots that have left the bundles, and until when they open the xDS port."""
        return tuple((root, until) for root, until in self._departed if until > now)

    def status(self) -> RotationStatus:
        return RotationStatus(self.phase, self.since, len(self._roots), self.behind)

    def _enter(self, phase: Phase, now: datetime) -> None:
        if phase is Phase.RETIRE:
            for root in self._roots[:-1]:
                self._depart(root.certificate, now)
            del self._roots[:-1]
        self.phase, self._progress, self._calm = phase, now, None
        self.since = None if phase is Phase.SETTLED else now

    def _kept(self, root: x509.Certificate) -> list[_Root]:
        used = [r for r in self._roots if r.issued and r.certificate != root]
        return used[-(MAX_ROOTS - 1) :]

    def _depart(self, root: x509.Certificate, now: datetime) -> None:
        self._departed = [*self._departed, (root, now + self.pace.grace)][-MAX_DEPARTED:]


_NEXT = {
    Phase.INTRODUCE: Phase.RENEW,
    Phase.RENEW: Phase.RETIRE,
    Phase.RETIRE: Phase.SETTLED,
}


def _bundle(roots: tuple[x509.Certificate, ...]) -> TrustBundle:
    return TrustBundle(b"".join(pem_of(root) for root in roots))
