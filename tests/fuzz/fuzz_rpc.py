# SPDX-License-Identifier: Apache-2.0
"""Random HTTP/2 on the xDS port, behind a finished handshake: frames of the fuzzer's choice against our own engine.

The rule: nothing is raised, every stream that began ends once and hears nothing after, no byte of the budget stays
taken, what is held is bounded, and what is sent are whole frames that keep to the windows and the frame size that the
client has given. The input is a script, so that the fuzzer gets past HPACK: an instruction is a byte that chooses a
frame and takes its arguments from the next two; everything else is sent as it is.
"""

from __future__ import annotations

from hpack import Encoder

from tests.fuzz.driver import run
from tests.kit.rpc_peer import GREETING, REQUEST, framed
from xds_server.byte_budget import ByteBudget
from xds_server.rpc_frames import frame, settings
from xds_server.rpc_h2 import Connection, H2Limits
from xds_server.rpc_stream import Stream

DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
LIMITS = H2Limits(streams=8, message=100_000, unfinished=150_000)
BODIES = (b"", b"echo", b"pause", b"end", b"fail", b"large", b"x" * 300, b"y" * 20_000)
START, MOST = 65_535, 2**31 - 1


class Client:
    """What the client has allowed so far, and whether the server keeps to it."""

    def __init__(self) -> None:
        self.window = START
        self.first = START
        self.frame = 16_384
        self.streams: dict[int, int] = {}

    def opened(self, stream: int) -> None:
        self.streams.setdefault(stream, self.first)

    def widen(self, stream: int, step: int) -> None:
        if stream == 0:
            self.window += step
        elif stream in self.streams:
            self.streams[stream] += step

    def resize(self, size: int) -> None:
        for stream in self.streams:
            self.streams[stream] += size - self.first
        self.first = size

    def hear(self, data: bytes) -> None:
        position = 0
        while position < len(data):
            size = int.from_bytes(data[position : position + 3], "big")
            kind, number = data[position + 3], int.from_bytes(data[position + 5 : position + 9], "big")
            position += 9 + size
            assert position <= len(data), "a frame is cut"
            assert size <= self.frame
            if kind == DATA:
                self.window -= size
                self.streams[number] -= size
                assert size == 0 or (self.window >= 0 and self.streams[number] >= 0), "more than the windows allow"


class Service:
    """Does what messages say; checks what it is told."""

    def __init__(self) -> None:
        self.open: dict[int, Stream] = {}
        self.over: set[int] = set()
        self.h2: Connection

    def begun(self, stream: Stream) -> None:
        assert stream.number not in self.over
        assert stream.number not in self.open
        self.open[stream.number] = stream

    def message(self, stream: Stream, body: bytes) -> None:
        assert self.open[stream.number] is stream
        assert not stream.paused
        if stream.pending is not None:
            return
        match body:
            case b"pause":
                stream.paused = True
            case b"end":
                self.h2.finish(stream, "OK")
            case b"fail":
                self.h2.finish(stream, "ABORTED", "as it was asked for: é\n%")
            case b"large":
                self.h2.send(stream, bytes(70_000))
            case _:
                self.h2.send(stream, body)

    def half_closed(self, stream: Stream) -> None:
        assert self.open[stream.number] is stream
        self.h2.finish(stream, "OK")

    def writable(self, stream: Stream) -> None:
        assert self.open[stream.number] is stream
        assert stream.pending is None

    def closed(self, stream: Stream) -> None:
        assert self.open.pop(stream.number) is stream
        self.over.add(stream.number)


