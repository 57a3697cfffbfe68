# SPDX-License-Identifier: Apache-2.0
"""A client of a local socket that speaks HTTP/2 by hand, for what no library would send."""

from __future__ import annotations

import socket
from pathlib import Path

from h2.config import H2Configuration
from h2.connection import H2Connection


def request_head(path: str) -> list[tuple[str, str]]:
    pseudo = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x")]
    return [*pseudo, ("te", "trailers"), ("content-type", "application/grpc")]


class RawClient:
    """Connected at once; `open` begins HTTP/2. The socket is its owner's to close."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(str(path))
        self.h2 = H2Connection(H2Configuration(header_encoding="ascii", validate_outbound_headers=False))

    def open(self) -> None:
        self.h2.initiate_connection()
        self.flush()

    def call(self, path: str = "/t/_echo") -> int:
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, request_head(path))
        return stream

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def ended(self) -> bool:
        """Read until the server hangs up."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False
        return True
