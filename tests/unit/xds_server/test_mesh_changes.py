# SPDX-License-Identifier: Apache-2.0
"""A change of the mesh says whom it concerns: nobody else is woken for it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from google.protobuf.struct_pb2 import Struct

from sds.wire.discovery_pb2 import Node
from tests.kit.xds_mesh import Town, manifest
from xds_server.mesh import ActiveMarble, Client, Role
from xds_server.mesh_changes import EVERYBODY, NOBODY, Concerned, only

TLS: dict[str, object] = {
    "front": {"Incoming": [{"Port": "443"}], "Outgoing": [{"Addr": "web", "Port": "8080"}]},
    "shop": {"Outgoing": [{"Addr": "web", "Port": "8080"}, {"Addr": "elsewhere.example", "Port": "1"}]},
    "web": {"Incoming": [{"Port": "8080"}]},
}
CALLERS = Concerned(callers=frozenset({"front", "shop"}), gateways=True)


class Told(Town):
    """A Town that writes down whom its changes concern."""

    def __init__(self) -> None:
        super().__init__(manifest(TLS, {"front": ["front"], "shop": ["shop", "front"], "web": ["web"], "idle": []}))
        self.told = NOBODY
        self.mesh.watch(self._tell)

    def _tell(self, who: Concerned) -> None:
        self.told |= who

    def concerned(self, happens: Callable[[], object]) -> Concerned:
        self.told = NOBODY
        happens()
        return self.told

    def connect(self, marble: ActiveMarble, ip: str = "") -> None:
        metadata = Struct()
        if ip:
            metadata.update({"ADVERTISE": ip})
        self.mesh.connected(client(marble), Node(metadata=metadata))


def client(marble: ActiveMarble) -> Client:
    return Client(Role.MARBLE, marble.marble_type, marble.uuid)


@pytest.fixture
def town() -> Told:
    return Told()


def test_an_activation_and_a_renewal_concern_the_instance_alone(town: Told) -> None:
    web = town.activate("web")
    key = "web", web.uuid
    assert town.concerned(lambda: town.mesh.activated(web)) == only(key)
    assert town.concerned(lambda: town.mesh.replace_identities({key: town.identity(*key)})) == only(key)
    assert town.concerned(lambda: town.mesh.replace_served({key: {}})) == only(key)


def test_an_endpoint_concerns_those_who_call_its_type_and_the_gateways(town: Told) -> None:
    web, idle = town.activate("web", ip="10.0.0.1"), town.activate("idle", ip="10.0.0.2")
    assert town.concerned(lambda: town.connect(web, "10.0.0.1")) == NOBODY, "nobody can reach it yet"
    assert town.concerned(lambda: town.mesh.ready(client(web))) == CALLERS
    assert town.concerned(lambda: town.mesh.ready(client(web))) == NOBODY, "nothing new"
    assert town.concerned(lambda: town.mesh.disconnected(client(web))) == NOBODY, "it may come back"
    town.time += timedelta(minutes=1)
    assert town.concerned(town.mesh.expire) == CALLERS
    town.connect(idle, "10.0.0.2")
    assert town.concerned(lambda: town.mesh.ready(client(idle))) == Concerned(gateways=True)


def test_an_instance_that_moves_to_a_loopback_address_binds_there_and_so_concerns_itself_too(town: Told) -> None:
    web = town.activate("web")
    town.connect(web)
    town.mesh.ready(client(web))
    assert town.concerned(lambda: town.connect(web, "127.0.0.1")) == CALLERS | only(("web", web.uuid))


def test_other_roots_another_manifest_and_a_revocation_concern_everybody(town: Told) -> None:
    web = town.activate("web")
    assert town.concerned(town.update) == EVERYBODY
    assert town.concerned(lambda: town.mesh.revoke("web", web.uuid)) == EVERYBODY
    assert town.concerned(lambda: town.activate("web", uuid=web.uuid)) == EVERYBODY, "it is taken off the list"


def test_everybody_includes_whoever_else_was_named() -> None:
    one, other = only(("web", "a")), CALLERS
    assert one | other == Concerned(one.instances, other.callers, gateways=True)
    assert one | EVERYBODY | other == EVERYBODY
    assert [bool(who) for who in (NOBODY, one, other, EVERYBODY)] == [False, True, True, True]
