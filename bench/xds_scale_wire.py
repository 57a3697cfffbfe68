# SPDX-License-Identifier: Apache-2.0
"""The least HTTP/2 that a gRPC client with one long stream needs (RFC 9113). Pure: bytes in, messages out.

It keeps the rules that a server may rely on (settings and pings are answered, what was consumed is given back to the
windows) and nothing else, so that five thousand of them fit into one process. It believes what the server says.
"""

from __future__ import annotations

from collections.abc import Callable

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK, END_STREAM, END_HEADERS = 0x1, 0x1, 0x4
# What grpc-go and Envoy's examples use; the defaults of 64 KiB would measure round trips.
WINDOW = 4 * 1024 * 1024
_GIVE_BACK = WINDOW // 2


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def message(body: bytes) -> bytes:
    """One gRPC message on stream 1."""
    return frame(DATA, 0, 1, b"\0" + len(body).to_bytes(4, "big") + body)


def opening(path: str) -> bytes:
    """Preface, settings and the head of the one request, its fields as literals that go into no table."""
    fields = {
        ":method": "POST",
        ":scheme": "https",
        ":path": path,
        ":authority": "coordinator",
        "te": "trailers",
        "content-type": "application/grpc",
        "user-agent": "marblemesh-bench",
    }
    head = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())
    settings = b"\0\x02\0\0\0\0" + b"\0\x04" + WINDOW.to_bytes(4, "big")
    return b"".join(
        (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            frame(SETTINGS, 0, 0, settings),
            frame(WINDOW_UPDATE, 0, 0, (WINDOW - 65535).to_bytes(4, "big")),
            frame(HEADERS, END_HEADERS, 1, head),
        )
    )


def _text(text: str) -> bytes:
    return bytes((len(text),)) + text.encode()


class Wire:
    """The receiving half. `received` gets each message, `refused` the reason if the server ends it."""

    __slots__ = ("_buffer", "_consumed", "_message", "_received", "_refused", "out")

    def __init__(self, received: Callable[[bytes], None], refused: Callable[[str], None]) -> None:
        self._received = received
        self._refused = refused
        self._buffer = b""
        self._message = b""
        self._consumed = 0
        self.out: list[bytes] = []

    def feed(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        position = 0
        while len(data) - position >= 9:
            end = position + 9 + int.from_bytes(data[position : position + 3], "big")
            if end > len(data):
                break
            self._frame(data[position + 3], data[position + 4], data[position + 9 : end])
            position = end
        self._buffer = data[position:]

    def _frame(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == DATA:
            self._consumed += len(payload)
            if self._consumed >= _GIVE_BACK:
                step = self._consumed.to_bytes(4, "big")
                self.out += (frame(WINDOW_UPDATE, 0, 0, step), frame(WINDOW_UPDATE, 0, 1, step))
                self._consumed = 0
            self._collect(payload)
        elif kind == SETTINGS and not flags & ACK:
            self.out.append(frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            self.out.append(frame(PING, ACK, 0, payload))
        elif kind == RST_STREAM:
            self._refused(f"stream reset with code {int.from_bytes(payload, 'big')}")
        elif kind == GOAWAY:
            self._refused(f"connection ended with code {int.from_bytes(payload[4:8], 'big')}")
        elif kind == HEADERS and flags & END_STREAM:
            self._refused(f"stream ended: {payload!r}")

    def _collect(self, data: bytes) -> None:
        whole = self._message + data if self._message else data
        while len(whole) >= 5 and len(whole) - 5 >= (length := int.from_bytes(whole[1:5], "big")):
            self._received(whole[5 : 5 + length])
            whole = whole[5 + length :]
        self._message = whole
