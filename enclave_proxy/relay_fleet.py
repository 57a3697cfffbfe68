# SPDX-License-Identifier: Apache-2.0
"""Several relay processes as one relay: `RelayConfig` in, counters out, as with one.

    Session ─apply─► Fleet ─► own Relay (binds for all; says no for all)
                       └────► process 2..N: the same configuration, a socket of each listener of their own

What the own relay refuses reaches nobody. What a process then cannot do, or does not do in time, is its end: it is
started again and told everything anew, so that no process ever serves what was taken back.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from structlog.typing import FilteringBoundLogger

from enclave_proxy.access_log import AccessLog
from enclave_proxy.backoff import Backoff
from enclave_proxy.counter_sum import of_the_dead, summed
from enclave_proxy.counters import RelayCounters
from enclave_proxy.fleet_clusters import FleetClusters
from enclave_proxy.limits import Limits
from enclave_proxy.relay import Relay
from enclave_proxy.relay_channel import ChannelClosed, Message
from enclave_proxy.relay_child import OBEY, OrderFailed, RelayChild
from enclave_proxy.relay_config import Address, Membership, RelayConfig
from enclave_proxy.relay_process import Settings
from enclave_proxy.shared_sockets import SharedSockets
from enclave_proxy.task_set import TaskSet
from enclave_proxy.wire_values import encode

# A message, and the sockets that go with it.
Order = tuple[Message, Mapping[Address, socket.socket]]


class Fleet:
    """Make it inside a running event loop and `start` it; `close` ends all. `others`: how many besides this process."""

    def __init__(
        self,
        log: FilteringBoundLogger,
        limits: Limits,
        others: list[Settings],
        env: Mapping[str, str],
        access_log: AccessLog | None = None,
    ) -> None:
        self._sockets = SharedSockets(len(others))
        self._own = Relay(log, limits, self._sockets.bind, access_log)
        self._log = log
        self._others = others
        self._env = env
        self._config = RelayConfig()
        self._membership = Membership()
        self._living: dict[int, RelayChild] = {}
        self._dead = RelayCounters()
        self._changing = asyncio.Lock()
        self._tasks = TaskSet(self._bug)
        self._begun = asyncio.Event()
        self._inbound_closed = False
        self._closed = False
        self.restarted = 0

    @property
    def counters(self) -> RelayCounters:
        """The sum over all processes, the dead ones too; others' numbers are a quarter of a second old at most."""
        return summed([self._own.counters, self._dead, *(child.counters for child in self._living.values())])

    def look(self) -> None:
        """See Relay.look; the others do it before they tell what they count."""
        self._own.look()

    @property
    def clusters(self) -> FleetClusters:
        """What the processes know of their endpoints."""
        return FleetClusters(self._own.clusters, lambda: list(self._living.values()))

    @property
    def size(self) -> int:
        """How many processes there should be, this one among them."""
        return 1 + len(self._others)

    @property
    def addresses(self) -> dict[str, Address]:
        """Where each listener really listens, by its name."""
        return self._own.addresses

    @property
    def processes(self) -> dict[int, int]:
        """Process ids of those that live, by their number; this process is number 1."""
        return {self._others[index].process: child.pid for index, child in self._living.items()}

    def start(self) -> None:
        """Begin to start the others, and keep them alive."""
        for index in range(len(self._others)):
            self._tasks.spawn(self._keep_alive(index))

    async def apply(self, config: RelayConfig) -> None:
        """See Relay.apply. When it returns, every process that lives has it."""
        await self._all_have_begun()
        async with self._changing:
            if self._inbound_closed:
                config = replace(config, inbound=())
            try:
                await self._own.apply(config)
            except BaseException:
                self._sockets.retain(_addresses(self._config))
                raise
            fresh = _addresses(config) - _addresses(self._config)
            self._config = config
            self._sockets.retain(_addresses(config))
            message = {"apply": encode(config)}
            await self._all(lambda index: (message, self._of(index, fresh)))

    def update_membership(self, membership: Membership) -> None:
        """See Relay.update_membership; the others hear it at once, and one that does not obey is ended."""
        if membership != self._membership:
            self._membership = membership
            self._own.update_membership(membership)
            self._tasks.spawn(self._tell_membership())

    async def close_inbound(self, drain: float) -> None:
        """See Relay.close_inbound."""
        self._inbound_closed = True
        self._config = replace(self._config, inbound=())
        self._sockets.retain(_addresses(self._config))
        await self._both(self._own.close_inbound(drain), {"close_inbound": drain}, drain)

    async def close(self, drain: float = 0.0) -> None:
        """See Relay.close. No process is left afterwards."""
        self._closed = True
        self._sockets.retain(())
        await self._both(self._own.close(drain), {"close": drain}, drain)
        for child in self._living.values():
            child.kill()
        await self._tasks.close()

    # --- inside

    def _of(self, index: int, addresses: set[Address]) -> dict[Address, socket.socket]:
        return {address: self._sockets.of(index, address) for address in addresses}

    async def _all_have_begun(self) -> None:
        """Once, at the beginning: what peers send to a process that is not there yet would wait for it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(OBEY):
                await self._begun.wait()
        self._begun.set()

    async def _tell_membership(self) -> None:
        message = {"membership": encode(self._membership)}
        await self._all(lambda _: (message, {}))

    async def _both(self, own: Coroutine[Any, Any, None], message: Message, drain: float) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(own)
            group.create_task(self._all(lambda _: (message, {}), drain))

    async def _all(self, order: Callable[[int], Order], drain: float = 0.0) -> None:
        async with asyncio.TaskGroup() as group:
            for index, child in list(self._living.items()):
                group.create_task(self._order(index, child, order(index), drain))

    async def _order(self, index: int, child: RelayChild, order: Order, drain: float) -> None:
        message, sockets = order
        try:
            await child.order(message, sockets, OBEY + drain)
        except OrderFailed as error:
            if not self._closed:
                self._log.error(
                    "relay process does not obey, it is started anew",
                    process=self._others[index].process,
                    reason=str(error),
                )
            child.kill()

    async def _keep_alive(self, index: int) -> None:
        backoff = Backoff(random.random, initial=0.2, cap=10.0, floor=0.1)
        while not self._closed:
            try:
                child = await RelayChild.start(self._others[index], self._env)
            except (OSError, ChannelClosed) as error:
                self._log.error(
                    "relay process cannot be started", process=self._others[index].process, reason=str(error)
                )
            else:
                await self._live(index, child, backoff)
            if not self._closed:
                await asyncio.sleep(backoff.next())

    async def _live(self, index: int, child: RelayChild, backoff: Backoff) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                ended = group.create_task(child.run())
                if await self._join(index, child):
                    backoff.reset()
                status = await ended
        finally:
            child.kill()
            self._living.pop(index, None)
            self._dead = summed([self._dead, of_the_dead(child.counters)])
        if not self._closed:
            self.restarted += 1
            self._log.error(
                "relay process has ended, it is started anew",
                process=self._others[index].process,
                pid=child.pid,
                status=status,
            )

    async def _join(self, index: int, child: RelayChild) -> bool:
        """Bring a new process to where the others are, and count it among them from then on."""
        async with self._changing:
            try:
                await child.order({"membership": encode(self._membership)})
                everything = self._of(index, _addresses(self._config))
                await child.order({"apply": encode(self._config)}, everything)
            except OrderFailed as error:
                self._log.error(
                    "relay process cannot be configured", process=self._others[index].process, reason=str(error)
                )
                child.kill()
                return False
            # Who was turned out while it came up must not wait for the next one.
            self._living[index] = child
            self._tasks.spawn(self._tell_membership())
            if len(self._living) == len(self._others):
                self._begun.set()
        self._log.info("relay process joined", process=self._others[index].process, pid=child.pid)
        return True

    def _bug(self, error: BaseException) -> None:
        self._log.error("keeping relay processes failed unexpectedly", exc_info=error)


def _addresses(config: RelayConfig) -> set[Address]:
    inbound: set[Address] = {route.bind for route in config.inbound}
    return inbound | {route.listen for route in config.outbound}
