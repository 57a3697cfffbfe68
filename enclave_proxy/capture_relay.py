# SPDX-License-Identifier: Apache-2.0
"""A relay in front of an app that knows nothing of it: the kernel redirects, inside a guest that the host cannot enter.

    app ─► peer's port ─► (redirected) capture listener ─► which peer is meant? ─► as on that route's own listener
    peer ─► app's port ─► (redirected) the worker's port for it ─► mTLS ─► the app's port, over loopback

Every configuration changes listeners and rules together: what cannot be redirected is refused as a whole. What once was
captured stays closed for this worker's life: an app does not notice that a manifest has taken a peer from it, and would
go on in plaintext. For the same reason the rules outlive the relay: `release` takes them away, when the app has ended.
"""

from __future__ import annotations

import asyncio
import random
import socket
from dataclasses import replace

from enclave_proxy.access_log import AccessLog
from enclave_proxy.capture_choice import entries_of, known_addresses, pick, ports_of
from enclave_proxy.capture_firewall import Firewall, FirewallError
from enclave_proxy.capture_listener import CaptureListener
from enclave_proxy.capture_rules import CaptureRules
from enclave_proxy.capture_survivors import processes_of
from enclave_proxy.counters import Refusal
from enclave_proxy.errors import StartError
from enclave_proxy.fused_routes import canonical
from enclave_proxy.limits import Limits
from enclave_proxy.listener import BACKLOG, RelayError, bind, tune
from enclave_proxy.relay import Log, Relay
from enclave_proxy.relay_config import Address, Inbound, Outbound, RelayConfig, TcpAddress
from enclave_proxy.resolver import Resolver, Unresolved
from enclave_proxy.task_set import TaskSet

# Seconds between two looks at the rules.
LOOK = 10.0
# How many ports a look probes, of many: they stand in one and the same rules.
PROBED = 16
# Captured connections whose peer is being looked up, or for which too many handshakes are under way.
MAX_WAITING = 1024
# What is counted and logged of connections that belong to no route.
NAME = "capture"
# Addresses that no network has (RFC 5737, RFC 3849): probes go there if there is a default route.
_NOWHERE = {"192.0.2.1": False, "2001:db8::1": True}
_DUAL = TcpAddress("::", 0)


