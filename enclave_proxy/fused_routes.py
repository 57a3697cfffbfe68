# SPDX-License-Identifier: Apache-2.0
"""Which of an app's TCP addresses are the mesh's: pure rules over the configuration in force.

    bind(any host, p)          p is a port of Incoming            the UNIX socket where the worker looks for the app
    connect(addr, p)           (addr, p) stands in Outgoing       the socket where the worker listens for the app
    connect(loopback, p)       p is a port of Incoming            the app's own UNIX socket: it talks to itself
    connect(addr, q)           addr is of Outgoing, q is not      Wrong: it would go around the mesh

A name of Outgoing resolves to an address made up for it (127.93.x.y), without DNS: should a call get past us, it stays
on this machine, where nobody listens.
"""

from __future__ import annotations

import errno
import ipaddress
import threading
from dataclasses import dataclass, field

from enclave_proxy.relay_config import Address, RelayConfig, TcpAddress, UnixAddress

_MADE_UP = ipaddress.IPv4Network("127.93.0.0/16")
_LOOPBACK_NAMES = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})


@dataclass(frozen=True, slots=True)
class Wrong:
    """An address that must not be dialled, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Routes:
    """`listens`: port to the app's socket. `dials`: (canonical host, port) to where the worker listens."""

    listens: dict[int, Address]
    dials: dict[tuple[str, int], Address]
    ports: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, config: RelayConfig) -> Routes:
        """What a configuration means for the app."""
        dials = {named: route.listen for route in config.outbound if (named := outbound_name(route.name)) is not None}
        ports: dict[str, list[int]] = {}
        for host, port in dials:
            ports.setdefault(host, []).append(port)
        return cls({route.bind.port: route.upstream for route in config.inbound}, dials, ports)

    def listen(self, port: int) -> str | None:
        """The path that an app which wants this port gets; None: it is not the mesh's, or the worker dials TCP."""
        target = self.listens.get(port)
        return target.path if isinstance(target, UnixAddress) else None

    def dials_tcp(self, port: int) -> bool:
        """Does the worker look for the app at this TCP port, because the manifest's `Upstream` says so?"""
        return any(isinstance(target, TcpAddress) and target.port == port for target in self.listens.values())

    def dial(self, host: str, port: int) -> Address | Wrong | None:
        """Where a connection to `host` really goes; None: it is not the mesh's."""
        host = canonical(host)
        if (target := self.dials.get((host, port))) is not None:
            return target
        if host in self.ports:
            known = ", ".join(map(str, sorted(self.ports[host])))
            return Wrong(f"the manifest's Outgoing names {host} with port {known}, not {port}")
        if _is_loopback(host) and isinstance(own := self.listens.get(port), UnixAddress):
            return own
        return None

    def has_name(self, host: str, port: int) -> bool:
        """Is it a name of Outgoing, with this port? 0: any port."""
        host = canonical(host)
        return host in self.ports and (not port or port in self.ports[host]) and not _is_ip(host)


class MadeUpAddresses:
    """One IPv4 address for each name that was ever asked for, the same for the life of the process: what an app has
    cached must never come to mean another peer."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._lock = threading.RLock()  # a signal handler of the app may look names up

    def address_of(self, host: str) -> str:
        """Made on first use. Raises OSError if there are no more."""
        host = canonical(host)
        with self._lock:
            if host not in self._names:
                if len(self._names) == _MADE_UP.num_addresses - 2:
                    raise OSError(errno.ENOSPC, "too many names were looked up, there are no addresses left for more")
                self._names.append(host)
            return str(_MADE_UP[1 + self._names.index(host)])

    def name_of(self, host: str) -> str:
        """The name behind a made-up address; any other host as it is."""
        address = canonical(host)
        if not address.startswith("127.93."):
            return host
        index = int(ipaddress.IPv4Address(address)) - int(_MADE_UP[1])
        return self._names[index] if 0 <= index < len(self._names) else host


def outbound_name(resource: str) -> tuple[str, int] | None:
    """`outbound|<addr>|<port>` as the app writes it; None for a listener that somebody has named otherwise."""
    kind, _, rest = resource.partition("|")
    addr, _, port = rest.rpartition("|")
    if kind != "outbound" or not addr or not port.isascii() or not port.isdigit():
        return None
    return canonical(addr), int(port)


def canonical(host: str) -> str:
    """One spelling for each host: names in lower case without the final dot, addresses as `ipaddress` writes them."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host.lower().removesuffix(".")
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def is_numeric(host: str) -> bool:
    """Needs no look-up: an address, nothing (all of them), or this very machine."""
    return not host or _is_ip(host) or canonical(host) in _LOOPBACK_NAMES


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    if host in _LOOPBACK_NAMES:
        return True
    # Connecting to "all addresses" reaches this machine.
    return _is_ip(host) and ((found := ipaddress.ip_address(host)).is_loopback or found.is_unspecified)
