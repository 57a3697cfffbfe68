# SPDX-License-Identifier: Apache-2.0
"""What linkerd2-proxy looks at in the first bytes of a connection: the ClientHello's server name, its own header.

Sans I/O. `client_hello` answers as linkerd2-proxy's detection does: one TLS record, record version 3.1 or 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.kit.linkerd_wire import decode, encode, number, text

PEEK, BUFFER = 512, 8192
ALPN = "transport.l5d.io/v1"
_PREFACE = f"{ALPN}\r\n\r\n".encode()
MAX_HEADER = 64 * 1024


class Incomplete(Exception):
    """More bytes are needed."""


class NotTls(Exception):
    """These bytes begin no ClientHello, whatever follows."""


def server_name(data: bytes) -> str | None:
    """The name in the ClientHello with which the data begin; None if it has none. Raises Incomplete, NotTls."""
    if data[:1] not in (b"", b"\x16") or (len(data) >= 3 and data[1:3] not in (b"\x03\x01", b"\x03\x03")):
        raise NotTls
    if len(data) < 5:
        raise Incomplete
    size = int.from_bytes(data[3:5])
    if len(data) < 5 + size:
        raise Incomplete
    try:
        return _name(data[5 : 5 + size])
    except IndexError:
        raise NotTls from None


def _name(handshake: bytes) -> str | None:
    if handshake[0] != 1:
        raise NotTls
    at = 4 + 2 + 32  # header, version, random
    at += 1 + handshake[at]  # session
    at += 2 + int.from_bytes(handshake[at : at + 2])  # cipher suites
    at += 1 + handshake[at]  # compression
    end = at + 2 + int.from_bytes(handshake[at : at + 2])
    at += 2
    while at + 4 <= min(end, len(handshake)):
        kind, size = int.from_bytes(handshake[at : at + 2]), int.from_bytes(handshake[at + 2 : at + 4])
        if kind == 0:  # server_name: list length, type, name length, name
            return handshake[at + 9 : at + 4 + size].decode("ascii", "replace")
        at += 4 + size
    return None


@dataclass(frozen=True, slots=True)
class Header:
    """The transport header: which port of the pod a connection to the proxy's own port is for."""

    port: int
    name: str = ""

    def encode(self) -> bytes:
        message = encode((1, self.port), (2, self.name or None))
        return _PREFACE + len(message).to_bytes(4) + message


def header(data: bytes) -> tuple[Header, bytes]:
    """The header with which the data begin, and the rest. Raises Incomplete; ValueError if it is none."""
    known = data[: len(_PREFACE)]
    if known != _PREFACE[: len(known)]:
        raise ValueError("no transport header")
    start = len(_PREFACE) + 4
    if len(data) < start:
        raise Incomplete
    size = int.from_bytes(data[len(_PREFACE) : start])
    if size > MAX_HEADER:
        raise ValueError(f"a transport header of {size} bytes")
    if len(data) < start + size:
        raise Incomplete
    fields = decode(data[start : start + size])
    return Header(number(fields, 1), text(fields, 2)), data[start + size :]
