# SPDX-License-Identifier: Apache-2.0
"""A relay that captures, alone in a pod, without Coordinator and worker process: for what the kernel makes of it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from enclave_proxy.capture_firewall import Firewall
from enclave_proxy.capture_relay import CapturingRelay
from enclave_proxy.limits import Limits
from enclave_proxy.relay_config import Inbound, Outbound, RelayConfig, TcpAddress
from sds.logs import get_logger
from tests.kit.capture_mesh import APP
from tests.kit.linkerd_rules import PROXY_UID
from tests.kit.mesh_relay import outbound
from tests.kit.netns import Namespace, link, namespaces_needed, pods
from tests.kit.pki import marble, shared_ca

PEER = TcpAddress("10.77.0.2", 9000)
"""A neighbour, where nobody listens."""
OWN = "10.77.0.1"


class Scenario(Protocol):
    def __call__(self, relay: CapturingRelay) -> Awaitable[None]: ...


@contextmanager
def neighbours() -> Iterator[tuple[Namespace, Namespace]]:
    """A pod, and another one, so that there is somewhere to go and somebody to come from."""
    namespaces_needed("nft", "iptables-nft", "iptables-legacy", "ip6tables-save")
    with pods("a", "b") as (a, b):
        link(a, b, [f"{OWN}/24", "fd77::1/64"], [f"{PEER.host}/24", "fd77::2/64"])
        yield a, b


def out_to(directory: Path, port: int = PEER.port) -> Outbound:
    """The app may dial the neighbour on this port."""
    return outbound(shared_ca(), directory / str(port), TcpAddress(PEER.host, port), name=f"outbound|backend|{port}")


def into(port: int) -> Inbound:
    """The app listens on this port, for peers."""
    here = TcpAddress("127.0.0.1", port)
    return Inbound(f"inbound|{port}", TcpAddress("0.0.0.0", port), here, marble(shared_ca()), shared_ca().bundle)


def capture(pod: Namespace, firewall: Callable[[], Firewall], config: RelayConfig, scenario: Scenario) -> None:
    """Run a relay inside the pod whose first configuration is in force, and take its rules away afterwards."""

    async def run() -> None:
        proxies = frozenset({PROXY_UID})
        claim = socket.socket(socket.AF_UNIX)
        relay = CapturingRelay(get_logger("relay"), Limits(), firewall(), 0, APP, proxies, None, claim)
        try:
            await relay.apply(config)
            await scenario(relay)
        finally:
            await relay.close()
            await relay.release()
        assert relay.counters.bugs == 0

    pod.call(lambda: asyncio.run(run()))
