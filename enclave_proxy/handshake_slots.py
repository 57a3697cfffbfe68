# SPDX-License-Identifier: Apache-2.0
"""Places for connections that are being set up. When all are taken, whoever keeps one without a word makes room.

Half-open handshakes cost an attacker nothing, and each could hold its place for the whole handshake timeout. So one
that has lasted for `GRACE` seconds and from which nothing is there to be read is given up as soon as somebody waits for
a place, the oldest first. Peers that go on with their handshakes are never given up for others, however many they are:
those wait in the kernel's backlog.
"""

from __future__ import annotations

import asyncio
import select

from cryptography import x509

from enclave_proxy.tls_stream import TlsStream

# Time for an answer over a bad line, or from a busy machine; a flood is survived at a rate of places per this.
GRACE = 1.0


class HandshakeSlots:
    """`number` places. Make it inside a running event loop."""

    def __init__(self, number: int, grace: float = GRACE) -> None:
        self._places = asyncio.Semaphore(number)
        self._grace = grace
        self._clock = asyncio.get_running_loop().time
        self._under_way: dict[TlsStream, float] = {}  # since when, the oldest first

    async def acquire(self) -> None:
        """Take a place as soon as there is one."""
        while self._places.locked():
            try:
                async with asyncio.timeout(self._make_room()):
                    await self._places.acquire()
                    return
            except TimeoutError:
                continue
        await self._places.acquire()

    def release(self) -> None:
        """Give a place back."""
        self._places.release()

    async def accept(self, stream: TlsStream, patience: float) -> x509.Certificate | None:
        """`stream.accept`, by one that has a place."""
        self._under_way[stream] = self._clock()
        try:
            return await stream.accept(patience)
        finally:
            self._under_way.pop(stream, None)

    def _make_room(self) -> float:
        """Give up the oldest silent handshake. When to look again, in seconds."""
        now = self._clock()
        for stream, since in self._under_way.items():
            if since + self._grace > now:
                return since + self._grace - now
            if _is_silent(stream):
                del self._under_way[stream]
                stream.give_up()
                break
        return self._grace


def _is_silent(stream: TlsStream) -> bool:
    poll = select.poll()
    poll.register(stream.descriptor, select.POLLIN)
    return not poll.poll(0)