class CapturingRelay(Relay):
    """`worker` and `app`: user ids. `claim` is closed when the rules are gone. Make it inside a running event loop."""

    def __init__(
        self,
        log: Log,
        limits: Limits,
        firewall: Firewall,
        worker: int,
        app: int,
        proxies: frozenset[int],
        access_log: AccessLog | None,
        claim: socket.socket,
    ) -> None:
        super().__init__(log, limits, bind_both_families, access_log)
        self.problem: str | None = "the capture rules are not in force yet"
        self._firewall = firewall
        self._claim = claim
        self._app = app
        self._listener = CaptureListener(self._take, self._not_taken, self._not_accepted)
        self._rules = CaptureRules(
            capture=self._listener.port,
            outgoing=frozenset(),
            incoming=(),
            closed=frozenset(),
            worker=worker,
            proxies=proxies,
        )
        self._config = RelayConfig()
        self._in_force: CaptureRules | None = None
        self._tasks = TaskSet(self._bug)
        self._arriving = TaskSet(self._bug)
        self._waiting = TaskSet(self._bug)
        self._resolver = Resolver(self._tasks, asyncio.get_running_loop().time)
        self._enforcing = asyncio.Lock()
        for accepting in self._listener.serve():
            self._arriving.spawn(accepting)

    @property
    def rules(self) -> CaptureRules | None:
        """What is in force; None: nothing yet."""
        return self._in_force

    async def apply(self, config: RelayConfig) -> None:
        """See Relay.apply; and the same of the rules that lead there."""
        async with self._enforcing:
            await super().apply(moved(config))
            before, self._config = self._config, config
            try:
                await self._enforce(self._wanted(config))
            except FirewallError as error:
                self._config = before
                await super().apply(moved(before))
                raise RelayError(f"the capture rules cannot be put in force: {error}") from error

    async def prove(self) -> None:
        """Look for the first time, before there is an app, and from then on again and again. Raises StartError if an
        app's connections would go around the worker."""
        async with self._enforcing:
            self.problem = await self._look()
        if self.problem is not None:
            raise StartError(f"capture does not work here: {self.problem}")
        self._tasks.spawn(self._watch())

    async def close(self, drain: float = 0.0) -> None:
        """See Relay.close. The rules stay: what the app still opens is refused."""
        # Each of them may make work for the next.
        await self._arriving.close()
        await self._waiting.close()
        await self._tasks.close()
        self._listener.close()
        await super().close(drain)

    async def release(self) -> None:
        """Take the rules away, when there is no app any more. They stay if it has left something behind."""
        async with self._enforcing:
            try:
                if left := processes_of(self._app):
                    self._log.error(
                        "capture rules stay: processes of the app's user are left, and would talk in plaintext. End "
                        "them; the next start replaces the rules",
                        pids=left,
                    )
                elif self._in_force is not None:
                    await self._firewall.remove()
            except FirewallError as error:
                self._log.error("capture rules stay, the next start replaces them", reason=str(error))
            finally:
                self._claim.close()

    # --- the rules

    def _wanted(self, config: RelayConfig) -> CaptureRules:
        addresses = self.addresses
        incoming = {
            route.bind.port: address.port
            for route in config.inbound
            if is_captured(route) and isinstance(address := addresses.get(route.name), TcpAddress)
        }
        before = self._rules
        once = {port for port, _ in before.incoming} | before.closed
        return replace(
            before,
            outgoing=before.outgoing | ports_of(config.outbound),
            incoming=tuple(sorted(incoming.items())),
            closed=frozenset(once - incoming.keys()),
        )

    async def _enforce(self, rules: CaptureRules) -> None:
        if rules == self._in_force:
            return
        await self._firewall.apply(rules)
        self._rules = self._in_force = rules
        self._log.info(
            "capture rules in force",
            outgoing=sorted(rules.outgoing),
            incoming=[port for port, _ in rules.incoming],
            closed=sorted(rules.closed),
        )

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            async with self._enforcing:
                await self._look_again()

    async def _look_again(self) -> None:
        """Somebody else's rules may have come before ours, or ours may be gone: put them where they belong. Where that
        does not help, this Marble is not ready; the guard keeps what goes around the worker from leaving."""
        found = await self._look()
        if found is None:
            self.problem = None
            return
        told, self.problem = self.problem, found
        try:
            await self._firewall.apply(self._rules)
            self.problem = await self._look()
        except FirewallError as error:
            self.problem = f"{found}; and they cannot be put back: {error}"
        if self.problem is None:
            self._log.error("capture rules were put back in their place", reason=found)
        elif self.problem != told:
            self._log.error("capture does not work any more", reason=self.problem)

    async def _look(self) -> str | None:
        try:
            listed = await self._firewall.objection()
        except FirewallError as error:
            listed = f"the rules cannot be read: {error}"
        if listed is not None:
            return listed
        ports = sorted(self._rules.outgoing)
        for port in random.sample(ports, min(len(ports), PROBED)):
            for ipv6 in (False, True):
                if (lost := await self._listener.probe(self._targets(port, ipv6=ipv6), self._app)) is not None:
                    return (
                        f"{lost}: a rule that neither nft nor iptables lists here takes it first, such as one of the "
                        "other iptables (legacy, nft). Let its owner remove it, or use --capture nft, which comes "
                        "before both"
                    )
        return None

    def _targets(self, port: int, *, ipv6: bool) -> list[TcpAddress]:
        """Where an app could dial, of one family: a peer that is known, else anywhere."""
        known = {host for route in self._config.outbound for host in known_addresses(route) if (":" in host) == ipv6}
        nowhere = [host for host, sixth in _NOWHERE.items() if sixth == ipv6]
        return [TcpAddress(host, port) for host in [*sorted(known)[:8], *nowhere]]

    # --- connections

    def _take(self, connection: socket.socket, meant: TcpAddress) -> None:
        if len(self._waiting) < MAX_WAITING:
            self._waiting.spawn(self._pass_on(connection, meant))
        else:
            self._not_taken(connection, f"came while {MAX_WAITING} others wait to be set up", Refusal.LIMIT)

    async def _pass_on(self, connection: socket.socket, meant: TcpAddress) -> None:
        """Find out which peer is meant, and go on as on the listener of its route."""
        try:
            entries = entries_of(self._config.outbound, meant.port)
            name = pick(meant, entries, await self._all_addresses(entries) if len(entries) > 1 else {})
        except LookupError as error:
            self._not_taken(connection, str(error.args[0]))
            return
        except BaseException:
            connection.close()
            raise
        listener = next((each for each in self._listeners.values() if each.serving.route.name == name), None)
        if listener is None:
            self._not_taken(connection, f"was for {name}, which is no route any more")
            return
        await self._handle(connection, listener)

    async def _all_addresses(self, entries: dict[str, str]) -> dict[str, frozenset[str]]:
        routes = [route for route in self._config.outbound if route.name in entries]
        found = await asyncio.gather(*(self._addresses(route, entries[route.name]) for route in routes))
        return {route.name: addresses for route, addresses in zip(routes, found, strict=True)}

    async def _addresses(self, route: Outbound, addr: str) -> frozenset[str]:
        """What the app may mean by this `Addr`: the peers that are known, and what DNS says of the name."""
        known = known_addresses(route)
        try:
            found = await self._resolver.resolve(addr, self._limits.connect_timeout)
        except Unresolved:
            return known  # a Marble type need not have a name in DNS
        return known | {canonical(host) for host in found}

    def _not_accepted(self, error: OSError) -> None:
        self._count(f"cannot be accepted: {error.strerror}", Refusal.LIMIT)

    def _not_taken(self, connection: socket.socket, why: str, reason: Refusal = Refusal.NO_ENDPOINT) -> None:
        connection.close()
        self.counters.of(NAME).accepted += 1
        self._count(why, reason)

    def _count(self, why: str, reason: Refusal) -> None:
        self.counters.of(NAME).refused[reason] += 1
        if self._budget.take():
            self._log.info("connection refused", listener=NAME, reason=str(reason), detail=f"a connection {why}")
        else:
            self.counters.suppressed_logs += 1


