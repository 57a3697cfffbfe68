# SPDX-License-Identifier: Apache-2.0
"""Happy Eyeballs (RFC 8305, section 5): the next address is tried when the last one failed or let 250 ms pass; the
first that connects is used, the others are closed.

The caller says which address is next, and hears of each that failed at once, so that it can choose the next one by what
it has learned and keep score. aiohappyeyeballs and asyncio's own race tell neither, and take a task for each attempt;
this takes none, because every new connection of an app goes through here.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from enclave_proxy.relay_config import TcpAddress

# Connection Attempt Delay: what RFC 8305, section 8, recommends.
ATTEMPT_DELAY = 0.25

Open = Callable[[socket.AddressFamily], socket.socket]
Connected = tuple[TcpAddress, socket.socket]


async def race(
    more: Callable[[], TcpAddress | None],
    failed: Callable[[TcpAddress, OSError], None],
    open_socket: Open,
    *,
    within: float,
    delay: float = ATTEMPT_DELAY,
) -> Connected | None:
    """The first address that connects, and its non-blocking socket; None if none does `within` so many seconds.

    `more` gives the next address to try, each once, or None: no further one. `failed` is told of each one that did not
    connect: refused, not in time, or overtaken in spite of its head start of `delay`. Of those that only were not
    needed any more it hears nothing.
    """
    attempts = _Race(more, failed, open_socket, delay)
    attempts.begin(within)
    try:
        return await attempts.result
    except asyncio.CancelledError:
        attempts.forsake()
        raise
    finally:
        attempts.close()


def family_of(host: str) -> socket.AddressFamily:
    """The family of a numeric address. Raises OSError for anything else: a name would be looked up by `connect` itself,
    with the whole event loop waiting."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    socket.inet_pton(family, host)
    return family


@dataclass(frozen=True, slots=True)
class _Attempt:
    address: TcpAddress
    connection: socket.socket
    started: float


class _Race:
    """The attempts that are under way, and who is next."""

    def __init__(
        self,
        more: Callable[[], TcpAddress | None],
        failed: Callable[[TcpAddress, OSError], None],
        open_socket: Open,
        delay: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.result: asyncio.Future[Connected | None] = self._loop.create_future()
        self._more = more
        self._failed = failed
        self._open = open_socket
        self._delay = delay
        self._pending: list[_Attempt] = []
        self._exhausted = False
        self._next: asyncio.TimerHandle | None = None
        self._end: asyncio.TimerHandle | None = None

    def begin(self, within: float) -> None:
        self._end = self._loop.call_later(within, self._out_of_time)
        self._start_next()

    def close(self) -> None:
        for timer in (self._next, self._end):
            if timer is not None:
                timer.cancel()
        for attempt in self._pending:
            self._loop.remove_writer(attempt.connection.fileno())
            attempt.connection.close()
        self._pending.clear()

    def forsake(self) -> None:
        """Nobody takes the winner: the caller was cancelled in the very moment in which there was one."""
        if self.result.done() and not self.result.cancelled() and (won := self.result.result()) is not None:
            won[1].close()

    def _start_next(self) -> None:
        if self._next is not None:
            self._next.cancel()
        while not self.result.done() and not self._exhausted:
            address = self._more()
            if address is None:
                self._exhausted = True
            elif self._start(address):
                # Both event loops hear of sockets before timers: that we were busy ourselves starts nothing.
                self._next = self._loop.call_later(self._delay, self._start_next)
                return
        if not self._pending and not self.result.done():
            self.result.set_result(None)

    def _start(self, address: TcpAddress) -> bool:
        """Whether the attempt is under way, or has connected at once."""
        try:
            connection = self._open(family_of(address.host))
        except OSError as e:
            self._failed(address, e)
            return False
        attempt = _Attempt(address, connection, self._loop.time())
        error = connection.connect_ex((address.host, address.port))
        if error == errno.EINPROGRESS:
            self._pending.append(attempt)
            self._loop.add_writer(connection.fileno(), self._answered, attempt)
            return True
        return self._finished(attempt, error)

    def _answered(self, attempt: _Attempt) -> None:
        self._loop.remove_writer(attempt.connection.fileno())
        self._pending.remove(attempt)
        if self.result.done():  # in this very turn of the loop, and whoever was late has been told of already
            attempt.connection.close()
        elif not self._finished(attempt, attempt.connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
            self._start_next()

    def _finished(self, attempt: _Attempt, error: int) -> bool:
        if error:
            attempt.connection.close()
            self._failed(attempt.address, OSError(error, os.strerror(error)))
            return False
        self.result.set_result((attempt.address, attempt.connection))
        for other in self._pending:
            if attempt.started - other.started > self._delay / 2:  # timers are coarse
                self._failed(other.address, TimeoutError(errno.ETIMEDOUT, "overtaken by another address"))
        return True

    def _out_of_time(self) -> None:
        if not self.result.done():
            for attempt in self._pending:
                self._failed(attempt.address, TimeoutError(errno.ETIMEDOUT, "timed out"))
            self.result.set_result(None)
