# SPDX-License-Identifier: Apache-2.0
"""Thousands of xDS workers in one process, each with an attested identity and a TLS connection of its own.

python -m bench.xds_scale_clients IDENTITIES PORT

What a worker of ours does (enclave_proxy.session): clusters, listeners and secrets at once, endpoints when the clusters
are known, every response acknowledged. The even ones speak incremental, the odd ones state of the world. They do not
verify the server (their own CPU is not what is measured; the grpcio workers of xds_scale do). Commands as in
xds_scale_server.
"""

from __future__ import annotations

import json
import pickle
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL

from bench.xds_scale_limits import raise_open_files
from bench.xds_scale_town import Place
from bench.xds_scale_wire import Wire, message, opening
from sds.resources import BUNDLE_NAME, CLUSTER, ENDPOINT, IDENTITY_NAME, LISTENER, REVOKED_NAME, SECRET
from sds.wire.discovery_pb2 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
    Node,
)
from sds.wire.envoy_pb2 import Secret

ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/"
SECRETS = (IDENTITY_NAME, BUNDLE_NAME, REVOKED_NAME)
_EVENTS = 512


class Worker:
    """One xDS client. `seen` of the fleet counts what came, by the name of a secret or the short name of a type."""

    __slots__ = ("_names", "_out", "_types", "_versions", "delta", "fleet", "sock", "state", "tls", "where", "wire")

    def __init__(self, fleet: Fleet, where: Place) -> None:
        self.fleet = fleet
        self.where = where
        self.delta = where.number % 2 == 0
        self.state = "idle"
        self._out = b""

    def connect(self, address: int) -> None:
        self._types: set[str] = set()
        self._names = {SECRET: list(SECRETS), ENDPOINT: list(self.where.endpoints)}
        self._versions: dict[str, str] = {}
        self.wire = Wire(self._received, self._refused)
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        method = "DeltaAggregatedResources" if self.delta else "StreamAggregatedResources"
        node = Node(id=f"{self.where.marble_type}/{self.where.uuid}", cluster=self.where.marble_type)
        node.metadata["ADVERTISE"] = self.where.addresses[address]
        self._out = opening(ADS + method)
        self._out += self._ask(CLUSTER, node) + self._ask(LISTENER) + self._ask(SECRET)
        self.state = "dialling"
        self.sock.connect_ex(("127.0.0.1", self.fleet.port))
        self.fleet.watch(self, select.EPOLLOUT)

    def ready(self, event: int) -> None:
        """The socket can be read or written."""
        try:
            if self.state == "dialling":
                self._dialled()
            if self.state == "shaking":
                self.tls.do_handshake()
                self.state = "open"
            if self.state == "open":
                if event & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                    self._read()
                self._write()
        except SSL.WantReadError:
            self.fleet.watch(self, select.EPOLLIN)
        except SSL.WantWriteError:
            self.fleet.watch(self, select.EPOLLIN | select.EPOLLOUT)
        except (SSL.Error, OSError) as error:
            self._refused(f"{self.state}: {type(error).__name__} {error}")

    def close(self) -> None:
        if self.state not in ("idle", "refused"):
            self.sock.close()
            self.state = "idle"

    def _dialled(self) -> None:
        if error := self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, "connect")
        self.tls = self.fleet.dial(self)
        self.state = "shaking"

    def _read(self) -> None:
        while self.state == "open":
            try:
                self.wire.feed(self.tls.recv(65536))
            except SSL.WantReadError:
                return

    def _write(self) -> None:
        if self.wire.out:
            self._out += b"".join(self.wire.out)
            self.wire.out.clear()
        while self._out and self.state == "open":
            sent = self.tls.send(self._out)
            self._out = self._out[sent:]
        if self.state == "open":
            self.fleet.watch(self, select.EPOLLIN)

    def _refused(self, reason: str) -> None:
        if self.state != "refused":
            self.fleet.refused[reason.partition(": b")[0]] += 1
            self.state = "refused"
            self.sock.close()

    # ---- discovery

    def _ask(self, type_url: str, node: Node | None = None, nonce: str = "") -> bytes:
        """A first request (no nonce) or an ACK."""
        names = self._names.get(type_url, ["*"])
        if self.delta:
            asked = [] if nonce else names
            request: Any = DeltaDiscoveryRequest(
                type_url=type_url, response_nonce=nonce, resource_names_subscribe=asked
            )
        else:
            version = self._versions.get(type_url, "")
            request = DiscoveryRequest(
                type_url=type_url, response_nonce=nonce, resource_names=names, version_info=version
            )
        if node is not None:
            request.node.CopyFrom(node)
        return message(request.SerializeToString())

    def _received(self, body: bytes) -> None:
        if self.delta:
            delta = DeltaDiscoveryResponse.FromString(body)
            type_url, nonce = delta.type_url, delta.nonce
            names = [r.name for r in delta.resources] if type_url == SECRET else [""]
        else:
            sotw = DiscoveryResponse.FromString(body)
            type_url, nonce = sotw.type_url, sotw.nonce
            self._versions[type_url] = sotw.version_info
            names = [Secret.FromString(r.value).name for r in sotw.resources] if type_url == SECRET else [""]
        self.wire.out.append(self._ask(type_url, nonce=nonce))
        if type_url == CLUSTER and CLUSTER not in self._types:
            self.wire.out.append(self._ask(ENDPOINT))
        for name in names:
            self._types.add(name if type_url == SECRET else type_url)
            self.fleet.saw(name if type_url == SECRET else type_url.rpartition(".")[2])
        if self.state == "open" and len(self._types) == 3 + len(SECRETS):
            self._types.add("configured")
            self.fleet.saw("configured")


