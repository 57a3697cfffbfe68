# SPDX-License-Identifier: Apache-2.0
"""The headers of a request: put together from frames, decompressed within bounds, judged. Pure.

A block may come in any number of frames, and a small one may decompress to a large list; both are bounded, since both
have been attacks (CVE-2024-27316 and its family; the HPACK bomb, CVE-2016-6581).
"""

from __future__ import annotations

from dataclasses import dataclass

from h2.errors import ErrorCodes
from hpack import Decoder
from hpack.exceptions import HPACKError, OversizedHeaderListError

MAX_HEADERS = 16 * 1024
_MAX_FRAMES = 16
_REQUIRED = (b":method", b":scheme", b":path")
_ALLOWED = frozenset((*_REQUIRED, b":authority"))
# RFC 9113, section 8.2.2: about a connection of HTTP/1.
_FORBIDDEN = frozenset((b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"))
_MEDIA_TYPES = (b"application/grpc", b"application/grpc+proto")


class ConnectionFault(Exception):
    """The peer broke a rule in a way that ends the connection: GOAWAY with this code. The text is for its author."""

    def __init__(self, code: ErrorCodes, text: str) -> None:
        self.code = code
        super().__init__(text)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not taken: a malformed one is reset, what is no gRPC gets an HTTP status."""

    reset: bool
    http_status: int = 0


class Headers:
    """The decompressing side of one connection; one block at a time."""

    __slots__ = ("_block", "_decoder", "_frames", "_tableless", "flags", "stream")

    def __init__(self) -> None:
        self._decoder: Decoder | None = None
        self._tableless = False
        self._block: bytearray | None = None
        self._frames = 0
        self.stream = 0
        self.flags = 0

    @property
    def pending(self) -> bool:
        """Whether a block has begun whose end is still to come: nothing else may come then."""
        return self._block is not None

    def begin(self, stream: int, flags: int, fragment: bytes) -> None:
        """The fragment of a HEADERS frame. Raises ConnectionFault."""
        self.stream, self.flags = stream, flags
        self._block = bytearray()
        self._frames = 0
        self.add(fragment)

    def add(self, fragment: bytes) -> None:
        """The fragment of a CONTINUATION frame. Raises ConnectionFault."""
        assert self._block is not None
        self._frames += 1
        if self._frames > _MAX_FRAMES or len(self._block) + len(fragment) > MAX_HEADERS:
            raise ConnectionFault(ErrorCodes.ENHANCE_YOUR_CALM, "header block too large")
        self._block += fragment

    def end(self) -> list[tuple[bytes, bytes]]:
        """The fields of the block. Raises ConnectionFault."""
        assert self._block is not None
        block, self._block = bytes(self._block), None
        decoder = self._decoder
        if decoder is None:
            decoder = Decoder(max_header_list_size=MAX_HEADERS)
            if self._tableless:
                decoder.header_table_size = decoder.max_allowed_table_size = 0
            else:
                self._decoder = decoder
        try:
            return [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]
        except OversizedHeaderListError:
            raise ConnectionFault(ErrorCodes.ENHANCE_YOUR_CALM, "header list too large") from None
        except HPACKError:
            raise ConnectionFault(ErrorCodes.COMPRESSION_ERROR, "header block cannot be decompressed") from None

    def forget_table(self) -> None:
        """The peer has acknowledged that our table is empty. Its next block must begin by saying so, which drops what
        we still hold (RFC 9113, section 4.3.1): thousands of idle connections need not keep it until then."""
        self._decoder = None
        self._tableless = True


def judge(fields: list[tuple[bytes, bytes]]) -> Refusal | None:
    """Whether the fields make a gRPC request (RFC 9113, section 8.3.1; gRPC over HTTP/2); None if they do."""
    if not _well_formed(fields):
        return Refusal(reset=True)
    found = dict(fields)
    if found[b":method"] != b"POST":
        return Refusal(reset=False, http_status=405)
    if found.get(b"content-type", b"").partition(b";")[0].strip() not in _MEDIA_TYPES:
        return Refusal(reset=False, http_status=415)
    return None


def _well_formed(fields: list[tuple[bytes, bytes]]) -> bool:
    pseudo = [name for name, _ in fields if name[:1] == b":"]
    if len(set(pseudo)) != len(pseudo) or not set(pseudo) <= _ALLOWED or not set(pseudo) >= set(_REQUIRED):
        return False
    if any(name[:1] != b":" for name, _ in fields[: len(pseudo)]):
        return False  # a pseudo-header after an ordinary one
    for name, value in fields:
        if not name or name != name.lower() or name in _FORBIDDEN or (name == b"te" and value != b"trailers"):
            return False
    return True
