# SPDX-License-Identifier: Apache-2.0
"""One listening socket for each process that relays, all made here: so that a port that is taken is known before any
process is told, and what waits for a process that has died is not lost.

A TCP port has one socket for each (SO_REUSEPORT: the kernel spreads connections over them); a UNIX socket is one socket
that all of them accept from.
"""

from __future__ import annotations

import socket
from collections.abc import Collection

from enclave_proxy.listener import BACKLOG, RelayError, bind, tune
from enclave_proxy.relay_config import Address, TcpAddress


class SharedSockets:
    """`copies`: how many processes there are besides this one."""

    def __init__(self, copies: int) -> None:
        self._copies = copies
        self._held: dict[Address, list[socket.socket]] = {}

    def bind(self, address: Address) -> socket.socket:
        """This process's own socket; the others' are kept. Raises RelayError."""
        own = bind(address)
        if isinstance(address, TcpAddress):
            # Bound alone first: two owners with SO_REUSEPORT would share a port without noticing.
            own.close()
            own, *others = _spread(address, self._copies + 1)
        else:
            others = [own.dup() for _ in range(self._copies)]
        self._held[address] = others
        return own

    def of(self, index: int, address: Address) -> socket.socket:
        """The socket of process `index`, to be sent to it; it stays ours, too."""
        return self._held[address][index]

    def retain(self, addresses: Collection[Address]) -> None:
        """Close all others."""
        for address in self._held.keys() - set(addresses):
            for held in self._held.pop(address):
                held.close()


def _spread(address: TcpAddress, number: int) -> list[socket.socket]:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    made: list[socket.socket] = []
    try:
        for _ in range(number):
            made.append(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC))
            made[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                made[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            tune(made[-1])
            made[-1].bind((address.host, address.port))
        for each in made:
            each.listen(BACKLOG)
    except OSError as error:
        for each in made:
            each.close()
        raise RelayError(f"cannot listen on {address}: {error.strerror}") from error
    return made