class Fleet:
    """All workers, one epoll."""

    def __init__(self, identities: Path, port: int) -> None:
        self.port = port
        self.refused: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.last: dict[str, float] = {}
        intermediate, written = pickle.loads(identities.read_bytes())
        self._leaves = [
            (x509.load_der_x509_certificate(der), load_pem_private_key(key, None)) for _, der, key in written
        ]
        self._workers = [Worker(self, where) for where, _, _ in written]
        self._context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        self._context.set_min_proto_version(SSL.TLS1_3_VERSION)
        self._context.set_alpn_protos([b"h2"])
        self._context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        self._context.add_extra_chain_cert(x509.load_der_x509_certificate(intermediate))
        self._poll = select.epoll()
        self._watched: dict[int, tuple[Worker, int]] = {}

    def dial(self, worker: Worker) -> SSL.Connection:
        tls = SSL.Connection(self._context, worker.sock)
        leaf, key = self._leaves[worker.where.number]
        tls.use_certificate(leaf)
        tls.use_privatekey(key)  # type: ignore[arg-type]
        tls.set_connect_state()
        return tls

    def watch(self, worker: Worker, events: int) -> None:
        number = worker.sock.fileno()
        known = self._watched.get(number)
        if known is None or known[0] is not worker or known[0].sock.fileno() != number:
            self._watched[number] = worker, events
            try:
                self._poll.register(number, events)
            except FileExistsError:
                self._poll.modify(number, events)
        elif known[1] != events:
            self._watched[number] = worker, events
            self._poll.modify(number, events)

    def saw(self, name: str) -> None:
        self.seen[name] += 1
        self.last[name] = time.monotonic()

    def step(self, timeout: float) -> None:
        for number, event in self._poll.poll(timeout, _EVENTS):
            self._watched[number][0].ready(event)

    def until(self, done: Callable[[], bool], timeout: float) -> bool:
        end = time.monotonic() + timeout
        while not done() and time.monotonic() < end:
            self.step(0.05)
        return done()

    # ---- commands

    def connect(self, first: int, count: int, timeout: float) -> dict[str, object]:
        """Workers connect all at once; until each has its configuration."""
        start, before = time.monotonic(), self.seen["configured"]
        for worker in self._workers[first : first + count]:
            worker.connect(0)
        self.until(lambda: self.seen["configured"] - before + sum(self.refused.values()) >= count, timeout)
        return {"seconds": self.last.get("configured", start) - start, **self.report()}

    def await_seen(self, name: str, count: int, timeout: float) -> dict[str, object]:
        """Until so many have come since `mark`, and were answered."""
        self.until(lambda: self.seen[name] >= count, timeout)
        return {"last": self.last.get(name, 0.0), **self.report()}

    def run(self, seconds: float) -> dict[str, object]:
        self.until(lambda: False, seconds)
        return self.report()

    def mark(self) -> dict[str, object]:
        self.seen.clear()
        self.last.clear()
        return {}

    def move(self, numbers: list[int], address: int, gap: float) -> dict[str, object]:
        """Workers come back under another address, one after the other."""
        for number in numbers:
            worker = self._workers[number]
            self._watched.pop(worker.sock.fileno(), None)
            worker.close()
            worker.connect(address)
            self.until(lambda: False, gap)
        self.until(lambda: False, 2.0)
        return self.report()

    def report(self) -> dict[str, object]:
        states = Counter(worker.state for worker in self._workers)
        return {"seen": dict(self.seen), "refused": dict(self.refused), "states": dict(states)}


def main() -> None:
    raise_open_files()
    fleet = Fleet(Path(sys.argv[1]), int(sys.argv[2]))
    commands: dict[str, Callable[..., dict[str, object]]] = {
        name: getattr(fleet, name) for name in ("connect", "await_seen", "run", "mark", "move", "report")
    }
    print(json.dumps({}), flush=True)
    # Between commands the workers must go on answering: the fleet looks at standard input in between.
    waiting = select.poll()
    waiting.register(sys.stdin, select.POLLIN)
    while True:
        if waiting.poll(0):
            if not (line := sys.stdin.readline()):
                return
            command = json.loads(line)
            print(json.dumps(commands[command.pop("do")](**command)), flush=True)
        fleet.step(0.01)


if __name__ == "__main__":
    main()