def is_captured(route: Inbound) -> bool:
    """Does the app listen on the port itself, so that peers' connections have to be led past it?"""
    upstream = route.upstream
    return isinstance(upstream, TcpAddress) and upstream.port == route.bind.port


def moved(config: RelayConfig) -> RelayConfig:
    """The same with listeners on free ports where the app has the real ones. Raises RelayError for a port that listens
    on loopback alone: peers of this very machine do not come in from outside."""
    inbound = []
    for route in config.inbound:
        if not is_captured(route):
            inbound.append(route)
        elif route.bind.host in ("0.0.0.0", "::"):
            inbound.append(replace(route, bind=_DUAL))
        else:
            raise RelayError(
                f"listener {route.name}: peers are told to dial {route.bind.host}, where nothing is captured: set "
                "EDG_MARBLE_ADVERTISE (--advertise) to an address of the network, or --capture off"
            )
    return replace(config, inbound=tuple(inbound))


def bind_both_families(address: Address) -> socket.socket:
    """As `listener.bind`; the port of a captured one takes IPv4 and IPv6, whichever the app was dialled by."""
    if address != _DUAL or not socket.has_dualstack_ipv6():
        return bind(TcpAddress("0.0.0.0", 0) if address == _DUAL else address)
    bound = socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        tune(bound)
        bound.bind((_DUAL.host, _DUAL.port))
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise RelayError(f"cannot listen on {address}: {error.strerror}") from error
    return bound
