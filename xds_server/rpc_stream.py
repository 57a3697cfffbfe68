# SPDX-License-Identifier: Apache-2.0
"""One gRPC stream on an HTTP/2 connection: what is put together to messages, what waits for the peer's window. Pure."""

from __future__ import annotations

from xds_server.rpc_frames import WINDOW

PREFIX = 5  # flag and length before a message


class StreamFault(Exception):
    """The client's stream ends with this gRPC status (its name); the text goes to the client."""

    def __init__(self, status: str, text: str) -> None:
        self.status = status
        super().__init__(text)


class Stream:
    """The rules of both directions stand in `rpc_h2`; here is the state. `owner` is whoever serves the stream.

    `room`: how much the client may still send; `window`: how much we may. `reserved`: bytes of the budget that a large
    message has taken.
    """

    __slots__ = (
        "_partial",
        "ended",
        "number",
        "owner",
        "path",
        "paused",
        "pending",
        "reserved",
        "room",
        "started",
        "told",
        "trailers",
        "waits",
        "window",
    )

    def __init__(self, number: int, path: str, window: int) -> None:
        self.number = number
        self.path = path
        self.window = window
        self.room = WINDOW
        self.reserved = 0
        self.started = False  # our header block is out
        self.ended = False  # the client has said that nothing more comes
        self.told = False  # and whoever serves the stream knows
        self.paused = False  # what comes is kept, and no more is asked for
        self.pending: memoryview | None = None  # what the windows do not take yet
        self.waits = False  # and whoever serves the stream waits for it
        self.trailers: bytes | None = None  # to follow it
        self.owner: object = None
        self._partial: bytearray | None = None

    def add(self, payload: bytes) -> bytes | None:
        """Take in DATA; the message, if it is exactly one and nothing else waits, which is what nearly always comes."""
        if (
            self._partial is None
            and not self.paused
            and len(payload) >= PREFIX
            and not payload[0]
            and int.from_bytes(payload[1:PREFIX], "big") == len(payload) - PREFIX
        ):
            return payload[PREFIX:]
        if payload:
            if self._partial is None:
                self._partial = bytearray()
            self._partial += payload
        return None

    def next_message(self, limit: int) -> bytes | None:
        """The next whole message of what has come. Raises StreamFault for one that will not be taken."""
        held = self._partial
        if held is None or len(held) < PREFIX:
            return None
        if held[0]:
            raise StreamFault("UNIMPLEMENTED", "compressed messages are not accepted")
        length = int.from_bytes(held[1:PREFIX], "big")
        if length > limit:
            raise StreamFault("RESOURCE_EXHAUSTED", f"message of {length} bytes, at most {limit} are accepted")
        if len(held) < PREFIX + length:
            return None
        message = bytes(memoryview(held)[PREFIX : PREFIX + length])
        del held[: PREFIX + length]
        if not held:
            self._partial = None
        return message

    @property
    def wanted(self) -> int:
        """Size of the message of which a part is here, as its prefix says; 0 if there is none."""
        held = self._partial
        return 0 if held is None or len(held) < PREFIX else PREFIX + int.from_bytes(held[1:PREFIX], "big")

    @property
    def held(self) -> int:
        """Bytes of what is not handed over."""
        return 0 if self._partial is None else len(self._partial)
