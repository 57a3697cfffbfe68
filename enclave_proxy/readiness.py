# SPDX-License-Identifier: Apache-2.0
"""Which descriptors of relayed connections can be read from or written to: one epoll set inside the event loop.

The loop watches the set as a whole and calls once for all that is ready. Watching each descriptor by the loop itself
costs uvloop eight calls into the kernel and six objects each time one is entered, and libuv stops to watch a socket
that has an error, so that each read would have to ask for one.

Level-triggered: who is called and leaves something behind is called again. Whoever watches a descriptor stops to do so
before it is closed.
"""

from __future__ import annotations

import asyncio
import select
import threading
from collections.abc import Callable

# Calls in one turn of the event loop: its timers and everybody else wait for so many at most.
_TURN = 64
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT


class Readiness:
    """The set of one event loop; see `readiness`. It is open while something is watched."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._set: select.epoll | None = None
        self._readers: dict[int, Callable[[], None]] = {}
        self._writers: dict[int, Callable[[], None]] = {}

    def watch_reading(self, descriptor: int, ready: Callable[[], None]) -> None:
        """Call `ready` whenever there is something to read, an end or an error. Each descriptor has one such watch."""
        self._enter(descriptor, _IN, descriptor in self._writers)
        self._readers[descriptor] = ready

    def watch_writing(self, descriptor: int, ready: Callable[[], None]) -> None:
        """Call `ready` whenever it can be written to, or has an error."""
        self._enter(descriptor, _OUT, descriptor in self._readers)
        self._writers[descriptor] = ready

    def leave_reading(self, descriptor: int) -> None:
        """End that watch."""
        del self._readers[descriptor]
        self._leave(descriptor, _OUT if descriptor in self._writers else 0)

    def leave_writing(self, descriptor: int) -> None:
        """End that watch."""
        del self._writers[descriptor]
        self._leave(descriptor, _IN if descriptor in self._readers else 0)

    def _enter(self, descriptor: int, events: int, is_there: bool) -> None:
        if self._set is None:
            self._set = select.epoll()
            self.loop.add_reader(self._set.fileno(), self._some_are_ready)
        if is_there:
            self._set.modify(descriptor, _IN | _OUT)
        else:
            self._set.register(descriptor, events)

    def _leave(self, descriptor: int, rest: int) -> None:
        if self._set is None:
            raise RuntimeError("nothing is watched")
        if rest:
            self._set.modify(descriptor, rest)
            return
        self._set.unregister(descriptor)
        if not self._readers and not self._writers:
            self.loop.remove_reader(self._set.fileno())
            self._set.close()
            self._set = None

    def _some_are_ready(self) -> None:
        # An error or a hang-up is told to whoever watches. Who was called before may have ended a watch further on.
        for descriptor, events in () if self._set is None else self._set.poll(0, _TURN):
            try:
                if events != _OUT and (reader := self._readers.get(descriptor)) is not None:
                    reader()
                if events != _IN and (writer := self._writers.get(descriptor)) is not None:
                    writer()
            except Exception as error:  # one connection's bug; the others go on
                context = {"message": "a watch of a descriptor failed", "exception": error}
                self.loop.call_exception_handler(context)


class _OfThread(threading.local):
    current: Readiness | None = None


_of_thread = _OfThread()


def readiness() -> Readiness:
    """That of the running event loop."""
    loop = asyncio.get_running_loop()
    current = _of_thread.current
    if current is None or current.loop is not loop:
        current = _of_thread.current = Readiness(loop)
    return current
