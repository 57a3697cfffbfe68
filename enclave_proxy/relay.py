# SPDX-License-Identifier: Apache-2.0
"""The relay: takes a RelayConfig, listens, and joins admitted connections. mTLS on one side, plaintext on the other.

Inbound:  peer ─TLS─► handshake ► name allowed? ► app's socket ► bytes. The app sees nothing of a refused peer.
Outbound: app ─plain─► endpoint known? ► dial ► handshake ► name allowed? ► bytes. Nothing is read from the app before.

`apply` first builds every context and binds every new socket, and only then swaps, in one step of the event loop:
either the whole configuration takes effect or nothing of it. Live contexts are never changed; connections keep what
they were accepted with, except that those are cut off whose peer the new rules no longer let in (`live`).

A peer that fails the handshake gets the alert that comes nearest to the reason in our log and counters.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from cryptography import x509

from enclave_proxy.access_log import AccessLog
from enclave_proxy.admission import LogBudget, Refused, objection
from enclave_proxy.clusters import Clusters
from enclave_proxy.counters import ListenerCounters, Refusal, RelayCounters
from enclave_proxy.handshake_slots import HandshakeSlots
from enclave_proxy.limits import Limits
from enclave_proxy.listener import Listener, Serving, bind
from enclave_proxy.listener import RelayError as RelayError
from enclave_proxy.live import Joined, Live, rule_of
from enclave_proxy.open_connections import OpenConnections
from enclave_proxy.peer_types import count_peer
from enclave_proxy.pump import splice
from enclave_proxy.relay_config import Address, Inbound, Membership, Outbound, RelayConfig
from enclave_proxy.served_routes import Key, Route, context_of, key_of, lacks_endpoint, recipe_of
from enclave_proxy.stream import PlainStream, Stream
from enclave_proxy.task_set import TaskSet
from enclave_proxy.tls_context import TlsContext
from enclave_proxy.tls_stream import TlsStream
from enclave_proxy.trace import Trace
from enclave_proxy.upstream import Admitted, dial_app, dial_peer
from sds.errors import SdsError

Bind = Callable[[Address], socket.socket]

_SNI = re.compile(r"[A-Za-z0-9_.-]{0,253}")


class Log(Protocol):
    """What the relay needs of a logger."""

    def info(self, event: str, **fields: object) -> object: ...

    def error(self, event: str, **fields: object) -> object: ...


@dataclass(slots=True)
class _Plan:
    """A configuration that is ready to take effect."""

    serving: dict[Key, Serving] = field(default_factory=dict)
    fresh: dict[Key, Listener] = field(default_factory=dict)


class Relay:
    """One data plane. Make it and use it inside one running event loop."""

    def __init__(
        self,
        log: Log,
        limits: Limits | None = None,
        bind: Bind = bind,
        access_log: AccessLog | None = None,
        process: int = 1,
    ) -> None:
        self.clusters = Clusters(self._bug)
        self.counters = RelayCounters(dials=self.clusters.counters, names=self.clusters.resolver.counters)
        self._log = log
        self._access_log = access_log
        self._process = str(process)
        self._bind = bind
        self._open = OpenConnections[Listener]()
        self._inbound_closed = False
        self._limits = limits or Limits()
        self._listeners: dict[Key, Listener] = {}
        self._live = Live()
        self._membership = Membership()
        self._connections = TaskSet(self._bug)
        self._accepting = TaskSet(self._bug)
        # One count for each direction: a Marble that dials itself must not wait for its own slots.
        self._slots = {kind: HandshakeSlots(self._limits.handshakes) for kind in (Inbound, Outbound)}
        self._budget = LogBudget(self._limits.log_lines, lambda: asyncio.get_running_loop().time())
        self._applying = asyncio.Lock()
        self._changed = asyncio.Event()
        self._closed = False

    @property
    def addresses(self) -> dict[str, Address]:
        """Where each listener really listens, by its name."""
        return {listener.serving.route.name: listener.address for listener in self._listeners.values()}

    def look(self) -> None:
        """Bring those counters up to date that are not kept as things happen."""
        self.counters.cpu[self._process] = round(time.thread_time(), 2)  # a step that shows without waking readers
        if self._access_log is not None:
            self.counters.access_written = self._access_log.written
            self.counters.access_lost = self._access_log.lost
        sizes = list(self.clusters.sizes())
        self.counters.endpoints = {name: endpoints for name, endpoints, _ in sizes}
        self.counters.ejected = {name: ejected for name, _, ejected in sizes}

    async def apply(self, config: RelayConfig) -> None:
        """Make `config` take effect as a whole, or raise RelayError and leave everything as it was.

        Listeners that stay keep their sockets and connections, and use the new routes and identities for what they
        accept from now on; connections whose peers they no longer allow end. Listeners that go stop accepting; their
        connections may end by themselves for `limits.drain` seconds, then they are cut off.
        """
        async with self._applying:
            if self._closed:
                raise RelayError("the relay is closed")
            if self._inbound_closed:
                config = replace(config, inbound=())
            try:
                plan = self._plan(config)
            except RelayError:
                self.counters.rejected += 1
                raise
            gone = self._swap(plan)
            self.clusters.retain(config)
            for listener in gone:
                await listener.close()
            if gone:
                self._accepting.spawn(self._open.end(gone.__contains__, self._limits.drain))

    async def close_inbound(self, drain: float) -> None:
        """Accept nothing from peers any more, let what they have open end by itself for `drain` seconds, then cut off
        the rest. What the app opens goes on. Calling it again with a shorter time, or 0, is how not to wait."""
        async with self._applying:
            self._inbound_closed = True
            for key, listener in list(self._listeners.items()):
                if isinstance(listener.serving.route, Inbound):
                    del self._listeners[key]
                    await listener.close()
        await self._open.end(lambda listener: isinstance(listener.serving.route, Inbound), drain)

    def update_membership(self, membership: Membership) -> None:
        """Who is not part of the mesh (any more): whatever configuration is in force, nothing is accepted from them or
        sent to them, and what is open ends now."""
        if membership != self._membership:
            self._membership = membership
            self._end_unwelcome()

    async def close(self, drain: float = 0.0) -> None:
        """Stop accepting for good, let connections end by themselves for `drain` seconds, then cut off the rest."""
        async with self._applying:
            self._closed = True
            listeners, self._listeners = self._listeners, {}
            for listener in listeners.values():
                await listener.close()
            await self._accepting.close()
            await self._connections.close(drain)
            await self.clusters.close()

    def _plan(self, config: RelayConfig) -> _Plan:
        plan = _Plan()
        # A context of an unchanged identity and bundle goes on: new endpoints or peers cost no new one.
        contexts = {recipe_of(old.serving.route): old.serving.context for old in self._listeners.values()}
        names: set[str] = set()
        routes: tuple[Route, ...] = (*config.inbound, *config.outbound)
        try:
            for route in routes:
                key = key_of(route)
                if key in plan.serving or route.name in names:
                    raise RelayError(f"listener {route.name}: its name or address {key[0]} is used twice")
                if isinstance(route, Outbound) and not _SNI.fullmatch(route.sni):
                    raise RelayError(f"listener {route.name}: {route.sni!r} is not a server name that TLS can carry")
                names.add(route.name)
                plan.serving[key] = self._serving(key, route, contexts)
            for key, serving in plan.serving.items():
                if key not in self._listeners:
                    plan.fresh[key] = Listener(self._bind(key[0]), key[0], serving)
        except BaseException:
            for listener in plan.fresh.values():
                listener.abandon()
            raise
        return plan

    def _serving(self, key: Key, route: Route, contexts: dict[object, TlsContext]) -> Serving:
        """The old value if nothing changed; else a new one, whose context is shared among equal identities."""
        old = self._listeners.get(key)
        if old is not None and old.serving.route == route:
            return old.serving
        try:
            recipe = recipe_of(route)
            if recipe not in contexts:
                contexts[recipe] = context_of(route)
            return Serving(route, contexts[recipe])
        except SdsError as e:
            raise RelayError(f"listener {route.name}: {e}") from e

    def _swap(self, plan: _Plan) -> list[Listener]:
        """Put a plan into effect. No await in here: no connection is accepted between two of these lines."""
        gone = [listener for key, listener in self._listeners.items() if key not in plan.serving]
        rules = {key: rule_of(listener.serving.route) for key, listener in self._listeners.items()}
        for key, serving in plan.serving.items():
            if key in plan.fresh:
                plan.fresh[key].start(self._spawn_accepting, self._handle, self._cannot_accept)
            else:
                self._listeners[key].serving = serving
            self.counters.of(serving.route.name)
        self._listeners = {key: plan.fresh.get(key) or self._listeners[key] for key in plan.serving}
        self.counters.applied += 1
        self._changed.set()
        self._changed = asyncio.Event()
        if any(rules.get(key, rule) != rule for key, rule in ((k, rule_of(s.route)) for k, s in plan.serving.items())):
            self._end_unwelcome()
        return gone

    def _end_unwelcome(self) -> None:
        for connection, why in self._live.unwelcome(self._membership):
            route = connection.listener.serving.route
            self.counters.of(route.name).ended[why.reason] += 1
            self._say("connection ended", route, why)
            connection.trace.reason = why.reason
            connection.task.cancel()

    def _spawn_accepting(self, body: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        async def run() -> None:
            await body()

        return self._accepting.spawn(run())

    def _cannot_accept(self, listener: Listener, error: OSError) -> None:
        why = f"cannot accept: {error.strerror}"  # out of descriptors or memory, as a rule
        self._refused(listener.serving.route, Refused(Refusal.LIMIT, why), None)

    async def _handle(self, connection: socket.socket, listener: Listener) -> None:
        """Start one connection; waits while too many are being set up, so that the rest stays in the kernel's
        backlog."""
        of_this = self.counters.of(listener.serving.route.name)
        of_this.accepted += 1
        trace = Trace(connection, of_this, self._access_log)
        if full := self._full(of_this):
            # An app must not take an end without a byte for what its peer had to say.
            connection.close() if isinstance(listener.serving.route, Inbound) else PlainStream(connection).dismiss()
            self._refused(listener.serving.route, Refused(Refusal.LIMIT, full), trace)
            return
        slots = self._slots[type(listener.serving.route)]
        try:
            await slots.acquire()
        except asyncio.CancelledError:
            connection.close()
            self._drained(listener.serving.route, trace)
            raise
        # Taken after the wait, and used as one value for everything that follows.
        handling = self._connection(connection, listener, listener.serving, slots, trace)
        self._open.add(listener, self._connections.spawn(handling))

    def _full(self, listener: ListenerCounters) -> str:
        """Why no more connections can be had."""
        if len(self._connections) >= self._limits.connections:
            return f"{self._limits.connections} connections are open"
        if listener.active + listener.handshakes >= self._limits.listener_connections:
            return f"{self._limits.listener_connections} connections of this listener are open"
        return ""

    async def _connection(
        self, connection: socket.socket, listener: Listener, serving: Serving, slots: HandshakeSlots, trace: Trace
    ) -> None:
        route = serving.route
        counters = self.counters.of(route.name)
        near: TlsStream | PlainStream | None = None
        far: Stream | None = None
        peer: x509.Certificate | None = None
        counters.handshakes += 1
        try:
            if isinstance(route, Inbound):
                near = TlsStream(serving.context, connection, partial(self._objection, route))
                peer = await trace.shake_hands(near, slots.accept(near, self._limits.handshake_timeout))
                far = await dial_app(route.upstream, self._limits, self.clusters.resolver)
            else:
                near = PlainStream(connection)
                far, peer = await self._reach_peer(listener, trace)
        except Refused as refused:
            self._refused(route, refused, trace)
        except OSError:
            self._refused(route, Refused(Refusal.ABORTED, "went away while connecting"), trace)
        except asyncio.CancelledError:
            self._drained(route, trace)
            raise
        except Exception:  # told of by `_bug`
            self._count_refused(route, Refusal.INTERNAL_ERROR, trace)
            raise
        finally:
            counters.handshakes -= 1
            slots.release()
            if far is None:
                connection.close() if near is None else near.dismiss()
        if near is not None and far is not None:
            await self._relay(near, far, Joined(listener, peer, _this_task(), trace))

    def _objection(self, route: Inbound, peer: x509.Certificate | None) -> Refused | None:
        return objection(route.peers, peer, self._membership)

    async def _relay(self, near: Stream, far: Stream, connection: Joined) -> None:
        route, trace = connection.listener.serving.route, connection.trace
        counters = self.counters.of(route.name)
        # The rules may have changed while it was being set up.
        if (refused := connection.objection(self._membership)) is not None:
            self._refused(route, refused, trace)
            far.tear()
            near.tear()
            return
        counters.established += 1
        counters.active += 1
        count_peer(counters.peers, connection.peer, self._membership)
        trace.joined(near, far)
        ended: Refusal | None = Refusal.INTERNAL_ERROR
        try:
            self._live.add(connection)
            ended = await splice(near, far, self._limits, counters, trace)
        except asyncio.CancelledError:
            ended = trace.reason or Refusal.DRAINED
            raise
        finally:
            self._live.discard(connection)
            counters.active -= 1
            if ended is not None and trace.reason is None:  # else it was counted when it was decided
                counters.ended[ended] += 1
            trace.ended(route, trace.reason or ended)

    async def _reach_peer(self, listener: Listener, trace: Trace) -> Admitted:
        """Dial the peer, with what is current now.

        A peer may show an identity of a root that came while its handshake waited for a busy machine; whoever knows
        that root meanwhile dials once more, since not one byte of the app has left yet.
        """
        for _ in range(self._limits.attempts - 1):
            serving = await self._with_endpoint(listener)
            try:
                return await dial_peer(serving, self.clusters, self._limits, self._membership, trace)
            except Refused as refused:
                if refused.reason is not Refusal.UNTRUSTED or listener.serving is serving:
                    raise
        return await dial_peer(listener.serving, self.clusters, self._limits, self._membership, trace)

    async def _with_endpoint(self, listener: Listener) -> Serving:
        """Where no endpoint is known yet, wait a bounded time for a configuration that brings one."""
        try:
            async with asyncio.timeout(self._limits.endpoint_wait):
                while lacks_endpoint(listener.serving):
                    await self._changed.wait()
        except TimeoutError:
            wait = self._limits.endpoint_wait
            raise Refused(Refusal.NO_ENDPOINT, f"no endpoint became known within {wait:g} s") from None
        return listener.serving

    def _refused(self, route: Route, refused: Refused, trace: Trace | None) -> None:
        self._count_refused(route, refused.reason, trace)
        self._say("connection refused", route, refused)

    def _drained(self, route: Route, trace: Trace) -> None:
        self._count_refused(route, Refusal.DRAINED, trace)

    def _count_refused(self, route: Route, reason: Refusal, trace: Trace | None) -> None:
        self.counters.of(route.name).refused[reason] += 1
        if trace is not None:
            trace.ended(route, reason)

    def _say(self, event: str, route: Route, why: Refused) -> None:
        if self._budget.take():
            self._log.info(event, listener=route.name, reason=str(why.reason), detail=why.detail)
        else:
            self.counters.suppressed_logs += 1

    def _bug(self, error: BaseException) -> None:
        self.counters.bugs += 1
        self._log.error("connection ended with an unexpected error", exc_info=error)


def _this_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a connection runs in a task of its own")
    return task
