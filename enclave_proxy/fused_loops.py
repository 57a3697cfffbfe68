# SPDX-License-Identifier: Apache-2.0
"""uvloop opens its sockets in libuv, past Python's: its loops get the mesh's addresses as UNIX servers and connections.

asyncio's own loops need nothing of this. Under SGX what the manifest does not name is refused here too, because libuv
raises no audit event.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable
from typing import Any

import uvloop

from enclave_proxy.fused_decisions import Decisions, port_number
from enclave_proxy.fused_names import Names
from enclave_proxy.fused_side import in_worker
from enclave_proxy.fused_sockets import HandedOver, is_swapped
from enclave_proxy.relay_config import TcpAddress

_CREATE_SERVER_ONLY_TCP = ("family", "flags", "reuse_address", "reuse_port")
_CREATE_CONNECTION_ONLY_TCP = ("family", "proto", "flags", "local_addr", "happy_eyeballs_delay", "interleave")


class UvloopSockets:
    """`install` once; loops that exist already (the worker's own) are not disturbed."""

    def __init__(self, decisions: Decisions, names: Names) -> None:
        self._decisions = decisions
        self._names = names

    def install(self) -> None:
        """Replace the methods of `uvloop.Loop`, for the life of the process."""
        methods: dict[str, Callable[..., Any]] = {
            "getaddrinfo": self._getaddrinfo,
            "create_server": self._create_server,
            "create_connection": self._create_connection,
            "connect_accepted_socket": self._connect_accepted_socket,
            "create_datagram_endpoint": self._create_datagram_endpoint,
            "sock_connect": self._sock_connect,
        }
        for name, method in methods.items():
            setattr(uvloop.Loop, name, _for_the_app(getattr(uvloop.Loop, name), method))

    async def _getaddrinfo(self, original: Any, loop: Any, host: Any, port: Any, **hints: Any) -> Any:
        if self._decisions.resolve(host, port) is None:
            return await original(loop, host, port, **hints)
        return self._names.getaddrinfo(host, port, **hints)

    async def _create_server(
        self, original: Any, loop: Any, factory: Any, host: Any = None, port: Any = None, **options: Any
    ) -> Any:
        sock = options.pop("sock", None)
        if sock is None:
            first = (host if isinstance(host, str) or not host else next(iter(host))) or ""
            number = port_number(port)
            if self._decisions.bind(socket.SOCK_STREAM, first, number) is None:
                return await original(loop, factory, host, port, **options)
            sock = socket.socket(socket.AF_INET)
            try:
                if options.get("reuse_port"):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                sock.bind((first, number))
            except BaseException:
                sock.close()
                raise
        if not is_swapped(sock):
            return await original(loop, factory, host, port, sock=sock, **options)
        return await loop.create_unix_server(
            factory, sock=HandedOver(sock), **_without(options, _CREATE_SERVER_ONLY_TCP)
        )

    async def _create_connection(
        self, original: Any, loop: Any, factory: Any, host: Any = None, port: Any = None, **options: Any
    ) -> Any:
        sock = options.pop("sock", None)
        if sock is not None and not is_swapped(sock):
            return await original(loop, factory, host, port, sock=sock, **options)
        if sock is not None:
            options["sock"] = HandedOver(sock)
        else:
            target = self._decisions.connect(socket.SOCK_STREAM, host or "", port_number(port))
            if target is None:
                return await original(loop, factory, host, port, **options)
            if options.get("ssl") and options.get("server_hostname") is None:
                options["server_hostname"] = host
            if isinstance(target, TcpAddress):
                return await original(loop, factory, target.host, target.port, **options)
            options["path"] = target.path
        return await loop.create_unix_connection(factory, **_without(options, _CREATE_CONNECTION_ONLY_TCP))

    async def _connect_accepted_socket(self, original: Any, loop: Any, factory: Any, sock: Any, **options: Any) -> Any:
        return await original(loop, factory, HandedOver(sock) if is_swapped(sock) else sock, **options)

    async def _create_datagram_endpoint(
        self, original: Any, loop: Any, factory: Any, local_addr: Any = None, remote_addr: Any = None, **options: Any
    ) -> Any:
        for address in (local_addr, remote_addr):
            if isinstance(address, tuple):
                self._decisions.connect(socket.SOCK_DGRAM, *address[:2])
        return await original(loop, factory, local_addr, remote_addr, **options)

    async def _sock_connect(self, original: Any, loop: Any, sock: Any, address: Any) -> Any:
        # Known names go to our own `connect`, before libuv looks them up.
        if isinstance(address, tuple) and self._decisions.connect(sock.type, *address[:2]) is not None:
            return sock.connect(address)
        return await original(loop, sock, address)


def _for_the_app(original: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    """The worker's own loop runs on the same class: it goes straight to uvloop."""

    @functools.wraps(original)
    def call(loop: Any, *arguments: Any, **options: Any) -> Any:
        if in_worker():
            return original(loop, *arguments, **options)
        return method(original, loop, *arguments, **options)

    return call


def _without(options: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}
