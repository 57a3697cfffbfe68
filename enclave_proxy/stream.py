# SPDX-License-Identifier: Apache-2.0
"""One side of a relayed connection as the pump sees it, and the side without TLS.

Nothing in here waits: a read or a write that cannot go on now says so, and whoever asked watches the descriptor.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from contextlib import suppress
from typing import Protocol

from enclave_proxy.readiness import readiness
from enclave_proxy.tls_library import scratch

# What `read` gives instead of a number of bytes.
END = 0
WANT_READ = -1
WANT_WRITE = -2
# What is thrown away of a peer that is not served, so that closing its socket does not tear away what we said last.
_DREGS = 128 * 1024
# Plain numbers: an enum costs more than the call.
_LEVEL, _DOMAIN, _UNIX = int(socket.SOL_SOCKET), int(socket.SO_DOMAIN), int(socket.AF_UNIX)
# struct linger: on, 0 s.
_RESET = struct.pack("ii", 1, 0)


class Deaf(OSError):
    """The other side takes nothing more, but what it has sent can still be read."""


class Stream(Protocol):
    """Bytes in and out of one non-blocking socket, through the scratch buffer of its thread."""

    descriptor: int
    """what to watch"""

    unread: bool
    """whether `read` has more to say that watching the descriptor would not tell"""

    def read(self) -> int:
        """Fill the scratch buffer: the number of bytes, END, WANT_READ or WANT_WRITE. Raises OSError when broken."""

    def send(self, size: int) -> int:
        """Send the first `size` bytes of the scratch buffer; gives how many were taken. Raises OSError when broken."""

    def send_again(self, data: bytes) -> int:
        """Send what was left of an earlier `send`; gives how many bytes were taken."""

    def end_writing(self) -> bool:
        """Tell the other side that nothing more comes; it may go on sending. False: again once it can be written to."""

    def gone(self) -> bool:
        """Whether the other side, having ended, does not listen any more either."""

    def close(self) -> None:
        """Close at once. The descriptor must not be watched any more."""

    def tear(self) -> None:
        """The same for a connection that did not end as it was meant to: the other side must not take it for an end."""


class PlainStream:
    """A socket as it is: UNIX or TCP."""

    __slots__ = (
        "_is_unix", "_receive", "_scratch", "_send", "_socket", "_view", "descriptor", "unread",
    )  # fmt: skip

    def __init__(self, connection: socket.socket) -> None:
        self.descriptor = connection.fileno()
        self.unread = False
        self._socket = connection
        self._scratch = scratch.bytes
        self._view = scratch.view
        self._receive = connection.recv_into
        self._send = connection.send
        self._is_unix = connection.getsockopt(_LEVEL, _DOMAIN) == _UNIX

    def read(self) -> int:
        try:
            size = self._receive(self._scratch)
        except BlockingIOError:
            return WANT_READ
        except ConnectionResetError:
            if self._is_unix:
                return END  # it left something of ours unread; what it sent itself was complete before
            raise
        return size

    def send(self, size: int) -> int:
        return self.send_again(self._view[:size])

    def send_again(self, data: bytes | memoryview) -> int:
        try:
            return self._send(data)
        except BlockingIOError:
            return 0
        except (BrokenPipeError, ConnectionResetError) as e:
            if self._is_unix:
                raise Deaf(e.errno, e.strerror) from None
            raise

    def end_writing(self) -> bool:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as e:
            raise Deaf(e.errno, e.strerror) from None
        return True

    def gone(self) -> bool:
        # A UNIX socket tells a close from a half-close; TCP does not until it is written to.
        if not self._is_unix:
            return False
        poll = select.poll()
        poll.register(self.descriptor, 0)
        return any(events & select.POLLHUP for _, events in poll.poll(0))

    def close(self) -> None:
        self._socket.close()

    def tear(self) -> None:
        # By a reset. A UNIX socket has none, but hangs up in both directions at once, which an end never does.
        if not self._is_unix:
            self._socket.setsockopt(_LEVEL, socket.SO_LINGER, _RESET)
        self._socket.close()

    def dismiss(self) -> None:
        """Close an app's connection for which there is no peer: that no byte came is not what a peer had to say."""
        self.tear()


def dismiss(connection: socket.socket) -> None:
    """Close a socket so that what we said last, an alert, arrives: unread input would make the kernel reset it."""
    with suppress(OSError):  # it is gone already, or there is nothing to read
        connection.shutdown(socket.SHUT_WR)
        connection.recv(_DREGS)
    connection.close()


class Watch:
    """Waits for one descriptor again and again. It stays entered between two waits as long as nothing comes unasked."""

    def __init__(self, descriptor: int) -> None:
        self._ready = readiness()
        self._descriptor = descriptor
        self._waiter: asyncio.Future[None] | None = None
        self._reading = False
        self._expired = False

    def expire(self) -> None:
        """Whoever waits, now or later, gets a TimeoutError."""
        self._expired = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(TimeoutError())

    async def readable(self) -> None:
        if not self._reading:
            self._reading = True
            self._ready.watch_reading(self._descriptor, self._happened)
        await self._wait()

    async def writable(self) -> None:
        self._ready.watch_writing(self._descriptor, self._happened)
        try:
            await self._wait()
        finally:
            self._ready.leave_writing(self._descriptor)

    def close(self) -> None:
        """Forget the descriptor, which is still open."""
        if self._reading:
            self._reading = False
            self._ready.leave_reading(self._descriptor)

    async def _wait(self) -> None:
        if self._expired:
            raise TimeoutError
        self._waiter = self._ready.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _happened(self) -> None:
        if self._waiter is None:
            self.close()  # nobody waits, and it would be told again and again
        elif not self._waiter.done():
            self._waiter.set_result(None)
