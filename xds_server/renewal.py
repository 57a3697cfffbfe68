# SPDX-License-Identifier: Apache-2.0
"""Short-lived mesh identities: who has one, when it is renewed, and the task that does it.

An identity is renewed between 60 % and 70 % of its life, at a point of its own, so that a fleet that started together
does not renew in one second. With the default of 24 hours that leaves more than seven hours in which a Coordinator that
is away harms nobody. `rotate_all` renews everything now: an operator asks for it with SIGHUP, and the mesh when another
root has been made known to everybody. While it is being made known (`held`) nobody is renewed, because an identity of
the new root would be shown to peers who do not have that root yet.

Limits: `MAX_INSTANCES` instances; beyond it the one activated longest ago is no longer renewed. A renewal takes about
3 ms of CPU, so 20 000 of them in 24 hours are a minute.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sds.ca import CertificateAuthority, LeafTemplate
from sds.material import Identity

MAX_INSTANCES = 20_000
# So many renewals are handed over at once: one push to the workers instead of hundreds.
BATCH = 64
# A clock may be set; no sleep is longer than this.
_LONGEST_SLEEP = 60.0

Instance = tuple[str, str]  # Marble type, UUID


def renew_at(not_before: datetime, not_after: datetime, jitter: float) -> datetime:
    """When to renew: 60 % to 70 % through the validity, by `jitter` from 0 to 1."""
    return not_before + (not_after - not_before) * (0.6 + 0.1 * jitter)


@dataclass(frozen=True, slots=True)
class _Entry:
    template: LeafTemplate
    due: datetime


class Identities:
    """The mesh identities that this Coordinator has issued. Rules only: time and randomness are arguments."""

    def __init__(self, ca: CertificateAuthority, jitter: Callable[[], float], limit: int = MAX_INSTANCES) -> None:
        self._ca = ca
        self._jitter = jitter
        self._limit = limit
        self._entries: OrderedDict[Instance, _Entry] = OrderedDict()
        # By time, so that an activation costs the same with 10 and with 20 000 instances. What is here and is not what
        # the entry says is out of date.
        self._queue: list[tuple[datetime, Instance]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def issue(self, template: LeafTemplate, now: datetime, ca: CertificateAuthority | None = None) -> Identity:
        """A first identity for an instance that was just verified, remembered for renewal. `ca`: which issues this one,
        if it is not the one of all others."""
        identity = (ca or self._ca).issue_marble(template, now)
        instance = (template.marble_type, template.uuid)
        self._remember(instance, _Entry(template, self._due(identity)))
        self._entries.move_to_end(instance)
        if len(self._entries) > self._limit:
            self._entries.popitem(last=False)
        return identity

    def renew(self, instance: Instance, now: datetime) -> Identity | None:
        """A new key and certificate that say the same; None if the instance is no longer known."""
        entry = self._entries.get(instance)
        if entry is None:
            return None
        identity = self._ca.issue_marble(entry.template, now)
        self._remember(instance, _Entry(entry.template, self._due(identity)))
        return identity

    def due(self, now: datetime) -> list[Instance]:
        """Whose identity has to be renewed at `now`, the one that waits longest first."""
        found = []
        while (first := self.next_due()) is not None and first <= now:
            found.append(heapq.heappop(self._queue))
        for item in found:  # they stay due until they are renewed
            heapq.heappush(self._queue, item)
        return list(dict.fromkeys(instance for _, instance in found))

    def use_ca(self, ca: CertificateAuthority) -> None:
        """Issue under another CA from now on."""
        self._ca = ca

    def adopt(self, fingerprint: str, lifetime: timedelta) -> None:
        """Another manifest is in force, which allows all that are still known here: identities say so from now on, and
        live as long as it says."""
        for instance, entry in self._entries.items():
            claims = entry.template.claims
            if claims is not None:
                claims = {**claims, "manifest": fingerprint}
            self._entries[instance] = _Entry(replace(entry.template, claims=claims, lifetime=lifetime), entry.due)

    def forget(self, instance: Instance) -> None:
        """Renew it no more; what it has lives on to its end."""
        self._entries.pop(instance, None)

    def everybody(self) -> list[Instance]:
        return list(self._entries)

    def next_due(self) -> datetime | None:
        """When the first one is due; None while there are none."""
        while self._queue and not self._is_current(self._queue[0]):
            heapq.heappop(self._queue)
        return self._queue[0][0] if self._queue else None

    def _remember(self, instance: Instance, entry: _Entry) -> None:
        self._entries[instance] = entry
        heapq.heappush(self._queue, (entry.due, instance))
        if len(self._queue) > 2 * len(self._entries) + BATCH:
            self._queue = [(known.due, name) for name, known in self._entries.items()]
            heapq.heapify(self._queue)

    def _is_current(self, item: tuple[datetime, Instance]) -> bool:
        due, instance = item
        entry = self._entries.get(instance)
        return entry is not None and entry.due == due

    def _due(self, identity: Identity) -> datetime:
        return renew_at(identity.not_before, identity.not_after, self._jitter())


Replace = Callable[[Mapping[Instance, Identity]], None]


class Renewer:
    """The task: sleeps until somebody is due, renews in batches, hands the new identities over."""

    def __init__(
        self,
        identities: Identities,
        clock: Callable[[], datetime],
        replace: Replace,
        held: Callable[[], bool] = lambda: False,
    ) -> None:
        self._identities = identities
        self._clock = clock
        self._replace = replace
        self._held = held
        self._wake = asyncio.Event()
        self._all = False
        self.renewed = 0

    def rotate_all(self) -> None:
        """Renew every identity now (SIGHUP, another root), or as soon as nothing holds that up."""
        self._all = True
        self._wake.set()

    def changed(self) -> None:
        """A new instance came: the next due time may be earlier."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._pause()):
                    await self._wake.wait()
            except TimeoutError:
                pass  # somebody is due, or the clock has to be looked at
            self._wake.clear()
            await self.step()

    async def step(self) -> int:
        """Renew what is due now; the number of new identities."""
        if self._held():
            return 0
        everybody, self._all = self._all, False
        instances = self._identities.everybody() if everybody else self._identities.due(self._clock())
        count = 0
        for start in range(0, len(instances), BATCH):
            renewed = {}
            for instance in instances[start : start + BATCH]:
                if self._held():
                    break  # another root came in between: the end of its introduction renews everybody
                identity = self._identities.renew(instance, self._clock())
                if identity is not None:
                    renewed[instance] = identity
                await asyncio.sleep(0)  # a fleet's renewal must not hold up an activation
            if renewed:
                self._replace(renewed)
                count += len(renewed)
        self.renewed += count
        return count

    def _pause(self) -> float:
        due = self._identities.next_due()
        if due is None or self._held():  # whoever holds it up wakes it again
            return _LONGEST_SLEEP
        return min(max((due - self._clock()).total_seconds(), 0.0), _LONGEST_SLEEP)