class Script:
    """Feeds one connection."""

    def __init__(self) -> None:
        self.client = Client()
        self.service = Service()
        self.budget = ByteBudget(200_000)
        self.now = 0.0
        self.h2 = self.service.h2 = Connection(self.service, LIMITS, self.budget, self.now)
        self.known = True  # what the client has allowed: until raw bytes were sent
        self.last = -1  # the newest stream
        self.feed(GREETING)
        self.one(0, 0, 0)

    def feed(self, data: bytes) -> None:
        self.h2.receive(data, self.now)
        heard = self.h2.take_out()
        while heard:
            if self.known:
                self.client.hear(heard)
            heard = self.h2.take_out()

    def play(self, data: bytes) -> None:
        position = 0
        while position + 3 <= len(data) and not self.h2.ended:
            kind, stream, argument = data[position], data[position + 1] % 32, data[position + 2]
            position += 3
            if kind % 12 == 11:
                self.known = False
                self.feed(data[position : position + argument % 40])
                position += argument % 40
            else:
                self.one(kind % 12, stream, argument)

    def one(self, kind: int, which: int, argument: int) -> None:
        # Nearly always a stream that there is: what is wrong with others ends the connection.
        stream = 2 * (which % (self.last // 2 + 1)) + 1 if self.last > 0 and argument != 255 else which
        match kind:
            case 0 | 1:
                self.begin(which if argument == 255 else self.last + 2, argument, end=kind == 1)
            case 2 | 3:
                body = framed(BODIES[argument % len(BODIES)])
                cut = len(body) if argument < 128 else argument * len(body) // 256
                for part in (body[:cut], body[cut:]) if argument < 250 else (body[:cut],):
                    self.feed(frame(DATA, 0, stream, part[:16_384]))
                if kind == 3:
                    self.feed(frame(DATA, 1, stream))
            case 4:
                self.feed(frame(RST, 0, stream, argument.to_bytes(4, "big")))
            case 5:
                step = argument << (which % 20) or 1
                self.client.widen(stream if which % 2 else 0, step)
                self.feed(frame(WINDOW, 0, stream if which % 2 else 0, step.to_bytes(4, "big")))
            case 6:
                size = argument << 8
                self.client.resize(size)
                self.feed(settings({4: size, 1: argument}))
            case 7:
                self.client.frame = 16_384 + argument * 100
                self.feed(settings({5: 16_384 + argument * 100}))
            case 8:
                self.feed(frame(PING, argument & 1, 0, bytes(8)) + frame(SETTINGS, 1, 0))
            case 9:
                self.now += argument
                for held in list(self.service.open.values()):
                    if held.paused:
                        self.h2.resume(held)
                self.feed(b"")
            case _:
                self.known = self.known and argument not in (SETTINGS, WINDOW, HEADERS)
                self.feed(frame(argument, which, stream, bytes(argument % 12)))

    def begin(self, number: int, argument: int, *, end: bool) -> None:
        self.last = max(self.last, number | 1)
        self.client.opened(number)
        fields = REQUEST if argument < 200 else [*REQUEST, (b"x-%d" % argument, bytes(argument))]
        block = Encoder().encode(fields)
        cut = argument % (len(block) + 1) if argument % 3 == 0 else len(block)
        self.feed(frame(HEADERS, (4 if cut == len(block) else 0) | end, number, block[:cut]))
        if cut < len(block):
            self.feed(frame(9, 4, number, block[cut:]))


def fuzz_one(data: bytes) -> None:
    script = Script()
    script.play(data)
    held = sum(stream.held for stream in script.service.open.values())
    assert held <= LIMITS.unfinished + 2 * 16_384
    script.h2.cut()
    script.feed(b"")
    assert not script.service.open
    assert script.budget.used == 0


SEEDS = (
    bytes((2, 0, 1, 3, 0, 0, 0, 1, 0, 2, 1, 4)),  # echo, half close, a second call that fails
    bytes((2, 0, 5, 5, 7, 200, 5, 8, 200, 2, 0, 7, 5, 9, 99, 5, 10, 99)),  # more than a window, in both directions
    bytes((2, 0, 2, 2, 0, 7, 2, 0, 7, 9, 0, 1, 3, 0, 3)),  # pause, go on, end
    bytes((6, 0, 0, 2, 0, 6, 6, 0, 9, 7, 0, 50, 2, 0, 5, 8, 0, 0)),  # windows that shrink and grow
)

if __name__ == "__main__":
    run(fuzz_one, SEEDS)
