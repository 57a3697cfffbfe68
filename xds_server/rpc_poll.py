# SPDX-License-Identifier: Apache-2.0
"""Sockets by the thousand in one event loop: an epoll of their own, which the loop sees as a single file descriptor.

A transport of asyncio or uvloop costs kilobytes for each socket, and its loop calls back for each event; here a socket
costs an entry in a dictionary, and one call of the loop takes up to `_AT_ONCE` events, so that whatever else runs in
the loop has its turn in between.
"""

from __future__ import annotations

import asyncio
import select
from typing import Protocol

IN, OUT = select.EPOLLIN, select.EPOLLOUT
ONCE = select.EPOLLONESHOT
GONE = select.EPOLLHUP | select.EPOLLERR
_AT_ONCE = 128


class Watcher(Protocol):
    """Whoever watches a descriptor."""

    def ready(self, events: int) -> None:
        """There is something to read, room to write, or an end. Must not raise."""


class Poller:
    """Level triggered, unless ONCE is among the events."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._watched: dict[int, Watcher] = {}
        self._loop.add_reader(self._epoll.fileno(), self._dispatch)

    def watch(self, descriptor: int, events: int, watcher: Watcher) -> None:
        """Begin."""
        self._epoll.register(descriptor, events)
        self._watched[descriptor] = watcher

    def change(self, descriptor: int, events: int) -> None:
        """Wait for something else from now on; after an event of ONCE, again."""
        self._epoll.modify(descriptor, events)

    def forget(self, descriptor: int) -> None:
        """End. To be called before the descriptor is closed."""
        if self._watched.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def close(self) -> None:
        """Watch nothing any more."""
        self._loop.remove_reader(self._epoll.fileno())
        self._watched.clear()
        self._epoll.close()

    def _dispatch(self) -> None:
        for descriptor, events in self._epoll.poll(0, _AT_ONCE):
            # One that an earlier callback of this round has forgotten is not there; one that it has opened anew may be
            # called for the other's event, and finds nothing.
            if (watcher := self._watched.get(descriptor)) is not None:
                watcher.ready(events)
