# SPDX-License-Identifier: Apache-2.0
"""The order in which a Marble ends, so that no request that was accepted is lost and none comes that nobody serves.

    1  readiness goes; the stream to the Coordinator ends, so that peers look for others; nothing new from peers
    2  connections of peers end by themselves, at most for the drain time; then they are cut off
    3  the app gets the signal that ended us; what it opens itself goes on working while it shuts down
    4  after its grace it is killed, with all it has started; then the worker ends, with the app's status

A further ending signal ends stage 2, or stage 3.
"""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from enclave_proxy.health import Health
from enclave_proxy.signals import Signals


class Drains(Protocol):
    """The part of the relay that is needed here."""

    async def close_inbound(self, drain: float) -> None:
        """Accept nothing from peers any more; wait `drain` seconds for what they have open, then cut it off."""


class Ends(Protocol):
    """The part of the app's supervisor that is needed here."""

    def stop(self, number: signal.Signals) -> None:
        """Tell it to end, once and for all."""

    def kill(self) -> None:
        """End it, if it has not ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown:
    """`relay` None: an Envoy carries the data, and drains by itself. `drain` and `grace` in seconds."""

    signals: Signals
    app: Ends
    relay: Drains | None
    stream: asyncio.Task[None]
    health: Health
    drain: float
    grace: float
    log: FilteringBoundLogger

    async def when_told(self) -> None:
        """Wait for an ending signal, then go through the stages; the last one ends when the app does."""
        await self.signals.ending.wait()
        self.health.ending = True
        self.log.info("ending", signal=self.signals.number.name, drain_seconds=self.drain)
        self.stream.cancel()
        if self.relay is not None and not await self.signals.stage(self.relay.close_inbound(self.drain)):
            self.log.info("told again: connections are cut off")
            await self.relay.close_inbound(0)
        self.log.debug("peers are gone, the app is told to end")
        self.app.stop(self.signals.number)
        if not await self.signals.stage(asyncio.sleep(self.grace)):
            self.log.info("told again: the app is killed")
        self.app.kill()

    async def when_revoked(self) -> None:
        """Wait until the Coordinator has turned this Marble out (who did that has cut it off already): the app could
        reach nobody any more, so that it is told to end at once."""
        await asyncio.wait((self.stream,))
        if self.stream.cancelled():
            return
        self.app.stop(signal.SIGTERM)
        await asyncio.sleep(self.grace)
        self.app.kill()
