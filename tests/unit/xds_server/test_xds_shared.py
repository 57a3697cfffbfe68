# SPDX-License-Identifier: Apache-2.0
"""What a change costs does not depend on how many workers there are: serialisations, and streams that are looked at."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.struct_pb2 import Struct

from sds.wire.discovery_pb2 import Node
from tests.kit.xds_mesh import Town, manifest
from xds_server.mesh import ActiveMarble, Client, Role
from xds_server.mesh_changes import NOBODY, Concerned
from xds_server.xds_open import OpenStreams
from xds_server.xds_session import Session

TLS: dict[str, object] = {
    "web": {"Incoming": [{"Port": "8080"}], "Outgoing": [{"Addr": "voting", "Port": "8081"}]},
    "voting": {"Incoming": [{"Port": "8081"}]},
}
MANIFEST = manifest(TLS, {"web": ["web"], "voting": ["voting"]})


def client(marble: ActiveMarble) -> Client:
    return Client(Role.MARBLE, marble.marble_type, marble.uuid)


class Crowd(Town):
    """So many instances of `web`, and one of `voting`, all of them connected; every view has been asked for once."""

    def __init__(self, size: int) -> None:
        super().__init__(MANIFEST)
        self.told = NOBODY
        self.mesh.watch(self._tell)
        self.web = [self.activate("web", ip=f"10.0.{n // 250}.{n % 250 + 1}") for n in range(size)]
        self.voting = self.activate("voting", ip="10.1.0.1")
        self.outcast = self.activate("voting", ip="10.1.0.2")
        for marble in (*self.web, self.voting):
            self.connect(marble)
        self.look()

    def _tell(self, who: Concerned) -> None:
        self.told |= who

    def connect(self, marble: ActiveMarble) -> None:
        metadata = Struct()
        metadata.update({"ADVERTISE": str(marble.ip_addresses[0])})
        self.mesh.connected(client(marble), Node(metadata=metadata))

    def look(self) -> None:
        for marble in (*self.web, self.voting):
            self.mesh.view(client(marble))

    def serialised(self, happens: Callable[[], object]) -> int:
        """How many resources are made for a change, when everybody has looked."""
        before = self.mesh.serialised
        happens()
        self.look()
        return self.mesh.serialised - before

    def concerned(self, happens: Callable[[], object]) -> int:
        """How many streams a change concerns."""
        self.told = NOBODY
        happens()
        streams = OpenStreams(lambda _session, _error: None)
        for marble in (*self.web, self.voting):
            streams.add(_stream(client(marble)))
        return len(list(streams.concerned(self.told)))


def _stream(who: Client) -> Session:
    session = Session.__new__(Session)  # found by its client; nothing else of it is asked for
    session.client = who
    return session


CHANGES: dict[str, tuple[Callable[[Crowd], object], int]] = {
    "one identity": (lambda c: c.mesh.replace_identities({_key(c.web[0]): c.identity(*_key(c.web[0]))}), 1),
    "an endpoint of all": (lambda c: c.mesh.ready(client(c.voting)), 1),
    "somebody turned out": (lambda c: c.mesh.revoke("voting", c.outcast.uuid), 3),
}


def _key(marble: ActiveMarble) -> tuple[str, str]:
    return marble.marble_type, marble.uuid


@pytest.mark.parametrize(("happens", "made"), CHANGES.values(), ids=CHANGES)
def test_what_a_change_serialises_does_not_grow_with_the_workers_that_share_it(
    happens: Callable[[Crowd], object], made: int
) -> None:
    few, many = Crowd(3), Crowd(60)
    first, second = (crowd.serialised(lambda crowd=crowd: happens(crowd)) for crowd in (few, many))
    assert first == second
    assert first <= made


def test_another_root_is_serialised_once_and_no_identity_again() -> None:
    counts = []
    for size in (3, 60):
        crowd = Crowd(size)
        identities = crowd.mesh.published.serialised
        crowd.update()
        crowd.look()
        assert crowd.mesh.published.serialised == identities
        counts.append(crowd.mesh.serialised - identities)
    assert counts[0] == counts[1] < 12


def test_one_workers_change_concerns_one_stream_of_a_crowd() -> None:
    crowd = Crowd(60)
    key = _key(crowd.web[7])
    assert crowd.concerned(lambda: crowd.mesh.replace_identities({key: crowd.identity(*key)})) == 1
    assert crowd.concerned(lambda: crowd.mesh.ready(client(crowd.web[7]))) == 0, "nobody calls it"
    assert crowd.concerned(lambda: crowd.mesh.ready(client(crowd.voting))) == 60
    assert crowd.concerned(crowd.update) == 61
