# SPDX-License-Identifier: Apache-2.0
"""The app's TCP sockets that the manifest names, as UNIX sockets: `socket.socket` itself, for all code on top of it.

A socket stays the object that the app has made, with its family and addresses; only the descriptor below is exchanged
(dup2) for a UNIX socket at `bind` or `connect`. asyncio, http.server, socketserver, http.client and whoever else uses
Python's sockets notice nothing. The methods are replaced on the class, so that subclasses (`ssl.SSLSocket`) and modules
that have imported it long ago are covered.
"""

from __future__ import annotations

import _socket
import errno
import os
import select
import socket
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enclave_proxy.fused_decisions import Decisions
from enclave_proxy.fused_side import in_worker
from enclave_proxy.relay_config import TcpAddress

INET = (socket.AF_INET, socket.AF_INET6)
_SO_DOMAIN = 39  # Linux
# The worker accepts at once, or its queue is full and stays so.
_CONNECT = 5.0
# Options of TCP and IP mean nothing on a UNIX socket, and nobody relies on their effect inside one machine.
_NETWORK_LEVELS = (socket.IPPROTO_TCP, socket.IPPROTO_IP, socket.IPPROTO_IPV6)

_Socket = socket.socket
_accept = _Socket.accept
_bind, _connect, _connect_ex = _Socket.bind, _Socket.connect, _Socket.connect_ex
_getpeername, _getsockname, _setsockopt = _Socket.getpeername, _Socket.getsockname, _Socket.setsockopt


def is_swapped(sock: socket.socket) -> bool:
    """Does the app hold a TCP socket here that really is a UNIX socket?"""
    return sock.family in INET and sock.getsockopt(socket.SOL_SOCKET, _SO_DOMAIN) == socket.AF_UNIX


class HandedOver(_Socket):
    """A swapped socket as the UNIX socket that it is, for somebody who takes it over and closes it: then the app's own
    object is closed too."""

    __slots__ = ("_partner",)

    def __init__(self, partner: socket.socket) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=os.dup(partner.fileno()))
        self._partner = partner

    def detach(self) -> int:
        """What uvloop does when libuv closes the descriptor."""
        self._partner.close()
        return super().detach()

    def close(self) -> None:
        """What everybody else does."""
        self._partner.close()
        super().close()


@contextmanager
def _seen_as_unix(sock: socket.socket) -> Iterator[_socket.socket]:
    """The C library's view of an address goes by the family that the object was made with, and a UNIX address is longer
    than an IPv4 one. SOCK_NONBLOCK: leave the descriptor's own mode alone."""
    view = _socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 0, fileno=sock.fileno())
    try:
        yield view
    finally:
        view.detach()


@dataclass(frozen=True, slots=True)
class _Bound:
    """A socket that the app has bound, as long as it lives. `shares`: it was bound with SO_REUSEPORT."""

    sock: weakref.ref[socket.socket]
    family: int
    shares: bool

    @property
    def descriptor(self) -> int:
        """-1: closed or gone."""
        sock = self.sock()
        return -1 if sock is None else sock.fileno()


