# SPDX-License-Identifier: Apache-2.0
"""The load of the connections soak, a process of its own: many idle mTLS connections, and new ones at a fixed rate.

    connections_load.py PORT PEM IDLE RATE SECONDS

Every connection shakes hands (no session is ever resumed), sends some bytes and must get the same back. A new one then
ends with close_notify on both sides; an idle one stays, and must answer once more before it ends the same way. The rate
is that of an open loop: a connection is due when its time has come, whatever became of those before, and its latency
counts from then on; those for which the machine has no time are counted as left out. Prints a JSON line every few
seconds. Source addresses are 127.0.1.1 and the following, since one address has 28 000 ports and each of them rests for
a minute after its use.
"""

from __future__ import annotations

import gc
import json
import os
import select
import socket
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial

MESSAGE = b"x" * 64
SOURCES = [f"127.0.1.{number}" for number in range(1, 33)]
# How long one connection may take from its first packet to its echo, or from there to its end.
PATIENCE = 20.0
# More than this many at once would only make each of them slower.
MOST_AT_ONCE = 128
REPORT = 5.0
_IP_BIND_ADDRESS_NO_PORT = 24


class Stage(IntEnum):
    CONNECT = 0
    HANDSHAKE = 1
    ECHO = 2
    IDLE = 3
    CLOSE = 4


@dataclass(slots=True, eq=False)
class Connection:
    socket: socket.socket
    due: float
    stays: bool
    stage: Stage = Stage.CONNECT
    since: float = 0.0
    """when its present task began; an idle one has none"""
    watched: int = 0


