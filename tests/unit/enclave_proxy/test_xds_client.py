# SPDX-License-Identifier: Apache-2.0
"""What the worker makes of the way in which its stream to the Coordinator ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from enclave_proxy.backoff import Backoff
from enclave_proxy.bootstrap import Credentials
from enclave_proxy.config import HostPort
from enclave_proxy.identity_store import IdentityStore
from enclave_proxy.route_parts import Local
from enclave_proxy.session import Session
from enclave_proxy.xds_client import XdsClient, is_disowned, revocation
from sds.logs import get_logger
from sds.material import TrustBundle
from sds.wire.discovery_pb2 import Node
from tests.kit.xds_port import Place, opened
from xds_server.xds_limits import XdsLimits


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (GRPCError(Status.PERMISSION_DENIED, "revoked: the manifest says so"), "revoked: the manifest says so"),
        (GRPCError(Status.PERMISSION_DENIED, "this instance is not activated: activate it again"), None),
        (GRPCError(Status.PERMISSION_DENIED), None),
        (GRPCError(Status.UNAVAILABLE, "revoked: says somebody between us"), None),
        (ConnectionResetError("revoked: "), None),
    ],
)
def test_only_the_coordinators_own_word_turns_a_marble_out(error: BaseException, reason: str | None) -> None:
    assert revocation(error) == reason


def test_an_instance_that_is_only_unknown_may_be_activated_again() -> None:
    assert is_disowned(GRPCError(Status.PERMISSION_DENIED, "this instance is not activated: activate it again"))


def worker_of(place: Place) -> tuple[XdsClient, Session]:
    """The stream of an activated instance without relay."""
    town = place.town
    marble = town.activate("web")
    store = IdentityStore(Credentials(marble.identity, town.ca.bundle, TrustBundle(town.ca.chain_pem)))
    session = Session(Node(), store, None, Local(Path("/run/m")), lambda: town.time, get_logger("test"))
    address = HostPort("127.0.0.1", place.port)
    backoff = Backoff(lambda: 0.0, initial=0.5, cap=1)
    return XdsClient(address, store, session, backoff, None, get_logger("test")), session


async def test_a_stream_that_ends_because_of_its_age_is_no_fault_and_the_worker_comes_back() -> None:
    async with opened(XdsLimits(age=0.3, look=0.02)) as place:
        client, session = worker_of(place)
        running = asyncio.ensure_future(client.run())
        async with asyncio.timeout(20):
            while session.status.attempts < 3:
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.wait([running])
        assert place.metric("marblemesh_xds_aged_total") >= 2
    assert session.status.last_error == ""
    assert session.configured
