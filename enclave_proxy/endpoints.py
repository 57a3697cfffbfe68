# SPDX-License-Identifier: Apache-2.0
"""Which of the endpoints of one peer gets the next connection. Rules only: no sockets, the clock is given.

The less loaded of two random ones ("power of two choices", Envoy's LEAST_REQUEST with equal weights): nearly as even as
looking at all of them, and many workers that do the same do not all run to the same endpoint. Load is the number of
connections that we have there, from the first attempt to the end. Of two that are alike the one that waited longer gets
it, so that two idle endpoints take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from enclave_proxy.outliers import OutlierRules, Outliers
from enclave_proxy.relay_config import TcpAddress

# With at most half of the endpoints out, 8 draws miss all the others in 0.4 % of the cases; then all are looked at.
_DRAWS = 8

Fits = Callable[[TcpAddress], bool]


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """One endpoint as an operator sees it. `failures`: in a row; `ejected_for`: seconds, 0 if it is in."""

    address: TcpAddress
    in_flight: int
    failures: int
    ejected_for: float


@dataclass(slots=True)
class _Load:
    in_flight: int = 0
    chosen: int = 0


class Balancer:
    """The endpoints of one outbound route. Every address that `choose` gives has to be given back by `release`, once.

    Memory: what the endpoints need, and those that are gone as long as connections to them are open.
    """

    def __init__(
        self, clock: Callable[[], float], random: Callable[[], float], rules: OutlierRules | None = None
    ) -> None:
        self._random = random
        self._addresses: list[TcpAddress] = []
        self._loads: dict[TcpAddress, _Load] = {}
        self._current: frozenset[TcpAddress] = frozenset()
        self._outliers = Outliers[TcpAddress](clock, random, rules)
        self._turn = 0

    def __len__(self) -> int:
        return len(self._addresses)

    def update(self, addresses: Iterable[TcpAddress]) -> None:
        """These are the endpoints now. Those that were there before keep their load and their failures."""
        self._addresses = list(dict.fromkeys(addresses))
        self._current = frozenset(self._addresses)
        busy = {address: load for address, load in self._loads.items() if load.in_flight}
        self._loads = busy | {address: self._loads.get(address) or _Load() for address in self._addresses}
        self._outliers.retain(self._current)

    def choose(self, tried: Collection[TcpAddress] = (), ipv6: bool | None = None) -> TcpAddress | None:
        """The endpoint to dial next, none of `tried`; None if there is no other.

        One that is not ejected before one that is: refusing would be certain failure. `ipv6` asks for a family, if that
        can be had.
        """
        wishes: list[Fits] = [lambda a: a not in tried and not self._outliers.is_out(a), lambda a: a not in tried]
        if ipv6 is not None:
            usable = wishes[0]
            wishes.insert(0, lambda a: is_ipv6(a) == ipv6 and usable(a))
        for fits in wishes:
            if (first := self._draw(fits)) is not None:
                return self._take(self._better(first, self._draw(fits, other_than=first)))
        return None

    def release(self, address: TcpAddress) -> None:
        """A connection, or an attempt, to this endpoint has ended."""
        load = self._loads[address]
        load.in_flight -= 1
        if not load.in_flight and address not in self._current:
            del self._loads[address]

    def failed(self, address: TcpAddress) -> bool:
        """It did not connect, did not finish the handshake or was somebody else. Whether it is ejected for that."""
        return self._outliers.failed(address)

    def succeeded(self, address: TcpAddress) -> None:
        """It connected and was admitted."""
        self._outliers.succeeded(address)

    @property
    def ejected(self) -> int:
        """How many endpoints are ejected now."""
        return len(self._outliers.out())

    def status(self) -> tuple[EndpointStatus, ...]:
        """All endpoints, and those that are gone and still have connections."""
        return tuple(
            EndpointStatus(address, load.in_flight, self._outliers.failures(address), self._outliers.remaining(address))
            for address, load in self._loads.items()
        )

    def _draw(self, fits: Fits, other_than: TcpAddress | None = None) -> TcpAddress | None:
        count = len(self._addresses)
        for _ in range(_DRAWS if count > 2 else 0):
            address = self._addresses[int(self._random() * count)]
            if address != other_than and fits(address):
                return address
        start = int(self._random() * count)
        rest = (self._addresses[(start + offset) % count] for offset in range(count))
        return next((address for address in rest if address != other_than and fits(address)), None)

    def _better(self, one: TcpAddress, other: TcpAddress | None) -> TcpAddress:
        if other is None:
            return one
        a, b = self._loads[one], self._loads[other]
        return one if (a.in_flight, a.chosen) <= (b.in_flight, b.chosen) else other

    def _take(self, address: TcpAddress) -> TcpAddress:
        load = self._loads[address]
        self._turn += 1
        load.chosen = self._turn
        load.in_flight += 1
        return address


def is_ipv6(address: TcpAddress) -> bool:
    """The family of a numeric address."""
    return ":" in address.host
