# SPDX-License-Identifier: Apache-2.0
"""Messages between the worker and its relay processes, over an inherited pair of sockets: nothing of it ever has a name
in a file system, or touches a disk.

    u32 LE length ‖ JSON          descriptors of listening sockets travel with the length
"""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

# 10 000 endpoints and a hundred listeners with their identities are 3 MB.
MAX_MESSAGE = 64 * 1024 * 1024
# What Linux takes in one message is 253 (SCM_MAX_FD).
MAX_DESCRIPTORS = 200
_LENGTH = 4

Message = dict[str, Any]


class ChannelClosed(ConnectionError):
    """The other process has ended, or does not speak our language."""


class Channel:
    """One end. At most one task sends and one receives."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end

    def close(self) -> None:
        self._socket.close()

    async def send(self, message: Message, descriptors: tuple[int, ...] = ()) -> None:
        """Raises ChannelClosed."""
        body = json.dumps(message, separators=(",", ":")).encode()
        head = len(body).to_bytes(_LENGTH, "little")
        loop = asyncio.get_running_loop()
        try:
            if descriptors:
                head = head[await self._send_descriptors(head, descriptors) :]
            await loop.sock_sendall(self._socket, head + body)
        except OSError as error:
            raise ChannelClosed(error.strerror) from error

    async def receive(self) -> tuple[Message, list[int]]:
        """The next message and the descriptors that came with it, which are the caller's then. Raises ChannelClosed."""
        try:
            head, descriptors = await self._receive_head()
            size = int.from_bytes(head, "little")
            if size > MAX_MESSAGE:
                raise ChannelClosed(f"message of {size} bytes, at most {MAX_MESSAGE} are taken")
            message = json.loads(await self._exactly(size))
        except (OSError, ValueError) as error:
            raise ChannelClosed("the other process has ended") from error
        return message, descriptors

    async def _send_descriptors(self, head: bytes, descriptors: tuple[int, ...]) -> int:
        while True:
            try:
                return socket.send_fds(self._socket, [head], descriptors)
            except BlockingIOError:
                await self._ready(writing=True)

    async def _receive_head(self) -> tuple[bytes, list[int]]:
        while True:
            try:
                head, descriptors, _, _ = socket.recv_fds(self._socket, _LENGTH, MAX_DESCRIPTORS)
            except BlockingIOError:
                await self._ready(writing=False)
                continue
            if not head:
                raise ChannelClosed("the other process has ended")
            return head + await self._exactly(_LENGTH - len(head)), descriptors

    async def _exactly(self, size: int) -> bytes:
        loop = asyncio.get_running_loop()
        data = bytearray()
        while len(data) < size:
            chunk = await loop.sock_recv(self._socket, min(size - len(data), 1 << 20))
            if not chunk:
                raise ChannelClosed("the other process has ended")
            data += chunk
        return bytes(data)

    async def _ready(self, *, writing: bool) -> None:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        add, remove = (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
        add(self._socket.fileno(), lambda: None if ready.done() else ready.set_result(None))
        try:
            await ready
        finally:
            remove(self._socket.fileno())
