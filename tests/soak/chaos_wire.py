# SPDX-License-Identifier: Apache-2.0
"""What client and app of the chaos test say to each other, so that either can tell at every byte whether it is right.

The client begins with a header that names a seed; everything either side sends is the random stream of that seed, which
the other knows, too: a byte that is lost, changed or out of order is seen when it arrives, not at the end only.

How a connection ended can be told by the socket. A UNIX socket has no reset as TCP has, but while our own direction is
open, an end that was meant leaves it open, and one that was not hangs up both at once (POLLHUP).
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import select
import socket
import struct
from dataclasses import dataclass
from enum import IntEnum

BLOCK = 8192
DIGEST = 32
_HEADER = struct.Struct(">4sBxxxQIIQ")
_MAGIC = b"CHAO"


class Mode(IntEnum):
    UP = 1
    """the client sends, and ends its direction; the app answers with the hash of what it got, and ends"""
    DOWN = 2
    """the app sends, and ends its direction; the client answers with the hash of what it got, and ends"""
    BOTH = 3
    """both send at the same time, and end their direction"""
    SILENT = 4
    """nobody says anything more: the worker has to end it"""
    HALF = 5
    """the client ends its direction, and the app says nothing: the worker has to end it"""


class End(IntEnum):
    """How the other side's direction ended."""

    OPEN = 0
    CLEAN = 1
    BROKEN = 2
    UNKNOWN = 3
    """our own direction had ended before"""


@dataclass(frozen=True, slots=True)
class Header:
    mode: Mode
    number: int
    up: int
    down: int
    seed: int

    SIZE = _HEADER.size

    def pack(self) -> bytes:
        return _HEADER.pack(_MAGIC, self.mode, self.number, self.up, self.down, self.seed)

    @classmethod
    def unpack(cls, data: bytes) -> Header:
        """Raises ValueError for what no client of ours has sent."""
        magic, mode, number, up, down, seed = _HEADER.unpack(data)
        if magic != _MAGIC:
            raise ValueError(f"not a header: {data[:16]!r}")
        return cls(Mode(mode), number, up, down, seed)


class Stream:
    """The bytes of a seed, in blocks."""

    def __init__(self, seed: int, size: int) -> None:
        self._random = random.Random(seed)
        self._rest = b""
        self.left = size

    def take(self, most: int = BLOCK) -> bytes:
        """The next bytes; none at the end."""
        if not self._rest:
            self._rest = self._random.randbytes(min(BLOCK, self.left))
        part, self._rest = self._rest[:most], self._rest[most:]
        self.left -= len(part)
        return part


class Expected:
    """What is to come, compared with what comes."""

    def __init__(self, seed: int, size: int) -> None:
        self._stream = Stream(seed, size)
        self._digest = hashlib.sha256()
        self.got = 0
        self.wrong = ""

    @property
    def complete(self) -> bool:
        return self._stream.left == 0 and not self.wrong

    @property
    def digest(self) -> bytes:
        return self._digest.digest()

    def take(self, data: bytes) -> None:
        self._digest.update(data)
        left = data
        while left and not self.wrong:
            wanted = self._stream.take(len(left))
            if not wanted:
                self.wrong = f"{len(left)} bytes more than were sent, after {self.got}"
            elif left[: len(wanted)] != wanted:
                self.wrong = f"another byte than was sent, after {self.got}"
            self.got += len(wanted)
            left = left[len(wanted) :]


class Connection:
    """One non-blocking UNIX socket, and what is known of its two directions."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._loop = asyncio.get_running_loop()
        self.moved = 0
        self.ended_writing = False
        self.end = End.OPEN
        self.why = ""

    async def send(self, data: bytes) -> bool:
        """Whether it went; if not, the connection is broken."""
        try:
            await self._loop.sock_sendall(self._socket, data)
        except OSError as e:
            self._broke(e)
            return False
        self.moved += len(data)
        return True

    async def receive(self, most: int = 65536) -> bytes:
        """Some bytes; none at the end, whatever end it is."""
        if self.end is End.BROKEN:
            return b""
        try:
            data = await self._loop.sock_recv(self._socket, most)
        except OSError as e:
            self._broke(e)
            return b""
        if data:
            self.moved += len(data)
        else:
            self.end = self._kind_of_end()
        return data

    async def receive_exactly(self, size: int) -> bytes:
        """Less if the end comes first."""
        data = b""
        while len(data) < size and (more := await self.receive(size - len(data))):
            data += more
        return data

    def finish(self) -> None:
        """Nothing more comes from us."""
        self.ended_writing = True
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as e:
            self._broke(e)

    def close(self) -> None:
        self._socket.close()

    def _kind_of_end(self) -> End:
        if self.ended_writing:
            return End.UNKNOWN
        poll = select.poll()
        poll.register(self._socket, 0)
        if any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0)):
            self.why = self.why or "hung up"
            return End.BROKEN
        return End.CLEAN

    def _broke(self, error: OSError) -> None:
        self.end = End.BROKEN
        self.why = self.why or (error.strerror or type(error).__name__)


async def send_all(connection: Connection, stream: Stream, pace: float) -> bool:
    """Everything, with pauses of `pace` seconds between blocks; then the end of our direction. Whether it went."""
    while part := stream.take():
        if not await connection.send(part):
            return False
        if pace:
            await asyncio.sleep(pace)
    connection.finish()
    return connection.end is not End.BROKEN


async def take_all(connection: Connection, expected: Expected) -> None:
    """Until the other direction ends."""
    while data := await connection.receive():
        expected.take(data)
