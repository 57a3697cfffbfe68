# SPDX-License-Identifier: Apache-2.0
"""One stream against a client that does not behave: nobody waits for ever, nobody is told more than it may know, and
what is written is the newest state."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Sequence
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from sds.discovery import DeltaStream, ProtocolError
from sds.logs import get_logger
from sds.resources import SECRET, read_secret
from sds.wire.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node
from tests.kit.xds_mesh import Town, manifest
from xds_server.mesh import AccessDenied, ActiveMarble, Client, Role
from xds_server.mesh_changes import EVERYBODY
from xds_server.rpc import RpcError
from xds_server.xds_convergence import Change
from xds_server.xds_metrics import XdsMetrics
from xds_server.xds_open import OpenStreams
from xds_server.xds_record import StreamRecord
from xds_server.xds_session import Peer, Session

PATIENCE = 0.01


class Caller:
    """A `rpc.Call` whose client asks this, and then says nothing. `room`: how many responses it reads."""

    method, peer, certificate_der = "/test/DeltaSecrets", "client", None

    def __init__(self, asked: Sequence[bytes], room: float = math.inf, *, leaves: bool = False) -> None:
        self.asked = list(asked)
        self.room = room
        self.leaves = leaves
        self.heard: list[DeltaDiscoveryResponse] = []
        self.finished: list[RpcError | None] = []

    async def read(self) -> bytes | None:
        if self.asked:
            return self.asked.pop(0)
        if not self.leaves:
            await asyncio.Event().wait()
        return None

    async def write(self, body: bytes) -> None:
        raise NotImplementedError

    def send(self, body: bytes) -> bool:
        self.heard.append(DeltaDiscoveryResponse.FromString(body))
        self.room -= 1
        return self.room > 0

    def pause(self) -> None:
        raise NotImplementedError

    def resume(self) -> None:
        raise NotImplementedError

    def finish(self, error: RpcError | None = None) -> None:
        self.finished.append(error)


def ask(*names: str, nonce: str = "") -> bytes:
    node = Node(id="n") if not nonce else None
    request = DeltaDiscoveryRequest(type_url=SECRET, resource_names_subscribe=names, response_nonce=nonce, node=node)
    return request.SerializeToString()


class Scene:
    def __init__(self, caller: Caller, *, leave_at: float = math.inf) -> None:
        self.caller = caller
        self.town = Town(manifest({}, {"web": []}))
        self.web: ActiveMarble = self.town.activate("web")
        client = Client(Role.MARBLE, "web", self.web.uuid)
        self.metrics = CollectorRegistry()
        record = StreamRecord(
            client, "DeltaSecrets", "delta", self.town.time, get_logger("test"), XdsMetrics(self.metrics)
        )
        self.session = Session(
            Peer(client, self.town.time + timedelta(hours=1)),
            DeltaStream(identifier="t", nonce_prefix="n"),
            caller,
            self.town.mesh,
            record,
            patience=PATIENCE,
            leave_at=leave_at,
        )

    def renew(self) -> None:
        """Another identity, which the stream has been told of."""
        key = "web", self.web.uuid
        self.town.mesh.replace_identities({key: self.town.identity(*key)})
        self.session.changed(Change(0.0, lambda _: None))


async def test_a_client_that_asks_nothing_is_sent_away() -> None:
    with pytest.raises(ProtocolError, match="no request"):
        await Scene(Caller([])).session.begin()


async def test_a_client_that_leaves_without_a_word_has_no_session() -> None:
    assert not await Scene(Caller([], leaves=True)).session.begin()


async def test_a_first_request_is_answered_before_the_handler_ends() -> None:
    scene = Scene(Caller([ask("default")]))
    assert await scene.session.begin()
    (response,) = scene.caller.heard
    assert read_secret(response.resources[0].resource.value) == ("default", scene.web.identity)


async def test_while_a_response_waits_for_its_reader_nothing_else_is_written_and_then_the_newest() -> None:
    scene = Scene(Caller([ask("default")], room=1))
    await scene.session.begin()
    for _ in range(3):
        scene.renew()
        scene.session.push()
    assert len(scene.caller.heard) == 1
    scene.caller.room = 10
    scene.session.received(ask(nonce=scene.caller.heard[0].nonce))
    assert len(scene.caller.heard) == 1
    scene.session.writable()
    newest = scene.town.mesh.view(scene.session.client)[SECRET]["default"]
    assert [r.version for r in scene.caller.heard[1].resources] == [newest.version]
    assert len(scene.caller.heard) == 2


async def test_a_client_that_reads_nothing_is_sent_away_when_its_time_is_over() -> None:
    scene = Scene(Caller([ask("default")], room=1))
    await scene.session.begin()
    now = time.monotonic()
    assert now < scene.session.next_look(now) <= now + PATIENCE
    scene.session.look(now)
    with pytest.raises(ProtocolError, match="does not read"):
        scene.session.look(now + PATIENCE)
    assert scene.metrics.get_sample_value("marblemesh_xds_write_timeouts_total") == 1


async def test_a_stream_that_is_old_enough_ends_in_order_once_nothing_is_due() -> None:
    now = time.monotonic()
    scene = Scene(Caller([ask("default")], room=1), leave_at=now)
    await scene.session.begin()
    scene.session.look(now)
    assert scene.caller.finished == []
    scene.session.writable()
    assert scene.caller.finished == [None]


async def test_a_stream_ends_with_the_certificate_that_opened_it() -> None:
    scene = Scene(Caller([ask("default")]))
    await scene.session.begin()
    now = time.monotonic()
    assert scene.session.next_look(now) <= now + 60
    scene.town.time += timedelta(hours=1)
    assert scene.session.next_look(now) == now
    with pytest.raises(ProtocolError, match="expired"):
        scene.session.look(now)


async def test_half_closing_ends_a_stream_in_order() -> None:
    scene = Scene(Caller([ask("default")]))
    await scene.session.begin()
    scene.session.half_closed()
    assert scene.caller.finished == [None]


async def test_a_stream_that_is_over_writes_nothing_and_is_over_once() -> None:
    scene = Scene(Caller([ask("default")]))
    await scene.session.begin()
    heard: list[bool] = []
    scene.session.news = lambda session: heard.append(session.over)
    scene.session.closed()
    scene.session.closed()
    scene.renew()
    scene.session.push()
    assert (len(scene.caller.heard), heard) == (1, [True])


# ---- many of them


async def test_a_push_that_fails_ends_its_stream_and_the_others_get_theirs() -> None:
    ended: list[tuple[Session, str]] = []
    streams = OpenStreams(lambda session, error: ended.append((session, type(error).__name__)))
    scenes = [Scene(Caller([ask("default")])) for _ in range(3)]
    for scene in scenes:
        streams.add(scene.session)
        await scene.session.begin()
        scene.session.received(ask(nonce=scene.caller.heard[0].nonce))
    scenes[1].town.mesh.revoke("web", scenes[1].web.uuid)
    for scene in scenes:
        scene.renew()
        streams.push(scene.session)
        streams.push(scene.session)
    await streams.all_pushed()
    assert [len(scene.caller.heard) for scene in scenes] == [2, 1, 2]
    assert ended == [(scenes[1].session, AccessDenied.__name__)]


async def test_only_streams_whose_time_has_come_are_looked_at() -> None:
    ended: list[Session] = []
    streams = OpenStreams(lambda session, _error: ended.append(session))
    slow, quick = Scene(Caller([ask("default")], room=1)), Scene(Caller([ask("default")]))
    for scene in (slow, quick):
        streams.add(scene.session)
        scene.session.news = streams.heard
        await scene.session.begin()
        streams.look_at(scene.session)
    now = time.monotonic()
    assert slow.session.look_due < quick.session.look_due
    streams.look(slow.session.look_due - PATIENCE)
    assert ended == []
    streams.look(slow.session.look_due + PATIENCE)
    assert ended == [slow.session]
    assert set(streams.silent(now + 1, 0.5)) == {slow.session, quick.session}
    quick.session.received(ask(nonce=quick.caller.heard[0].nonce))
    assert streams.silent(now + 1, 0.5) == [slow.session]


async def test_a_stream_that_is_over_is_kept_by_nobody() -> None:
    streams = OpenStreams(lambda _session, _error: None)
    scene = Scene(Caller([ask("default")]))
    known = sys.getrefcount(scene.session)
    streams.add(scene.session)
    scene.session.news = streams.heard
    await scene.session.begin()
    streams.look_at(scene.session)
    streams.tell(EVERYBODY, Change(0.0, lambda _: None), rotating=True)
    await streams.all_pushed()
    assert sys.getrefcount(scene.session) > known
    scene.session.closed()
    assert (len(streams), sys.getrefcount(scene.session)) == (0, known)
