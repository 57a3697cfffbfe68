# SPDX-License-Identifier: Apache-2.0
"""The worker's data plane as a process of its own, configured from a folder instead of by xDS."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvloop

from bench.relay_place import Place
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
    uvloop.run(serve(Place(Path(sys.argv[1])), int(sys.argv[2])))
