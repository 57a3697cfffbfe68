# SPDX-License-Identifier: Apache-2.0
"""The worker's data plane as a process of its own, configured from a folder instead of by xDS.

Arguments: the folder, the port, and modules to load besides.
"""

from __future__ import annotations

import asyncio
import sys
from importlib import import_module
from pathlib import Path

import uvloop

from bench.relay_place import Place
from enclave_proxy.collector import spare_what_is_loaded
from enclave_proxy.relay import Relay
from enclave_proxy.relay_config import Inbound, PeerRule, RelayConfig, SanMatcher, TcpAddress, UnixAddress
from sds.logs import get_logger


async def serve(place: Place, port: int) -> None:
    inbound = Inbound(
        name="inbound|bench",
        bind=TcpAddress("127.0.0.1", port),
        upstream=UnixAddress(str(place.app)),
        identity=place.identity("server"),
        bundle=place.bundle,
        require_client_certificate=True,
        peers=PeerRule((SanMatcher("uri", prefix=place.peer_prefix),)),
    )
    relay = Relay(get_logger("bench"))
    await relay.apply(RelayConfig(inbound=(inbound,), outbound=()))
    await asyncio.Event().wait()


if __name__ == "__main__":
    for module in sys.argv[3:]:
        import_module(module)
    spare_what_is_loaded()
    uvloop.run(serve(Place(Path(sys.argv[1])), int(sys.argv[2])))