class SwappedSockets:
    """`decisions` says what each address means. `install` once; the app's calls go through here from then on."""

    def __init__(self, decisions: Decisions) -> None:
        self._decisions = decisions
        self._lock = threading.RLock()  # a signal handler of the app may open sockets in the middle of it
        self._bound: dict[str, list[_Bound]] = {}  # by path
        self._names: dict[str, tuple[str, int]] = {}  # by path: what the app takes its address for

    def install(self) -> None:
        """Replace the methods, for the life of the process."""
        methods: dict[str, Callable[..., Any]] = {
            "accept": lambda sock: self._accept(sock),
            "bind": lambda sock, address: self._bind(sock, address),
            "connect": lambda sock, address: self._connect(sock, address),
            "connect_ex": lambda sock, address: self._connect_ex(sock, address),
            "getpeername": lambda sock: self._name(sock, _getpeername),
            "getsockname": lambda sock: self._name(sock, _getsockname),
            "setsockopt": _set_option,
        }
        for name, method in methods.items():
            setattr(_Socket, name, method)

    def unlink(self) -> None:
        """Remove the socket files that the app has made."""
        for path in self._bound:
            Path(path).unlink(missing_ok=True)

    def _bind(self, sock: socket.socket, address: Any) -> None:
        if in_worker() or sock.family not in INET or not _is_address(address):
            return _bind(sock, address)
        path = self._decisions.bind(sock.type, *address[:2])
        if path is None:
            return _bind(sock, address)
        with self._lock:
            shares = _shares_port(sock)  # asked before the exchange, UNIX sockets do not have it
            self._names[path] = ("127.0.0.1", address[1])
            if (first := self._live(path)) is None:
                with _fresh() as made:
                    _clear(path)
                    made.bind(path)
                    Path(path).chmod(0o600)
                    _swap(sock, made.fileno())
            elif first.family != sock.family or (first.shares and shares):
                # IPv4 and IPv6 of one port, or SO_REUSEPORT: both take from the same queue.
                _swap(sock, first.descriptor)
            else:
                raise OSError(errno.EADDRINUSE, f"port {address[1]} is bound already (it is {path} here)")
            self._bound.setdefault(path, []).append(_Bound(weakref.ref(sock), sock.family, shares))
        return None

    def _live(self, path: str) -> _Bound | None:
        live = self._bound[path] = [bound for bound in self._bound.get(path, ()) if bound.descriptor >= 0]
        return live[0] if live else None

    def _connect(self, sock: socket.socket, address: Any) -> None:
        if in_worker() or sock.family not in INET or not _is_address(address):
            return _connect(sock, address)
        target = self._decisions.connect(sock.type, *address[:2])
        if target is None:
            return _connect(sock, address)
        if is_swapped(sock):
            raise OSError(errno.EISCONN, os.strerror(errno.EISCONN))
        if isinstance(target, TcpAddress):
            return _connect(sock, (target.host, target.port))
        with _fresh() as made:
            made.settimeout(min(sock.gettimeout() or _CONNECT, _CONNECT))
            try:
                made.connect(target.path)
            except (FileNotFoundError, TimeoutError, BlockingIOError) as error:
                raise ConnectionRefusedError(
                    errno.ECONNREFUSED, f"nobody takes connections to {address[0]} port {address[1]} ({target})"
                ) from error
            self._names[target.path] = (str(address[0]), address[1])
            _swap(sock, made.fileno())
        return None

    def _connect_ex(self, sock: socket.socket, address: Any) -> int:
        if in_worker() or sock.family not in INET or not _is_address(address):
            return _connect_ex(sock, address)
        try:
            self._connect(sock, address)
        except socket.gaierror:
            raise
        except OSError as error:
            return error.errno or errno.EAGAIN  # a timeout has no number, and this is what Python gives for it
        return 0

    def _accept(self, sock: socket.socket) -> tuple[socket.socket, Any]:
        if not is_swapped(sock):
            return _accept(sock)
        made = _Socket(sock.family, sock.type, sock.proto, fileno=_accepted(sock))
        made.setblocking(sock.gettimeout() is None or bool(sock.gettimeout()) or socket.getdefaulttimeout() is not None)
        return made, _address(sock.family, "127.0.0.1", 0)

    def _name(self, sock: socket.socket, original: Callable[[socket.socket], Any]) -> Any:
        if not is_swapped(sock):
            return original(sock)
        with _seen_as_unix(sock) as view:
            path = view.getpeername() if original is _getpeername else view.getsockname()
        return _address(sock.family, *self._names.get(path, ("127.0.0.1", 0)))


def _accepted(sock: socket.socket) -> int:
    timeout = sock.gettimeout()
    deadline = time.monotonic() + (timeout or 0)
    with _seen_as_unix(sock) as view:
        while True:
            if timeout:
                poll = select.poll()
                poll.register(sock.fileno(), select.POLLIN)
                if not poll.poll(max(0, deadline - time.monotonic()) * 1000):
                    raise TimeoutError("timed out")
            try:
                return view._accept()[0]  # type: ignore[attr-defined, no-any-return]
            except BlockingIOError:
                if not timeout or time.monotonic() >= deadline:
                    raise


def _set_option(sock: socket.socket, level: int, *rest: Any) -> None:
    if level not in _NETWORK_LEVELS or not is_swapped(sock):
        _setsockopt(sock, level, *rest)


@contextmanager
def _fresh() -> Iterator[_socket.socket]:
    made = _socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        yield made
    finally:
        made.close()


def _swap(sock: socket.socket, descriptor: int) -> None:
    os.set_blocking(descriptor, sock.gettimeout() is None)
    os.dup2(descriptor, sock.fileno(), inheritable=sock.get_inheritable())


def _clear(path: str) -> None:
    """Remove the file of a listener that is closed; anything but a socket is an error at bind."""
    try:
        if stat.S_ISSOCK(Path(path).lstat().st_mode):
            Path(path).unlink()
    except FileNotFoundError:
        pass


def _shares_port(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))


def _address(family: int, host: str, port: int) -> tuple[Any, ...]:
    if family == socket.AF_INET:
        return (host, port)
    return ("::1" if host == "127.0.0.1" else host, port, 0, 0)


def _is_address(address: Any) -> bool:
    return (
        isinstance(address, tuple)
        and len(address) >= 2
        and isinstance(address[0], str | bytes | bytearray)
        and isinstance(address[1], int)
    )
