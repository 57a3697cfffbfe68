# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from enclave_proxy.health import Health
from enclave_proxy.shutdown import Shutdown
from enclave_proxy.signals import Signals
from sds.logs import get_logger
from tests.kit.pki import now

NEVER = 3600.0


@dataclass
class Marble:
    """An app and a relay that write down what happens to them; the relay drains until it is let go."""

    said: list[object] = field(default_factory=list)
    drained: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def close_inbound(self, drain: float) -> None:
        self.said.append(("drain", drain))
        if drain > 0:
            await self.drained.wait()

    def send(self, number: signal.Signals) -> None:
        self.said.append(number)

    def stop(self, number: signal.Signals) -> None:
        self.said.append(("stop", number))

    def kill(self) -> None:
        self.said.append("kill")


@asynccontextmanager
async def ending(marble: Marble) -> AsyncIterator[tuple[Health, asyncio.Task[None]]]:
    """A worker at work, its signals installed."""
    signals, health = Signals(), Health("web", "u", simulation=True, now=now)
    async with asyncio.TaskGroup() as group:
        with signals.installed():
            signals.attach(marble)
            shutdown = Shutdown(
                signals=signals,
                app=marble,
                relay=marble,
                stream=group.create_task(asyncio.sleep(NEVER)),
                health=health,
                drain=NEVER,
                grace=NEVER,
                log=get_logger("test"),
            )
            task = group.create_task(shutdown.when_told())
            await asyncio.sleep(0)
            yield health, task
            task.cancel()
            shutdown.stream.cancel()


async def tell(number: signal.Signals = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)
    await settle()


async def settle() -> None:
    for _ in range(20):  # until the loop has read its wake-up pipe and everybody has acted on it
        await asyncio.sleep(0.001)


async def test_the_app_is_told_after_its_peers_have_gone_and_with_the_same_signal() -> None:
    marble = Marble()
    async with ending(marble) as (health, _):
        await tell(signal.SIGQUIT)
        assert health.not_ready() == "ending"
        assert marble.said == [("drain", NEVER)]
        marble.drained.set()
        await settle()
        await tell(signal.SIGUSR1)
        assert marble.said == [("drain", NEVER), ("stop", signal.SIGQUIT), signal.SIGUSR1]


async def test_each_further_signal_ends_one_stage() -> None:
    marble = Marble()
    async with ending(marble) as (_, task):
        await tell()
        await tell(signal.SIGINT)
        assert marble.said == [("drain", NEVER), ("drain", 0), ("stop", signal.SIGTERM)]
        await tell()
        assert marble.said[3:] == ["kill"]
        assert task.done()


async def test_a_hang_up_is_the_apps_and_ends_nothing() -> None:
    marble = Marble()
    async with ending(marble) as (health, _):
        await tell(signal.SIGHUP)
        assert marble.said == [signal.SIGHUP]
        assert not health.ending
