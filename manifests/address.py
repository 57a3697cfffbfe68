# SPDX-License-Identifier: Apache-2.0
"""Where a worker meets its app: `unix:<path>` or `tcp:<loopback>:<port>`, parsed into typed values.

Both ends of this hop carry plaintext, so both stay inside the TEE: a UNIX socket, or loopback TCP where loopback is
inside the TEE (a confidential VM). Another host's address would send plaintext over the network and is no address here.
Whether TCP is allowed at all is a question of the Marble's package: see `checks_tls`.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

# sun_path has 108 bytes including the final NUL; a relative path also needs room for the run directory before it,
# which only the worker knows, so this is the outermost limit.
MAX_UNIX_PATH = 107


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A UNIX stream socket. A relative `path` is taken from the worker's run directory."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP socket on loopback; `host` is an IP address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"


Address = UnixAddress | TcpAddress


def parse_port(text: str) -> int:
    """A decimal port, 1 to 65535, without sign, blanks or leading zeros. Raises ValueError that says what was seen."""
    # isascii: str.isdigit accepts the digits of every script.
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and text[0] != "0" and int(text) <= 65535):
        raise ValueError(f"invalid port {text[:40]!r}: want a decimal number from 1 to 65535")
    return int(text)


def parse_address(text: str) -> Address:
    """`unix:<path>` or `tcp:<host>:<port>` as a value. Raises ValueError with what was seen and what is expected."""
    scheme, separator, rest = text.partition(":")
    match scheme if separator else "":
        case "unix":
            return UnixAddress(_unix_path(rest))
        case "tcp":
            return _tcp_address(rest)
        case _:
            raise ValueError(f"invalid address {text[:120]!r}: want unix:<path> or tcp:127.0.0.1:<port>")


def _unix_path(path: str) -> str:
    if not path or path.endswith("/"):
        raise ValueError(f"invalid UNIX socket path {path[:120]!r}: want the path of a file")
    if path.startswith("@"):
        # Anybody in the network namespace may connect to or take over an abstract socket: it has no file permissions.
        raise ValueError(
            f"invalid UNIX socket path {path[:120]!r}: abstract sockets are not supported, give a file path"
        )
    if not path.isprintable() or ".." in path.split("/"):
        raise ValueError(f"invalid UNIX socket path {path[:120]!r}: no control characters and no '..'")
    if len(path.encode()) > MAX_UNIX_PATH:
        raise ValueError(f"UNIX socket path has {len(path.encode())} bytes, the system allows {MAX_UNIX_PATH}")
    return path


def _tcp_address(text: str) -> TcpAddress:
    host, separator, port = text.rpartition(":")
    if not separator:
        raise ValueError(f"invalid TCP address {text[:120]!r}: want 127.0.0.1:<port>")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    # The one name that is allowed is not looked up: a resolver is the host's to forge.
    host = "127.0.0.1" if host == "localhost" else host
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback or "%" in host:
        raise ValueError(f"invalid TCP address {text[:120]!r}: plaintext must stay in the TEE, want a loopback address")
    return TcpAddress(host, parse_port(port))
