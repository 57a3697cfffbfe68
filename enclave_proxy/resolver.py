# SPDX-License-Identifier: Apache-2.0
"""Names to addresses: asked again while they are in use, remembered while DNS fails.

getaddrinfo tells no TTL, so that an answer counts as current for five seconds (Envoy's `dns_refresh_rate`). It gives A
and AAAA in the order of RFC 6724. A name that nobody dials is not asked for.

    current                        used at once
    just past that                 used at once, while it is asked for again
    older                          asked for first; if there is no answer in a moment, the last good one is used
    DNS fails                      the last good one, for a day (RFC 8767, section 5)
    DNS says there is no such name nothing is used: that is an answer

That an old address may be somebody else's by now is found out in the handshake, as for every address.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from enclave_proxy.errors import ProxyError
from enclave_proxy.task_set import TaskSet

Lookup = Callable[[str], Awaitable[Sequence[str]]]

REFRESH = 5.0
# While a name is in use, nobody waits for its refresh; after this long the answer may be that of another time.
_OVERDUE = 3 * REFRESH
# RFC 8767, section 5: client response timer, and the maximum of its stale timer.
STALE_PATIENCE = 1.8
MAX_STALE = 86_400.0
# After a failure, or a "no", nobody asks again before this is over.
NEGATIVE = 1.0
# A lookup occupies a thread of the process until the system's own timeout.
LOOKUPS = 4
# Of one name: more are of no use to a balancer here, and an answer is somebody else's input.
MAX_ADDRESSES = 64

# What says that a name has no address, and not that it could not be found out.
_DENIALS = frozenset({socket.EAI_NONAME, socket.EAI_NODATA})


class Unresolved(ProxyError):
    """A name without usable address; the text says why, without the name."""


@dataclass(slots=True)
class ResolverCounters:
    """Since the start."""

    lookups: int = 0
    """questions asked"""
    failures: int = 0
    """questions without an address for an answer"""
    stale: int = 0
    """times that an old answer was used because there was no new one"""


@dataclass(slots=True)
class _Name:
    addresses: tuple[str, ...] = ()
    learned: float = -math.inf
    problem: str = ""  # of the last lookup
    quiet_until: float = -math.inf
    lookup: asyncio.Task[None] | None = None


async def system_lookup(host: str) -> list[str]:
    """What the system's resolver knows of a name: numeric addresses, best first. Raises OSError, UnicodeError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address[0]) for _, _, _, _, address in found]


class Resolver:
    """The names of one relay. `tasks` runs the lookups: whoever waits for one may give up, the lookup goes on."""

    def __init__(self, tasks: TaskSet, clock: Callable[[], float], lookup: Lookup = system_lookup) -> None:
        self.counters = ResolverCounters()
        self._tasks = tasks
        self._clock = clock
        self._ask = lookup
        self._slots = asyncio.Semaphore(LOOKUPS)
        self._names: dict[str, _Name] = {}

    def retain(self, hosts: Collection[str]) -> None:
        """Forget all other names."""
        self._names = {host: name for host, name in self._names.items() if host in hosts}

    async def resolve(self, host: str, within: float) -> tuple[str, ...]:
        """The addresses of a name, at least one. Raises Unresolved, at the latest after `within` seconds."""
        name = self._names.setdefault(host, _Name())
        now = self._clock()
        age = now - name.learned
        if age < REFRESH and name.addresses:
            return name.addresses
        if name.lookup is None and now >= name.quiet_until:
            name.lookup = self._tasks.spawn(self._look_up(host, name))
        old = name.addresses if age < MAX_STALE else ()
        if name.lookup is not None and not (old and (name.problem or age < _OVERDUE)):
            patience = min(within, STALE_PATIENCE) if old else within
            _, silent = await asyncio.wait((name.lookup,), timeout=patience)
            if silent:
                name.problem = "timed out"
        return self._answer(name)

    def _answer(self, name: _Name) -> tuple[str, ...]:
        age = self._clock() - name.learned
        if name.addresses and age < MAX_STALE:
            if age >= _OVERDUE:
                self.counters.stale += 1
            return name.addresses
        raise Unresolved(name.problem)

    async def _look_up(self, host: str, name: _Name) -> None:
        try:
            async with self._slots:
                self.counters.lookups += 1
                found = tuple(dict.fromkeys(await self._ask(host)))[:MAX_ADDRESSES]
        except (OSError, UnicodeError) as e:
            self._failed(name, e)
        else:
            if found:
                name.addresses, name.learned, name.problem = found, self._clock(), ""
            else:
                self._failed(name, OSError(socket.EAI_NODATA, "no address"))
        finally:
            name.lookup = None

    def _failed(self, name: _Name, error: Exception) -> None:
        self.counters.failures += 1
        name.quiet_until = self._clock() + NEGATIVE
        if isinstance(error, OSError):
            name.problem = error.strerror or type(error).__name__
        else:
            name.problem = "not a name that DNS can carry"
        if isinstance(error, OSError) and error.errno in _DENIALS:
            name.addresses = ()
