# SPDX-License-Identifier: Apache-2.0
"""The worker's side of one relay process: start it, give it orders, hear when they are done and what it counts."""

from __future__ import annotations

import asyncio
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping
from typing import Self

from enclave_proxy.clusters import ClusterStatus
from enclave_proxy.counters import RelayCounters
from enclave_proxy.relay_channel import MAX_DESCRIPTORS, Channel, ChannelClosed, Message
from enclave_proxy.relay_config import Address
from enclave_proxy.relay_process import Clusters, Settings, Sockets
from enclave_proxy.wire_values import WireError, decode, encode

# Seconds for a process to do what costs it milliseconds.
OBEY = 10.0


class OrderFailed(Exception):
    """A relay process could not do what it was told, or has ended."""


class RelayChild:
    """A running relay process. Make it with `start`, await `run` for its end."""

    def __init__(self, process: Process, channel: Channel) -> None:
        self.counters = RelayCounters()
        self.clusters: tuple[ClusterStatus, ...] = ()
        """what it knew of its endpoints when it was last told to look"""
        self._process = process
        self._channel = channel
        self._sending = asyncio.Lock()
        self._number = 0
        self._waiting: dict[int, asyncio.Future[str | None]] = {}

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def start(cls, settings: Settings, env: Mapping[str, str]) -> Self:
        """Raises OSError."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "enclave_proxy.relay_process", str(theirs.fileno())),
                    pass_fds=(theirs.fileno(),),
                    env=dict(env),
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        child = cls(process, Channel(ours))
        await child._channel.send({"settings": encode(settings)})
        return child

    async def run(self) -> int:
        """Listen to it until it ends; its exit status, negative for death by signal."""
        try:
            while True:
                message, _ = await self._channel.receive()
                self._hear(message)
        except (ChannelClosed, WireError):
            return await self._ended()  # what makes no sense any more ends like what has ended
        except BaseException:
            await self._ended()
            raise

    async def _ended(self) -> int:
        self.kill()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_result("the process has ended")
        self._channel.close()
        return await self._process.wait()

    async def order(
        self, message: Message, sockets: Mapping[Address, socket.socket] | None = None, patience: float = OBEY
    ) -> None:
        """Have it do something, within `patience` seconds. Raises OrderFailed."""
        self._number += 1
        number = self._number
        done = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(patience):
                async with self._sending:
                    await self._send({**message, "order": number}, list((sockets or {}).items()))
                error = await done
        except TimeoutError:
            raise OrderFailed(f"no answer within {patience:g} s") from None
        except ChannelClosed:
            raise OrderFailed("the process has ended") from None
        finally:
            del self._waiting[number]
        if error is not None:
            raise OrderFailed(error)

    def kill(self) -> None:
        """End it, if it has not ended."""
        if self._process.returncode is None:
            self._process.kill()

    async def _send(self, message: Message, sockets: list[tuple[Address, socket.socket]]) -> None:
        first, rest = sockets[:MAX_DESCRIPTORS], sockets[MAX_DESCRIPTORS:]
        while rest:
            await self._send_sockets({"order": 0}, first)
            first, rest = rest[:MAX_DESCRIPTORS], rest[MAX_DESCRIPTORS:]
        await self._send_sockets(message, first)

    async def _send_sockets(self, message: Message, sockets: list[tuple[Address, socket.socket]]) -> None:
        if not sockets:
            return await self._channel.send(message)
        addresses = Sockets(tuple(address for address, _ in sockets))
        descriptors = tuple(each.fileno() for _, each in sockets)
        return await self._channel.send({**message, "sockets": encode(addresses)}, descriptors)

    def _hear(self, message: Message) -> None:
        if "counters" in message:
            self.counters = decode(RelayCounters, message["counters"])
        if "clusters" in message:
            self.clusters = decode(Clusters, message["clusters"]).statuses
        waiting = self._waiting.get(message.get("done", 0))
        if waiting is not None and not waiting.done():
            waiting.set_result(message.get("error"))
