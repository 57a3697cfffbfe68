# SPDX-License-Identifier: Apache-2.0
"""What the Linkerd stand-in's control plane says, watched: policies of inbound ports, profiles of destinations."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from grpclib import GRPCError, Status
from grpclib.client import Channel, UnaryStreamMethod
from grpclib.exceptions import StreamTerminatedError

from tests.kit.linkerd_flow import Address
from tests.kit.linkerd_settings import Settings
from tests.kit.linkerd_wire import GET_PROFILE, WATCH_OUTBOUND, WATCH_PORT, Profile, ServerPolicy, encode

_RETRY = 0.2
Spawn = Callable[[Awaitable[None]], object]


@dataclass(frozen=True, slots=True)
class Client:
    """Who has a connection to which port. `identity`: of the mesh, "" for none."""

    port: int
    ip: str
    own_ip: str
    identity: str

    def allowed_by(self, policy: ServerPolicy) -> bool:
        if self.ip == self.own_ip or self.ip.startswith("127."):
            return True  # from the pod itself
        return policy.allowed == "any" or (policy.allowed == "authenticated" and self.identity != "")


class Policies:
    """The policy of each port: the default one until the control plane has answered, then its last word."""

    def __init__(self, settings: Settings, channel: Channel, spawn: Spawn) -> None:
        self._settings = settings
        self._watch = UnaryStreamMethod(channel, WATCH_PORT, bytes, bytes)
        self._spawn = spawn
        self._ports: dict[int, ServerPolicy] = {}
        self._open: dict[object, tuple[Client, Callable[[], None]]] = {}
        for port in settings.inbound_ports:
            self.get(port)

    def get(self, port: int) -> ServerPolicy:
        if port not in self._ports:
            name = self._settings.default_policy
            allowed = {"all-unauthenticated": "any", "all-authenticated": "authenticated", "deny": "none"}[name]
            protocol = "opaque" if port in self._settings.opaque_ports else "detect"
            self._ports[port] = ServerPolicy(protocol, allowed, name=name)
            self._spawn(self._follow(port))
        return self._ports[port]

    @contextmanager
    def open(self, client: Client, cut: Callable[[], None]) -> Iterator[None]:
        """A connection as long as it is open: `cut` is called when a new policy forbids it."""
        key = object()
        self._open[key] = (client, cut)
        try:
            yield
        finally:
            del self._open[key]

    async def _follow(self, port: int) -> None:
        request = encode((1, self._settings.workload), (2, port))
        while True:
            try:
                async with self._watch.open() as stream:
                    await stream.send_message(request, end=True)
                    while (message := await stream.recv_message()) is not None:
                        self._put(port, ServerPolicy.decode(message))
            except (OSError, GRPCError, StreamTerminatedError):
                pass  # the last word stays
            await asyncio.sleep(_RETRY)

    def _put(self, port: int, policy: ServerPolicy) -> None:
        self._ports[port] = policy
        for client, cut in list(self._open.values()):
            if client.port == port and not client.allowed_by(policy):
                cut()


class Profiles:
    """Where a connection to an address goes. Asks once and follows from then on."""

    def __init__(self, settings: Settings, channel: Channel, spawn: Spawn) -> None:
        self._settings = settings
        self._profile = UnaryStreamMethod(channel, GET_PROFILE, bytes, bytes)
        self._policy = UnaryStreamMethod(channel, WATCH_OUTBOUND, bytes, bytes)
        self._spawn = spawn
        self._known: dict[Address, asyncio.Future[Profile]] = {}

    async def get(self, destination: Address) -> Profile:
        """Raises GRPCError if outbound policies fail otherwise than by not being there."""
        if destination not in self._known:
            self._known[destination] = asyncio.get_running_loop().create_future()
            self._spawn(self._follow(destination))
        await self._no_policy(destination)
        return await asyncio.shield(self._known[destination])

    async def _follow(self, destination: Address) -> None:
        request = encode((2, f"{destination[0]}:{destination[1]}"))
        while True:
            try:
                async with self._profile.open() as stream:
                    await stream.send_message(request, end=True)
                    while (message := await stream.recv_message()) is not None:
                        self._put(destination, Profile.decode(message))
            except (OSError, GRPCError, StreamTerminatedError):
                pass  # the last word stays
            await asyncio.sleep(_RETRY)

    def _put(self, destination: Address, profile: Profile) -> None:
        if self._known[destination].done():
            self._known[destination] = asyncio.get_running_loop().create_future()
        self._known[destination].set_result(profile)

    async def _no_policy(self, destination: Address) -> None:
        """Profiles alone count where the control plane knows no outbound policy of a destination."""
        try:
            async with self._policy.open() as stream:
                await stream.send_message(encode((1, self._settings.workload)), end=True)
                await stream.recv_message()
        except GRPCError as error:
            if error.status not in (Status.NOT_FOUND, Status.UNIMPLEMENTED):
                raise
