# SPDX-License-Identifier: Apache-2.0
"""Does the app listen where the manifest says? Asked by connecting, and hanging up at once.

The app sees connections that say nothing, as every load balancer's check makes them. Nothing short of connecting tells
on all platforms: a socket file is there before anybody listens, and after its owner has died.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

from enclave_proxy.app_state import AppState
from enclave_proxy.relay_config import Address, RelayConfig, TcpAddress

# Seconds between two looks: the first ones soon, since a small app listens within milliseconds.
FIRST_PAUSE = 0.02
LONGEST_PAUSE = 0.5
# A socket that takes longer than this to accept is one that nobody serves.
CONNECT = 1.0


async def until_it_listens(state: AppState, config: Callable[[], RelayConfig | None], patience: float) -> bool:
    """Keep `state.silent` true until the app answers on every upstream of the configuration in force, or for `patience`
    seconds; whether it does. It is empty afterwards in any case: who waits for ever is no readiness."""
    deadline = time.monotonic() + patience
    pause = FIRST_PAUSE
    answering: set[Address] = set()
    try:
        while True:
            upstreams = _upstreams(config())
            state.silent = tuple(str(upstream) for upstream in upstreams if upstream not in answering)
            for upstream in upstreams:
                if upstream not in answering and await _answers(upstream):
                    answering.add(upstream)
            if answering.issuperset(_upstreams(config())):
                return True
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
    finally:
        state.silent = ()


def _upstreams(config: RelayConfig | None) -> tuple[Address, ...]:
    return () if config is None else tuple(dict.fromkeys(route.upstream for route in config.inbound))


async def _answers(address: Address) -> bool:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT):
            if isinstance(address, TcpAddress):
                _, writer = await asyncio.open_connection(address.host, address.port)
                writer.close()
                return True
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
                await loop.sock_connect(probe, address.path)
                return True
    except (OSError, TimeoutError):
        return False
