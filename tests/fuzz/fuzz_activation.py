# SPDX-License-Identifier: Apache-2.0
"""Fuzz target: whatever comes over TLS to the Marble API's port, a Marble that was not verified is never activated.

The first byte of the input chooses: even, the rest is the message of a gRPC call, on a connection with the quoted
certificate and on one with another; odd, the rest are the bytes of a whole HTTP/2 connection, whose certificate and
end the byte's other bits choose. After each input everything that served it must be gone and nothing logged as an
error, and after every 64 a genuine Marble must get in.

`make fuzz ARGS=activation`; the unit tests run it over mutations of genuine input.
"""

from __future__ import annotations

import asyncio
import functools
import tempfile
from contextlib import ExitStack
from pathlib import Path

from hpack import Encoder

from sds.wire.marble_pb2 import ActivationRequest
from tests.fuzz.driver import run
from tests.kit.coordinator import Bench, manifest
from tests.kit.marble_client import MarbleCredentials
from tests.kit.marble_port import Answer, GrpcClient, MarblePort, RawClient
from xds_server.events import ActivationEvent

OTHER_CERTIFICATE, RESET, EVERY = 2, 4, 64
# Of a quote, what its signature covers; zero bytes after it do not count.
_SIGNED = 432
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_INTERNAL = 13


class World:
    """A Coordinator with a manifest behind a real port, and the one Marble that it may admit."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="mm-"))
        self.bench = Bench.make(Path(folder))
        asyncio.run(self.bench.coordinator.set_manifest(manifest()))
        self.genuine_one, self.other_one = MarbleCredentials.make(), MarbleCredentials.make()
        ask = self.bench.ask(credentials=self.genuine_one)
        self.genuine = ActivationRequest(quote=ask.quote, csr=ask.csr, marble_type=ask.marble_type, uuid=ask.uuid)
        self.port = self._stack.enter_context(MarblePort(self.bench))
        self._calls = [
            self._stack.enter_context(GrpcClient(self.port, who)) for who in (self.genuine_one, self.other_one)
        ]
        self._standing = len(self._calls)
        self._inputs = 0

    def close(self) -> None:
        self._stack.close()

    def fuzz(self, data: bytes) -> None:
        if not data or data[0] % 2 == 0:
            self.message(data[1:])
        else:
            self.connection(data[0], data[1:])
        self.port.wait_for_silence(self._standing)
        if alarm := self.port.take_alarms():
            raise AssertionError(f"the server has logged an error: {alarm}")
        self._inputs += 1
        if self._inputs % EVERY == 0:
            self.genuine_gets_in()

    def message(self, message: bytes) -> tuple[Answer, Answer]:
        """As the message of a call, with the quoted certificate and with another; the answers."""
        good, bad = (client.call(message) for client in self._calls)
        events = self.port.take_events()
        self._check(events, verified=True)
        if bad.status == 0 or len(events) != (good.status == 0):
            raise AssertionError(f"answers {good.status} and {bad.status}, but {len(events)} activations")
        if _INTERNAL in (good.status, bad.status) and "internal error" in (good.text, bad.text):
            raise AssertionError("the handler failed")
        return good, bad

    def connection(self, how: int, data: bytes) -> bytes:
        """As all that a client sends after the handshake; what it is answered."""
        verified = not how & OTHER_CERTIFICATE
        with RawClient(self.port, self.genuine_one if verified else self.other_one) as client:
            client.send(data)
            client.wait_until_read(others=self._standing)
            self.port.wait_for_answers()
            answer = client.answer()
            if how & RESET:
                client.reset()
        events = self.port.take_events()
        self._check(events, verified=verified)
        if b"MARBLE_PREDEFINED" in answer and not events:
            raise AssertionError("somebody was answered as a Marble, and nobody was activated")
        return answer

    def genuine_gets_in(self) -> None:
        """On a new connection, as if nothing had happened."""
        with GrpcClient(self.port, self.genuine_one) as client:
            answer = client.call(self.genuine.SerializeToString())
        if answer.status != 0 or b"MARBLE_PREDEFINED_PRIVATE_KEY" not in answer.body:
            raise AssertionError(f"a genuine Marble is refused: {answer.status} {answer.text}")
        self._check(self.port.take_events(), verified=True)

    def _check(self, events: list[ActivationEvent], *, verified: bool) -> None:
        wanted = self.genuine.quote.rstrip(b"\0")[:_SIGNED]
        for event in events:
            if not verified or event.quote.rstrip(b"\0")[:_SIGNED] != wanted:
                raise AssertionError("a Marble was activated that nobody verified")


@functools.cache
def world() -> World:
    """One for all inputs of this process."""
    return World()


def seeds() -> tuple[bytes, ...]:
    """Genuine input of each kind."""
    genuine = world().genuine.SerializeToString()
    messages = (genuine, ActivationRequest(marble_type="web").SerializeToString())
    connections = (conversation(genuine), conversation(b""), _PREFACE)
    return (
        *(b"\0" + message for message in messages),
        *(bytes([1 + how]) + data for data in connections for how in (0, OTHER_CERTIFICATE, RESET)),
    )


def conversation(message: bytes) -> bytes:
    """Everything that a client sends for one call."""
    fields = [
        (":method", "POST"),
        (":scheme", "https"),
        (":path", "/rpc.Marble/Activate"),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
    ]
    body = b"\0" + len(message).to_bytes(4, "big") + message
    return _PREFACE + _frame(1, 4, Encoder().encode(fields)) + _frame(0, 1, body)


def _frame(kind: int, flags: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + (1).to_bytes(4, "big") + payload


def fuzz_one(data: bytes) -> None:
    world().fuzz(data)


if __name__ == "__main__":
    run(fuzz_one, seeds())
