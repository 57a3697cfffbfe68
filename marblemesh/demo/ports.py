# SPDX-License-Identifier: Apache-2.0
"""Free TCP ports on loopback."""

from __future__ import annotations

import random
import socket
from pathlib import Path

from marblemesh.demo.errors import DemoError

LOW = 10_000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int, host: str, seed: random.Random) -> list[int]:
    """`count` different ports that are free now.

    They lie below the range from which the kernel takes ports for outgoing connections: between our look and the
    process's bind no client of anybody can get one. Another server can, so whoever uses them must be ready to retry.
    """
    candidates = range(LOW, _first_ephemeral())
    held: list[socket.socket] = []
    try:
        for port in seed.sample(candidates, min(len(candidates), 50 * count)):
            probe = socket.socket()
            try:
                probe.bind((host, port))
            except OSError:
                probe.close()
                continue
            held.append(probe)
            if len(held) == count:
                return [held_socket.getsockname()[1] for held_socket in held]
    finally:
        for held_socket in held:
            held_socket.close()
    raise DemoError(f"found {len(held)} free ports on {host}, the demo needs {count}")


def _first_ephemeral() -> int:
    try:
        low = int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768  # Linux's default
    return low if low > LOW + 1_000 else 32_768
