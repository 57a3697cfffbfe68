# SPDX-License-Identifier: Apache-2.0
"""What stands between a secret that was made and everybody who would get it: a bad one never leaves. Pure but a clock.

    wanted ─► let_out(owner) ─► what may leave: the wanted one, or the last good one of that name, or nothing

An owner is whoever the secrets are for: an instance, or all instances of a type. What is withheld is named with its
reason until a good one comes, and looked at again as time passes (a certificate may simply be of tomorrow).

The check is made once per content, however many owners have it: verdicts are kept for a minute, so that what expires
meanwhile is not handed to a newcomer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType

from sds.resources import Resource
from sds.secret_checks import UNUSABLE, SecretRefused, check_secret

Owner = tuple[str, ...]
Secrets = Mapping[str, Resource]
Check = Callable[[Resource, datetime], None]

LOOK_AGAIN = timedelta(minutes=1)
# Distinct secrets that are shared by several owners: bundles of ports, certificates of the manifest.
_MAX_VERDICTS = 4096
_NOTHING: Secrets = MappingProxyType({})
_NO_REASONS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Withheld:
    """A secret that does not leave. `part` and `reason` say why, `kept`: its predecessor is in use instead. `resource`
    is None for one that could not even be made."""

    name: str
    part: str
    reason: str
    since: datetime
    kept: bool
    resource: Resource | None = field(repr=False)

    @property
    def version(self) -> str:
        """Names the content that is withheld; empty if there is none."""
        return "" if self.resource is None else self.resource.version


def unheard(_owner: Owner, _withheld: Withheld) -> None:
    """Nobody wants to know."""


class PublishGate:
    """One per publisher. `told` hears of every secret that is newly withheld."""

    def __init__(self, now: Callable[[], datetime], told: Callable[[Owner, Withheld], None] = unheard) -> None:
        self._now = now
        self._told = told
        self._last: dict[Owner, Secrets] = {}
        self._withheld: dict[Owner, dict[str, Withheld]] = {}
        self._verdicts: OrderedDict[tuple[str, str], tuple[datetime, SecretRefused | None]] = OrderedDict()

    def let_out(
        self, owner: Owner, wanted: Secrets, check: Check | None = None, unusable: Mapping[str, str] = _NO_REASONS
    ) -> Secrets:
        """What of the owner's secrets may leave; the same object if all of them. What left before and is unchanged is
        not checked again. `check`: instead of `check_secret`, where more is known than the bytes. `unusable`: names
        with the reason why they could not be made; the predecessor of such a one is in `wanted`, if there is any."""
        before, now = self._last.get(owner, _NOTHING), self._now()
        known = self._withheld.pop(owner, {})
        found: dict[str, Withheld] = {}
        out = wanted
        for name, resource in wanted.items():
            last = before.get(name)
            if last is not None and last.version == resource.version:
                continue
            refused = self._verdict(resource, now, check)
            if refused is not None:
                found[name] = Withheld(name, refused.part, str(refused), now, last is not None, resource)
        if found:
            kept = {name: before[name] for name in found if name in before}
            out = MappingProxyType({**{n: r for n, r in wanted.items() if n not in found}, **kept})
        for name, reason in unusable.items():
            found[name] = Withheld(name, UNUSABLE, reason, now, name in out, None)
        if found:
            self._withheld[owner] = {name: self._tell(owner, known.get(name), made) for name, made in found.items()}
        self._last[owner] = out
        return out

    def _tell(self, owner: Owner, known: Withheld | None, made: Withheld) -> Withheld:
        if known is not None and (known.version, known.reason) == (made.version, made.reason):
            return known
        self._told(owner, made)
        return made

    def _verdict(self, resource: Resource, now: datetime, check: Check | None) -> SecretRefused | None:
        if check is not None:
            return _judge(check, resource, now)
        key = resource.name, resource.version
        known = self._verdicts.get(key)
        if known is None or not known[0] <= now < known[0] + LOOK_AGAIN:
            known = self._verdicts[key] = now, _judge(check_secret, resource, now)
            self._verdicts.move_to_end(key)
            if len(self._verdicts) > _MAX_VERDICTS:
                self._verdicts.popitem(last=False)
        return known[1]

    def ripe(self) -> frozenset[Owner]:
        """Owners of something that is withheld and would pass now: ask `let_out` for them again."""
        now = self._now()
        return frozenset(
            owner
            for owner, withheld in self._withheld.items()
            if any(e.resource is not None and self._verdict(e.resource, now, None) is None for e in withheld.values())
        )

    def withheld(self) -> Iterator[tuple[Owner, Withheld]]:
        """Everything that does not leave now, and for whom."""
        for owner, entries in self._withheld.items():
            for entry in entries.values():
                yield owner, entry

    def withheld_from(self, owner: Owner) -> tuple[Withheld, ...]:
        """What one owner would have and does not get."""
        return tuple(self._withheld.get(owner, {}).values())

    def forget(self, owner: Owner) -> None:
        """The owner is no more."""
        self._last.pop(owner, None)
        self._withheld.pop(owner, None)

    def retain(self, owners: Iterable[Owner]) -> None:
        """Forget all others."""
        for owner in self._last.keys() - set(owners):
            self.forget(owner)


def _judge(check: Check, resource: Resource, now: datetime) -> SecretRefused | None:
    try:
        check(resource, now)
    except SecretRefused as refused:
        return refused
    return None
