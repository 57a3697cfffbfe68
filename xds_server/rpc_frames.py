# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 frames as bytes (RFC 9113), and the few header blocks that a gRPC server ever sends. Pure.

Our headers never touch a compression table: every field is either in HPACK's static table or a literal that is not
indexed (RFC 7541, section 6.2.2), so that a block is the same bytes on every connection and is made once.
"""

from __future__ import annotations

import struct
from functools import cache

from grpclib.const import Status
from grpclib.metadata import encode_grpc_message
from h2.errors import ErrorCodes

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
ACK = END_STREAM = 0x1
END_HEADERS, PADDED, PRIORITIZED = 0x4, 0x8, 0x20
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_STREAMS, INITIAL_WINDOW, MAX_FRAME, MAX_HEADERS = range(1, 7)

FRAME_HEAD = 9
# What both sides start with (section 6.9.2), and what we never change.
WINDOW = 65535
# The largest frame that we take: the least that a peer must be allowed to send (section 4.2).
FRAME_SIZE = 16384
MAX_WINDOW = 2**31 - 1
# A status text is a sentence; a client's header limit may be 8 KiB.
_MAX_STATUS_TEXT = 1024

_HEAD = struct.Struct(">HBBBI")
_SETTING = struct.Struct(">HI")


def frame_head(size: int, kind: int, flags: int, stream: int) -> bytes:
    """The nine bytes in front of a payload of `size` bytes."""
    return _HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return frame_head(len(payload), kind, flags, stream) + payload


def read_head(data: bytes, position: int) -> tuple[int, int, int, int]:
    """Payload size, type, flags and stream of the frame that begins at `position`."""
    high, low, kind, flags, stream = _HEAD.unpack_from(data, position)
    return high << 8 | low, kind, flags, stream & 0x7FFFFFFF


def settings(values: dict[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*item) for item in values.items()))


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    return list(_SETTING.iter_unpack(payload))


def window_update(stream: int, step: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, step.to_bytes(4, "big"))


def reset(stream: int, code: ErrorCodes) -> bytes:
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def goaway(last_stream: int, code: ErrorCodes, text: str = "") -> bytes:
    return frame(GOAWAY, 0, 0, last_stream.to_bytes(4, "big") + code.to_bytes(4, "big") + text.encode())


# ---- header blocks

# "The table is empty from here on": said once per connection, in front of the first block, so that a client that asks
# for a smaller table than the default has had its answer (RFC 7541, section 4.2).
EMPTY_TABLE = b"\x20"
_STATUS_200 = b"\x88"
_STATUS_NAME = b"\x08"  # literal without indexing, name 8 of the static table
_CONTENT_TYPE_NAME = b"\x0f\x10"  # the same with name 31


def _text(value: bytes) -> bytes:
    """A string literal, not Huffman-coded."""
    size = len(value)
    if size < 127:
        return bytes((size,)) + value
    size -= 127
    head = bytearray((127,))
    while size >= 128:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + value


GRPC_HEAD = _STATUS_200 + _CONTENT_TYPE_NAME + _text(b"application/grpc")


@cache
def http_refusal(status: int) -> bytes:
    """The whole answer to what is no gRPC request."""
    return _STATUS_NAME + _text(str(status).encode())


def trailers(status: str, text: str = "") -> bytes:
    """`status` is the gRPC name. The text is cut to a kibibyte of what goes over the wire."""
    block = b"\0" + _text(b"grpc-status") + _text(str(Status[status].value).encode())
    if text:
        encoded = encode_grpc_message(text).encode()[:_MAX_STATUS_TEXT]
        # Not in the middle of a %-escape.
        cut = encoded.rfind(b"%", len(encoded) - 2) if len(encoded) == _MAX_STATUS_TEXT else -1
        block += b"\0" + _text(b"grpc-message") + _text(encoded if cut < 0 else encoded[:cut])
    return block


OK_TRAILERS = trailers("OK")
