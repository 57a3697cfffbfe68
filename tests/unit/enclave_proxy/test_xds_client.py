# SPDX-License-Identifier: Apache-2.0
"""What the worker makes of the way in which its stream to the Coordinator ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from enclave_proxy.backoff import Backoff
from enclave_proxy.bootstrap import Credentials
from enclave_proxy.config import HostPort
from enclave_proxy.errors import ActivationRefused, ActivationUnavailable, ProxyError
from enclave_proxy.identity_store import IdentityStore
from enclave_proxy.route_parts import Local
from enclave_proxy.session import Session
from enclave_proxy.xds_client import XdsClient, is_disowned, revocation
from sds.logs import get_logger
from sds.material import TrustBundle
from sds.wire.discovery_pb2 import Node
from tests.kit.pki import marble, other_ca
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
    web = town.activate("web")
    store = IdentityStore(Credentials(web.identity, town.ca.bundle, TrustBundle(town.ca.chain_pem)))
    session = Session(Node(), store, None, Local(Path("/run/m")), lambda: town.time, get_logger("test"))
    address = HostPort("127.0.0.1", place.port)
    backoff = Backoff(lambda: 0.0, initial=0.5, cap=1)
    return XdsClient(address, store, session, backoff, never, get_logger("test"), pinned=False), session


async def never() -> Credentials:
    raise AssertionError("nobody asked for another activation")


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


@dataclass
class Stranger:
    """A worker whose Coordinator has another CA by now; what becomes of its next activation is the test's."""

    place: Place
    answer: Credentials | ProxyError
    asked: int = 0

    def __post_init__(self) -> None:
        ca, town = other_ca(), self.place.town
        store = IdentityStore(Credentials(marble(ca), ca.bundle, TrustBundle(ca.chain_pem)))
        self.session = Session(Node(), store, None, Local(Path("/run/m")), lambda: town.time, get_logger("test"))
        address, backoff = HostPort("127.0.0.1", self.place.port), Backoff(lambda: 0.0, initial=0.5, cap=1)
        log = get_logger("test")
        self.client = XdsClient(address, store, self.session, backoff, self.activate, log, pinned=False)

    async def activate(self) -> Credentials:
        self.asked += 1
        if isinstance(self.answer, ProxyError):
            raise self.answer
        return self.answer

    async def until(self, condition: Callable[[], bool]) -> None:
        running = asyncio.ensure_future(self.client.run())
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.wait((running,))


def fresh(place: Place) -> Credentials:
    town = place.town
    return Credentials(town.activate("web").identity, town.ca.bundle, TrustBundle(town.ca.chain_pem))


async def test_a_worker_that_started_offline_is_activated_again_by_whoever_it_would_have_started_with() -> None:
    async with opened(XdsLimits()) as place:
        worker = Stranger(place, fresh(place))
        await worker.session.restore(())
        await worker.until(lambda: worker.session.status.connected)
        assert worker.asked == 1
        assert not worker.session.restored


async def test_without_a_pin_one_that_has_heard_its_coordinator_follows_no_other() -> None:
    async with opened(XdsLimits()) as place:
        worker = Stranger(place, fresh(place))
        await worker.until(lambda: worker.session.status.attempts > 3)
        assert worker.asked == 0


async def test_a_refused_activation_turns_out_whoever_started_offline() -> None:
    async with opened(XdsLimits()) as place:
        worker = Stranger(place, ActivationRefused("PERMISSION_DENIED: not any more"))
        await worker.session.restore(())
        async with asyncio.timeout(20):
            await worker.client.run()
        assert worker.client.revoked == "revoked: it is not activated again: PERMISSION_DENIED: not any more"


async def test_an_activation_that_nobody_answers_changes_nothing() -> None:
    async with opened(XdsLimits()) as place:
        worker = Stranger(place, ActivationUnavailable("nobody there"))
        await worker.session.restore(())
        await worker.until(lambda: worker.asked > 1)
        assert worker.client.revoked == ""
        assert worker.session.restored
