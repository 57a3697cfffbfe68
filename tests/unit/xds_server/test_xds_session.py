# SPDX-License-Identifier: Apache-2.0
"""One stream against a client that does not behave: nobody waits for ever, and nobody learns what went wrong inside."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from sds.discovery import DeltaStream, ProtocolError
from sds.logs import get_logger
from sds.resources import SECRET
from sds.wire.discovery_pb2 import DeltaDiscoveryRequest
from tests.kit.xds_mesh import Town, manifest
from xds_server.mesh import Client, Role
from xds_server.xds_metrics import XdsMetrics
from xds_server.xds_record import StreamRecord
from xds_server.xds_session import Peer, Ports, Session

ASK = DeltaDiscoveryRequest(type_url=SECRET, resource_names_subscribe=["default"]).SerializeToString()


async def never(_body: bytes = b"") -> None:
    await asyncio.Event().wait()


def session(ports: Ports) -> tuple[Session, Town]:
    town = Town(manifest({}, {"web": []}))
    web = town.activate("web")
    client = Client(Role.MARBLE, "web", web.uuid)
    record = StreamRecord(
        client, "DeltaSecrets", "delta", town.time, get_logger("test"), XdsMetrics(CollectorRegistry())
    )
    stream = DeltaStream(identifier="t", nonce_prefix="n")
    return Session(Peer(client, town.time + timedelta(hours=1)), stream, ports, town.mesh, record), town


async def test_a_client_that_asks_nothing_is_sent_away() -> None:
    with pytest.raises(ProtocolError, match="no request"):
        await session(Ports(never, never, patience=0.01))[0].run()


async def test_a_client_that_reads_nothing_is_sent_away() -> None:
    asked = iter([ASK])

    async def read() -> bytes | None:
        if (body := next(asked, None)) is None:
            await never()
        return body

    with pytest.raises(ProtocolError, match="does not read"):
        await session(Ports(read, never, patience=0.01))[0].run()


async def test_a_client_that_leaves_ends_its_session() -> None:
    asked = iter([ASK])

    async def read() -> bytes | None:
        return next(asked, None)

    async def write(_body: bytes) -> None:
        return

    await session(Ports(read, write))[0].run()


async def test_a_fault_in_a_reader_is_not_swallowed() -> None:
    asked = iter([ASK])

    async def read() -> bytes | None:
        if (body := next(asked, None)) is None:
            raise RuntimeError("broken")
        return body

    async def write(_body: bytes) -> None:
        return

    with pytest.raises(RuntimeError, match="broken"):
        await session(Ports(read, write))[0].run()
