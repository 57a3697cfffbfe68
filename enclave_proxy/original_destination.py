# SPDX-License-Identifier: Apache-2.0
"""Where a redirected connection was going: what connection tracking remembers of it (SO_ORIGINAL_DST)."""

from __future__ import annotations

import socket
import struct

from enclave_proxy.relay_config import TcpAddress

# linux/netfilter_ipv4.h and linux/netfilter_ipv6/ip6_tables.h: the same number, on two levels.
SO_ORIGINAL_DST = 80
_SOCKADDR_IN, _SOCKADDR_IN6 = 16, 28


def original_destination(connection: socket.socket) -> TcpAddress:
    """Of an accepted connection: the address that the client dialled; our own if it was not redirected. Raises OSError
    (ENOENT) if nothing is tracked here."""
    if connection.family == socket.AF_INET6:
        raw = connection.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, _SOCKADDR_IN6)
        port, address = struct.unpack("!2xH4x16s4x", raw)
        return TcpAddress(socket.inet_ntop(socket.AF_INET6, address), port)
    raw = connection.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, _SOCKADDR_IN)
    port, address = struct.unpack("!2xH4s8x", raw)
    return TcpAddress(socket.inet_ntop(socket.AF_INET, address), port)
