# SPDX-License-Identifier: Apache-2.0
"""A gRPC server on a UNIX socket for clients in the same TEE: the worker's SDS and its SPIFFE Workload API.

    accept ─► who is it (local_peer)? ─► grpclib (local_connection) ─► a service's method with a Call (local_call)

The kernel says who connected, before a byte is read. Who may not is closed at once, counted, and logged a few times a
second. Nothing that a client sends decides what it gets: there is one identity to be had, this worker's own.
"""

from __future__ import annotations

import asyncio
import socket
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from enclave_proxy.admission import LogBudget
from enclave_proxy.listener import accept_all
from enclave_proxy.local_call import Log, Methods
from enclave_proxy.local_connection import Calls, LocalProtocol, Shared
from enclave_proxy.local_counters import LocalCounters
from enclave_proxy.local_path import BoundSocket, Place
from enclave_proxy.local_peer import Access, Peer, Unwelcome
from enclave_proxy.task_set import TaskSet

MAX_CONNECTIONS = 512
MAX_CALLS = 1024
# Refusals logged per second; all are counted.
LOG_LINES = 10


class LocalServer:
    """Serves services on one socket. `start` once, `stop` once. `name` is its label in metrics and logs."""

    def __init__(
        self,
        name: str,
        services: Iterable[Methods],
        access: Access,
        log: Log,
        *,
        max_connections: int = MAX_CONNECTIONS,
        max_calls: int = MAX_CALLS,
    ) -> None:
        self.counters = LocalCounters(name)
        self.access = access
        self._log = log
        self._max_connections = max_connections
        methods = {path: method for service in services for path, method in service.items()}
        self.shared = Shared(methods, self.counters, self._bug, max_calls)
        self._bound: BoundSocket | None = None
        self._accepting = TaskSet(self._bug)
        self._connections: dict[LocalProtocol, Calls] = {}
        self._budget = LogBudget(LOG_LINES, lambda: asyncio.get_running_loop().time())

    async def start(self, place: Place) -> None:
        """Listen. Raises SocketPathError if the path cannot be had."""
        self._bound = BoundSocket.claim(place)
        self._accepting.spawn(accept_all(self._bound.listener, self._welcome, self._cannot_accept))
        if (hidden := place.hidden_by()) is not None:
            self._log.warning(
                "the mode of this socket lets in more users than its directory does",
                socket=str(place.path),
                mode=f"{place.mode:o}",
                directory=str(hidden),
            )

    async def stop(self) -> None:
        """Stop listening, end all calls, remove the socket file."""
        await self._accepting.close()
        open_now = list(self._connections.items())
        for protocol, calls in open_now:
            protocol.abort(None)
            await calls.wait_closed()
        if self._bound is not None:
            self._bound.close()
            self._bound = None

    @property
    def connections(self) -> list[LocalProtocol]:
        """Those that are open now."""
        return list(self._connections)

    def _cannot_accept(self, error: OSError) -> None:
        if self._budget.take():
            self._log.warning("cannot accept on a local socket", socket=self.counters.socket, reason=str(error))

    async def _welcome(self, connection: socket.socket) -> None:
        peer, objection = self._look_at(connection)
        if objection is not None or peer is None:
            connection.close()
            self._refuse(objection or Unwelcome.UNKNOWN, peer)
            return
        calls = Calls(self.shared, peer)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol(calls), connection)
        except OSError:
            # It has hung up already.
            connection.close()
            peer.close()
            return
        self.counters.accepted += 1

    def _protocol(self, calls: Calls) -> Callable[[], LocalProtocol]:
        def make() -> LocalProtocol:
            protocol = LocalProtocol(calls, lambda reason: self._refuse(reason, calls.peer), lambda: lost(protocol))
            self._connections[protocol] = calls
            self.counters.active += 1
            return protocol

        def lost(protocol: LocalProtocol) -> None:
            del self._connections[protocol]
            self.counters.active -= 1
            calls.peer.close()

        return make

    def _look_at(self, connection: socket.socket) -> tuple[Peer | None, Unwelcome | None]:
        """Who it is, and why it is not served, if it is not. A peer that is not served is closed already."""
        try:
            peer = Peer.of(connection)
        except ProcessLookupError:
            return None, Unwelcome.PROCESS_GONE
        except OSError:
            return None, Unwelcome.UNKNOWN
        objection = self.access.objection(peer)
        if objection is None and len(self._connections) >= self._max_connections:
            objection = Unwelcome.LIMIT
        if objection is not None:
            peer.close()
        return peer, objection

    def _refuse(self, reason: Unwelcome, peer: Peer | None) -> None:
        self.counters.refused[reason] += 1
        if not self._budget.take():
            self.counters.suppressed_logs += 1
            return
        known = None if peer is None else peer.credentials
        self._log.warning(
            "local client refused",
            socket=self.counters.socket,
            reason=reason.value,
            client="unknown" if known is None else str(known),
        )

    def _bug(self, error: BaseException) -> None:
        # Type and place alone: a text might quote what was being served.
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
        self._log.error(
            "bug: a local socket's task failed", socket=self.counters.socket, error=type(error).__name__, place=place
        )
