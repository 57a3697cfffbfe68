# SPDX-License-Identifier: Apache-2.0
"""The other end of our HTTP/2 server: a client by the `h2` library, joined to it in memory, and frames made by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)

from xds_server.byte_budget import ByteBudget
from xds_server.rpc_frames import PREFACE, frame, settings
from xds_server.rpc_h2 import Connection, H2Limits
from xds_server.rpc_stream import Stream

Fields = list[tuple[bytes, bytes]]
REQUEST: Fields = [
    (b":method", b"POST"),
    (b":scheme", b"https"),
    (b":path", b"/test.Service/Method"),
    (b":authority", b"coordinator"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]
GREETING = PREFACE + settings({})


def framed(body: bytes) -> bytes:
    """A gRPC message."""
    return b"\0" + len(body).to_bytes(4, "big") + body


class Log:
    """An Owner that writes down what it is told; messages, ends and closed streams by their number."""

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}
        self.messages: dict[int, list[bytes]] = {}
        self.half: list[int] = []
        self.ready: list[int] = []
        self.over: list[int] = []

    def begun(self, stream: Stream) -> None:
        self.streams[stream.number] = stream
        self.messages[stream.number] = []

    def message(self, stream: Stream, body: bytes) -> None:
        assert stream.number not in self.over
        self.messages[stream.number].append(body)

    def half_closed(self, stream: Stream) -> None:
        self.half.append(stream.number)

    def writable(self, stream: Stream) -> None:
        self.ready.append(stream.number)

    def closed(self, stream: Stream) -> None:
        self.over.append(stream.number)


@dataclass
class Answer:
    """What a client got on one stream."""

    head: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    trailers: dict[bytes, bytes] = field(default_factory=dict)
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> tuple[bytes, bytes]:
        """gRPC status and its text, from wherever they are."""
        found = self.trailers or self.head
        return found[b"grpc-status"], found.get(b"grpc-message", b"")


class Pair:
    """A client and our server. `talk` carries bytes both ways until both are silent."""

    def __init__(self, limits: H2Limits | None = None, budget: int = 1 << 30, *, consume: bool = True) -> None:
        self.log = Log()
        self.budget = ByteBudget(budget)
        self.server = Connection(self.log, limits or H2Limits(), self.budget, 0.0)
        self.client = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        self.client.initiate_connection()
        self.now = 0.0
        self.answers: dict[int, Answer] = {}
        self.goaway: ErrorCodes | None = None
        self._consume = consume

    def request(self, *messages: bytes, end: bool = False, fields: Fields | None = None) -> int:
        """A request with these messages, as the client would send it; the number of its stream."""
        number = self.client.get_next_available_stream_id()
        self.client.send_headers(number, fields or REQUEST, end_stream=end and not messages)
        for position, body in enumerate(messages):
            self.send(number, framed(body), end=end and position == len(messages) - 1)
        return number

    def send(self, number: int, data: bytes, *, end: bool = False) -> None:
        """DATA, in frames as large as windows and settings allow."""
        while True:
            room = min(self.client.local_flow_control_window(number), self.client.max_outbound_frame_size)
            if len(data) <= room:
                self.client.send_data(number, data, end_stream=end)
                return
            assert room or self.talk(), "the server gives no window"
            if room:
                self.client.send_data(number, data[:room])
                data = data[room:]

    def talk(self) -> bool:
        """Whether anything was said."""
        said = False
        while True:
            to_server = self.client.data_to_send()
            if to_server:
                self.server.receive(to_server, self.now)
            to_client = self.server.take_out()
            if to_client:
                for event in self.client.receive_data(to_client):
                    self._note(event)
            if not to_server and not to_client:
                return said
            said = True

    def _note(self, event: Event) -> None:
        if isinstance(event, ConnectionTerminated):
            self.goaway = ErrorCodes(event.error_code or 0)
            return
        answer = self.answers.setdefault(getattr(event, "stream_id", None) or 0, Answer())
        match event:
            case ResponseReceived(headers=headers):
                answer.head = dict(headers or ())
            case TrailersReceived(headers=headers):
                answer.trailers = dict(headers or ())
            case DataReceived(data=data, flow_controlled_length=length, stream_id=number):
                answer.body += data or b""
                if self._consume and length:
                    self.client.acknowledge_received_data(length, number or 0)
            case StreamEnded():
                answer.ended = True
            case StreamReset(error_code=code):
                answer.reset = int(code or 0)

    def answer(self, number: int) -> Answer:
        self.talk()
        return self.answers[number]


class Raw:
    """Our server, and frames that no library would send. `code` is the one of its GOAWAY."""

    def __init__(self, limits: H2Limits | None = None, greeting: bytes = GREETING) -> None:
        self.log = Log()
        self.budget = ByteBudget(1 << 30)
        self.server = Connection(self.log, limits or H2Limits(), self.budget, 0.0)
        self.heard = b""
        self.feed(greeting)

    def feed(self, data: bytes, now: float = 0.0, overhead: int = 0) -> None:
        self.server.receive(data, now, overhead)
        self.heard += self.server.take_out()

    def frames(self) -> list[tuple[int, int, int, bytes]]:
        """What the server said: type, flags, stream, payload."""
        found, position = [], 0
        while position < len(self.heard):
            size = int.from_bytes(self.heard[position : position + 3], "big")
            kind, flags = self.heard[position + 3 : position + 5]
            number = int.from_bytes(self.heard[position + 5 : position + 9], "big")
            found.append((kind, flags, number, self.heard[position + 9 : position + 9 + size]))
            position += 9 + size
        return found

    @property
    def code(self) -> ErrorCodes | None:
        for kind, _, _, payload in self.frames():
            if kind == 7:
                return ErrorCodes(int.from_bytes(payload[4:8], "big"))
        return None

    def reset_code(self, number: int) -> ErrorCodes | None:
        for kind, _, stream, payload in self.frames():
            if kind == 3 and stream == number:
                return ErrorCodes(int.from_bytes(payload, "big"))
        return None


def literal(fields: Fields) -> bytes:
    """A header block without any compression."""
    return b"".join(b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value for name, value in fields)


def open_stream(number: int = 1, *, end: bool = False, fields: Fields | None = None) -> bytes:
    """HEADERS of a request."""
    return frame(1, 4 | end, number, literal(fields or REQUEST))
