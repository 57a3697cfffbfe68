# SPDX-License-Identifier: Apache-2.0
"""The load of the relay benchmark: mTLS clients in one thread, cheaper per request than what they drive.

Connections are made before a measurement begins and stay for all rounds, so that a request's cost holds no handshake.
"""

from __future__ import annotations

import gc
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

REQUEST = b"GET /small HTTP/1.1\r\nHost: app\r\n\r\n"
LATE_SECONDS = 10.0
PAUSE_SECONDS = 50e-6


def connect(port: int, tls: ssl.SSLContext) -> ssl.SSLSocket:
    """One blocking mTLS connection; raises OSError."""
    plain = socket.create_connection(("127.0.0.1", port), timeout=30)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return tls.wrap_socket(plain, server_hostname="localhost")


def ask(connection: ssl.SSLSocket) -> bytes:
    """One small request on a blocking connection; the whole reply."""
    connection.sendall(REQUEST)
    reply = b""
    while b"\r\n\r\nok" not in reply:
        if not (data := connection.recv(4096)):
            raise ConnectionError("the proxy closed a connection")
        reply += data
    return reply


class Clients:
    """Kept-alive connections through one proxy."""

    def __init__(self, port: int, tls: ssl.SSLContext, count: int) -> None:
        self._connections = [connect(port, tls) for _ in range(count)]
        self._size = len(ask(self._connections[0]))
        for connection in self._connections:
            connection.setblocking(False)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def closed_loop(self, connections: int, requests: int) -> None:
        """Every connection sends its next request when it has its reply, `requests` in all."""
        chosen = self._connections[:connections]
        with _polling(chosen) as (poll, by_descriptor):
            started = min(connections, requests)
            for connection in chosen[:started]:
                connection.send(REQUEST)
            answered = 0
            while answered < requests:
                for descriptor, _ in _events(poll):
                    connection = by_descriptor[descriptor]
                    if not self._took_reply(connection):
                        continue
                    answered += 1
                    if started < requests:
                        started += 1
                        connection.send(REQUEST)

    def open_loop(self, connections: int, rate: float, seconds: float) -> list[float]:
        """Send at a fixed rate whatever comes back; latencies in seconds from when a request was due, sorted.

        A request that finds no free connection waits, and its waiting counts.
        """
        free = deque(self._connections[:connections])
        due_of: dict[int, float] = {}
        latencies: list[float] = []
        total = int(rate * seconds)
        sent = 0
        clock = time.perf_counter
        with _polling(list(free)) as (poll, by_descriptor), _no_collection():
            began = clock()
            while len(latencies) < total:
                now = clock()
                if now > began + seconds + LATE_SECONDS:
                    raise TimeoutError(f"{total - len(latencies)} of {total} replies are missing")
                while sent < total and free and (due := began + sent / rate) <= now:
                    connection = free.popleft()
                    connection.send(REQUEST)
                    due_of[connection.fileno()] = due
                    sent += 1
                if not (events := poll.poll(0)):
                    # The app has the same core: spinning would take it away. epoll itself cannot wait below 1 ms.
                    time.sleep(PAUSE_SECONDS)
                for descriptor, _ in events:
                    connection = by_descriptor[descriptor]
                    if self._took_reply(connection):
                        latencies.append(clock() - due_of.pop(descriptor))
                        free.append(connection)
        return sorted(latencies)

    def _took_reply(self, connection: ssl.SSLSocket) -> bool:
        try:
            data = connection.recv(16384)
        except ssl.SSLWantReadError:
            return False
        if len(data) != self._size:
            raise ConnectionError(f"a reply of {len(data)} bytes instead of {self._size}")
        return True


@contextmanager
def _polling(
    connections: Sequence[ssl.SSLSocket],
) -> Iterator[tuple[select.epoll, dict[int, ssl.SSLSocket]]]:
    with select.epoll() as poll:
        for connection in connections:
            poll.register(connection, select.EPOLLIN)
        yield poll, {connection.fileno(): connection for connection in connections}


def _events(poll: select.epoll) -> list[tuple[int, int]]:
    if not (events := poll.poll(LATE_SECONDS)):
        raise TimeoutError("a proxy does not answer any more")
    return events


@contextmanager
def _no_collection() -> Iterator[None]:
    """Our own garbage collection must not look like the proxy's latency."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def new_connections(port: int, clients: Iterable[ssl.SSLContext]) -> None:
    """A new mTLS connection of each client, with one request."""
    for tls in clients:
        connection = connect(port, tls)
        ask(connection)
        connection.close()


@dataclass(frozen=True, slots=True)
class Bulk:
    """One connection that carries `size` bytes up and the same down again."""

    port: int
    tls: ssl.SSLContext
    size: int

    def run(self) -> None:
        with connect(self.port, self.tls) as connection:
            self._up(connection)
            self._down(connection)

    def _up(self, connection: ssl.SSLSocket) -> None:
        connection.sendall(b"POST /up HTTP/1.1\r\nHost: app\r\nContent-Length: %d\r\n\r\n" % self.size)
        block = bytes(65536)
        for _ in range(self.size // len(block)):
            connection.sendall(block)
        while b"204" not in connection.recv(4096):
            pass
        ask(connection)  # comes after the last byte of the upload was taken

    def _down(self, connection: ssl.SSLSocket) -> None:
        connection.sendall(b"GET /big HTTP/1.1\r\nHost: app\r\n\r\n")
        left = self.size
        head = connection.recv(65536)
        left -= len(head.partition(b"\r\n\r\n")[2])
        buffer = bytearray(262144)
        while left > 0:
            if not (got := connection.recv_into(buffer)):
                raise ConnectionError("the proxy closed a connection in the middle of a reply")
            left -= got


def percentile(sorted_values: Sequence[float], share: float) -> float:
    return sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))]
