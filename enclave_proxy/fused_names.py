# SPDX-License-Identifier: Apache-2.0
"""The app's look-ups of names that the manifest's Outgoing has: answered here, without DNS."""

from __future__ import annotations

import socket
from typing import Any

from enclave_proxy.fused_decisions import Decisions
from enclave_proxy.fused_side import in_worker

_getaddrinfo = socket.getaddrinfo
_gethostbyname = socket.gethostbyname
_gethostbyname_ex = socket.gethostbyname_ex
Answer = list[Any]


class Names:
    """`install` once; the app's look-ups go through here from then on."""

    def __init__(self, decisions: Decisions) -> None:
        self._decisions = decisions

    def install(self) -> None:
        """Replace the functions, for the life of the process."""
        socket.getaddrinfo = self.getaddrinfo
        socket.gethostbyname = self._gethostbyname
        socket.gethostbyname_ex = self._gethostbyname_ex

    def getaddrinfo(
        self,
        host: Any,
        port: Any,
        family: int = 0,
        type: int = 0,  # noqa: A002 - as it is called there
        proto: int = 0,
        flags: int = 0,
    ) -> Answer:
        """As `socket.getaddrinfo`."""
        if in_worker() or (address := self._decisions.resolve(host, port)) is None:
            return _getaddrinfo(host, port, family, type, proto, flags)
        if type not in (0, socket.SOCK_STREAM):
            raise socket.gaierror(socket.EAI_SOCKTYPE, f"{host} is a peer of the mesh, which carries TCP only")
        number = _getaddrinfo(address, port, socket.AF_INET, socket.SOCK_STREAM)[0][4][1]
        name = str(host) if flags & socket.AI_CANONNAME else ""
        if family == socket.AF_INET6:
            sockaddr: Any = (f"::ffff:{address}", number, 0, 0)
            return [(socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, name, sockaddr)]
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, name, (address, number))]

    def _gethostbyname(self, hostname: str) -> str:
        if in_worker() or (address := self._decisions.resolve(hostname, None)) is None:
            return _gethostbyname(hostname)
        return address

    def _gethostbyname_ex(self, hostname: str) -> tuple[str, list[str], list[str]]:
        if in_worker() or (address := self._decisions.resolve(hostname, None)) is None:
            return _gethostbyname_ex(hostname)
        return hostname, [], [address]