@dataclass
class Load:
    port: int
    tls: ssl.SSLContext
    poll: select.epoll = field(default_factory=select.epoll)
    open: dict[int, Connection] = field(default_factory=dict)
    busy: dict[int, Connection] = field(default_factory=dict)
    held: int = 0
    opened: int = 0
    closed: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    worst: float = 0.0

    # ---- phases

    def hold(self, count: int, rate: float) -> None:
        """Open the idle ones, not faster than `rate` a second."""
        began, started, told = time.monotonic(), 0, 0.0
        while started < count or self.busy:
            now = time.monotonic()
            while started < count and len(self.busy) < MOST_AT_ONCE and now >= began + started / rate:
                self._start(now, stays=True)
                started += 1
            self._turn(began + started / rate if started < count else now + 0.1)
            told = self._tell("hold", told)

    def renew(self, rate: float, seconds: float) -> dict[str, float]:
        """New connections for so many seconds. What would begin more than a second late is left out."""
        began = due = time.monotonic()
        started, skipped, told = 0, 0, 0.0
        while due < began + seconds or self.busy:
            now = time.monotonic()
            while due <= now and due < began + seconds and len(self.busy) < MOST_AT_ONCE:
                if now - due > 1:
                    skipped += 1
                else:
                    self._start(due, stays=False)
                    started += 1
                due += 1 / rate
            self._turn(min(due, now + 0.1))
            told = self._tell("renew", told)
        return {"started": started, "left_out": skipped, "rate_reached": round(started / seconds, 1)}

    def release(self) -> None:
        """Ask every idle connection once more, and end them all."""
        idle = [one for one in self.open.values() if one.stage is Stage.IDLE]
        told = 0.0
        while idle or self.busy:
            while idle and len(self.busy) < MOST_AT_ONCE:
                self._awake(idle.pop())
            self._turn(time.monotonic() + 0.1)
            told = self._tell("release", told)

    # ---- one connection

    def _start(self, due: float, *, stays: bool) -> None:
        plain = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        plain.bind((SOURCES[(self.opened + len(self.busy)) % len(SOURCES)], 0))
        plain.connect_ex(("127.0.0.1", self.port))
        one = Connection(plain, due, stays, since=time.monotonic())
        self.open[plain.fileno()] = self.busy[plain.fileno()] = one
        self._watch(one, select.EPOLLOUT)

    def _awake(self, one: Connection) -> None:
        one.stage, one.stays, one.since = Stage.ECHO, False, time.monotonic()
        self.held -= 1
        self.busy[one.socket.fileno()] = one
        self._guard(one, partial(one.socket.send, MESSAGE))

    def _turn(self, until: float) -> None:
        """Wait for something to happen, and do what can be done then."""
        now = time.monotonic()
        for descriptor, _ in self.poll.poll(max(0.0, until - now)):
            if (one := self.open.get(descriptor)) is not None:
                self._guard(one, partial(self._step, one))
        now = time.monotonic()
        for one in list(self.busy.values()):  # in the order in which they were begun
            if now - one.since < PATIENCE:
                break
            self._fail(one, f"no answer within {PATIENCE:g} s at {one.stage.name.lower()}")

    def _guard(self, one: Connection, action: Callable[[], object]) -> None:
        try:
            action()
        except ssl.SSLWantReadError:
            self._watch(one, select.EPOLLIN)
        except ssl.SSLWantWriteError:
            self._watch(one, select.EPOLLOUT)
        except ssl.SSLError as e:
            self._fail(one, f"{one.stage.name.lower()}: {e.reason or type(e).__name__}")
        except OSError as e:
            self._fail(one, f"{one.stage.name.lower()}: {e.strerror or e}")

    def _step(self, one: Connection) -> None:
        if one.stage is Stage.CONNECT:
            if error := one.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, os.strerror(error))
            one.socket = self.tls.wrap_socket(one.socket, do_handshake_on_connect=False, suppress_ragged_eofs=False)
            one.stage = Stage.HANDSHAKE
        assert isinstance(one.socket, ssl.SSLSocket)
        if one.stage is Stage.HANDSHAKE:
            one.socket.do_handshake()
            one.stage = Stage.ECHO
            one.socket.send(MESSAGE)
        if one.stage is Stage.ECHO:
            self._echo(one)
        if one.stage is Stage.CLOSE:
            one.socket.unwrap()
            self.closed += 1
            self._forget(one)
        elif one.stage is Stage.IDLE and one.socket.recv(1) == b"":
            raise ConnectionError("it was ended")

    def _echo(self, one: Connection) -> None:
        assert isinstance(one.socket, ssl.SSLSocket)
        if one.socket.recv(4096) != MESSAGE:
            raise ConnectionError("another answer than what was sent")
        now = time.monotonic()
        if one.stage is Stage.ECHO and one.due:
            self.opened += 1
            self.latencies.append(now - one.due)
            one.due = 0.0
        del self.busy[one.socket.fileno()]
        if one.stays:
            one.stage = Stage.IDLE
            self.held += 1
            self._watch(one, select.EPOLLIN)
        else:
            one.stage, one.since = Stage.CLOSE, now
            self.busy[one.socket.fileno()] = one

    def _watch(self, one: Connection, events: int) -> None:
        if one.watched == events:
            return
        descriptor = one.socket.fileno()
        if one.watched:
            self.poll.modify(descriptor, events)
        else:
            self.poll.register(descriptor, events)
        one.watched = events

    def _fail(self, one: Connection, why: str) -> None:
        self.failures[why] += 1
        if one.stage is Stage.IDLE:
            self.held -= 1
        self._forget(one)

    def _forget(self, one: Connection) -> None:
        descriptor = one.socket.fileno()
        if descriptor < 0:  # what wrapping it left of it
            descriptor = next(number for number, other in self.open.items() if other is one)
        self.open.pop(descriptor, None)
        self.busy.pop(descriptor, None)
        one.socket.close()

    # ---- what is told

    def _tell(self, phase: str, told: float) -> float:
        now = time.monotonic()
        if now - told < REPORT:
            return told
        self.say(phase=phase)
        return now

    def say(self, **more: object) -> None:
        recent, self.latencies = sorted(self.latencies), []
        self.worst = max([self.worst, *recent[-1:]])
        numbers = {
            "held": self.held,
            "opened": self.opened,
            "ended_cleanly": self.closed,
            "in_flight": len(self.busy),
            "failures": dict(self.failures),
            "p50_ms": round(1000 * recent[len(recent) // 2], 1) if recent else None,
            "p99_ms": round(1000 * recent[int(len(recent) * 0.99)], 1) if recent else None,
            "worst_ms": round(1000 * self.worst, 1),
        }
        print(json.dumps({**more, **numbers}), flush=True)


def main(port: int, pem: str, idle: int, rate: float, seconds: float) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Who answers is looked at elsewhere; here it would only cost the machine what the worker needs.
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    tls.load_cert_chain(pem)
    gc.freeze()
    load = Load(port, tls)
    load.hold(idle, max(rate, 100.0))
    load.say(phase="held")
    reached = load.renew(rate, seconds)
    load.say(phase="renewed", **reached)
    load.release()
    load.say(phase="released", **reached)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5]))
