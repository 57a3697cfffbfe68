# SPDX-License-Identifier: Apache-2.0
"""A process that only relays: told everything by the worker over one inherited socket, telling it what it counts.

    worker ─► settings, sockets, apply, membership, close ─► here ─► done (or why not), counters

It opens no listening socket of its own, knows neither Coordinator nor app, and ends when its worker does, however that
does. Signals that a terminal sends to everybody mean the worker, not this. Usage: relay_process DESCRIPTOR.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import uvloop

from enclave_proxy.access_log import access_log
from enclave_proxy.clusters import ClusterStatus
from enclave_proxy.collector import spare_what_is_loaded
from enclave_proxy.errors import ProxyError
from enclave_proxy.limits import Limits
from enclave_proxy.listener import RelayError
from enclave_proxy.relay import Relay
from enclave_proxy.relay_channel import Channel, ChannelClosed, Message
from enclave_proxy.relay_config import Address, Membership, RelayConfig
from enclave_proxy.wire_values import WireError, decode, encode
from sds.errors import SdsError
from sds.logs import configure, get_logger

# Seconds between two looks whether there is something new to count.
REPORT = 0.25


@dataclass(frozen=True, slots=True)
class Settings:
    """What is said first. `mark`: what every line of the log carries, see `sds.logs.configure`."""

    limits: Limits
    log_level: str
    log_format: Literal["json", "console"]
    mark: bool
    marble_type: str
    process: int
    access_log: str | None = None


@dataclass(frozen=True, slots=True)
class Sockets:
    """Where the descriptors that come with a message listen, in their order."""

    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Clusters:
    """The answer to `look`."""

    statuses: tuple[ClusterStatus, ...]


class RelayProcess:
    """The orders of one worker, as they come; each is answered when it is done."""

    def __init__(self, channel: Channel, relay: Relay, sockets: dict[Address, socket.socket]) -> None:
        self._channel = channel
        self._relay = relay
        self._sockets = sockets
        self._sending = asyncio.Lock()

    async def run(self) -> None:
        """Until the worker closes its end."""
        async with asyncio.TaskGroup() as group:
            reporting = group.create_task(self._report())
            try:
                while True:
                    message, descriptors = await self._channel.receive()
                    if descriptors:
                        self._take(message["sockets"], descriptors)
                    # Not one after the other: closing takes its time, and may be told again to take less.
                    group.create_task(self._obey(message))
            except ChannelClosed:
                reporting.cancel()

    def _take(self, sockets: object, descriptors: list[int]) -> None:
        for address, descriptor in zip(decode(Sockets, sockets).addresses, descriptors, strict=True):
            received = socket.socket(fileno=descriptor)
            received.setblocking(False)
            self._sockets[address] = received

    async def _obey(self, message: Message) -> None:
        answer: Message = {"done": message["order"]}
        try:
            match message:
                case {"apply": config}:
                    await self._relay.apply(decode(RelayConfig, config))
                case {"membership": membership}:
                    self._relay.update_membership(decode(Membership, membership))
                case {"close_inbound": float() | int() as drain}:
                    await self._relay.close_inbound(drain)
                case {"close": float() | int() as drain}:
                    await self._relay.close(drain)
                case {"look": _}:
                    answer["clusters"] = encode(Clusters(self._relay.clusters.status()))
        except (ProxyError, SdsError, WireError) as error:
            answer["error"] = str(error)
        await self._send({**answer, "counters": self._counters()})

    async def _report(self) -> None:
        said: object = None
        while True:
            await asyncio.sleep(REPORT)
            if (counters := self._counters()) != said:
                said = counters
                await self._send({"counters": counters})

    def _counters(self) -> object:
        self._relay.look()
        return encode(self._relay.counters)

    async def _send(self, message: Message) -> None:
        async with self._sending:
            try:
                await self._channel.send(message)
            except ChannelClosed:
                return  # `run` notices, too


async def serve(end: socket.socket) -> None:
    """Live at this end of the pair."""
    channel = Channel(end)
    message, _ = await channel.receive()
    settings = decode(Settings, message["settings"])
    configure(settings.log_level, settings.log_format, settings.mark)
    log = get_logger("relay", marble_type=settings.marble_type, process=settings.process)
    sockets: dict[Address, socket.socket] = {}

    def bind(address: Address) -> socket.socket:
        if (received := sockets.pop(address, None)) is None:
            raise RelayError(f"no socket for {address} was received")
        return received

    async with access_log(settings.access_log, log) as lines:
        relay = Relay(log, settings.limits, bind, lines, settings.process)
        try:
            await RelayProcess(channel, relay, sockets).run()
        finally:
            await relay.close()
            channel.close()


def main(arguments: list[str]) -> None:
    """Never returns before the worker wants it to."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    spare_what_is_loaded()
    with socket.socket(fileno=int(arguments[0])) as end, suppress(ChannelClosed):
        uvloop.run(serve(end))


if __name__ == "__main__":
    main(sys.argv[1:])
