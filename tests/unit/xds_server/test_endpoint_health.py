# SPDX-License-Identifier: Apache-2.0
"""Endpoints as those see them who dial: the address that a certificate allows, the health that the xDS stream's life
tells, and for a gateway exactly the ports that the manifest has."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from google.protobuf.struct_pb2 import Struct

from sds.resources import CLUSTER, ENDPOINT, LISTENER, SECRET
from sds.wire import envoy_pb2
from sds.wire.discovery_pb2 import Node
from tests.kit.xds_mesh import Town, gateway_certificate, manifest
from xds_server.mesh import AccessDenied, ActiveMarble, Client
from xds_server.mesh_endpoints import DEFAULT_GRACE, HEALTHY, UNKNOWN

EDGE, _ = gateway_certificate(x509.UniformResourceIdentifier("spiffe://edge.example/gateway"))
TLS: dict[str, object] = {
    "web": {"Incoming": [{"Port": "8080"}], "Outgoing": [{"Addr": "db", "Port": "5432"}]},
    "db": {"Incoming": [{"Port": "5432", "Peers": ["web"]}, {"Port": "9090", "Peers": ["edge"]}]},
    "quiet": {"Outgoing": [{"Addr": "db", "Port": "5432"}]},
}
DB = "outbound|db|5432"
Seen = list[tuple[str, int]]


class Place(Town):
    def __init__(self) -> None:
        marbles = {"web": ["web"], "db": ["db"], "quiet": ["quiet"]}
        super().__init__(manifest(TLS, marbles, {"edge": EDGE}))
        self.web = self.mesh.authenticate(self.activate("web").identity.leaf)
        self.edge = self.mesh.authenticate(EDGE)

    def client(self, marble: ActiveMarble) -> Client:
        return self.mesh.authenticate(marble.identity.leaf)

    def serving(self, ip: str) -> ActiveMarble:
        """A `db` that has acknowledged its listeners."""
        made = self.activate("db", ip=ip)
        self.mesh.connected(self.client(made), node(ip))
        self.mesh.ready(self.client(made))
        return made

    def seen(self, client: Client, name: str = DB) -> Seen:
        """Address and health, as a client is told."""
        body = self.mesh.view(client)[ENDPOINT][name].body
        return [
            (entry.endpoint.address.socket_address.address, entry.health_status)
            for locality in envoy_pb2.ClusterLoadAssignment.FromString(body).endpoints
            for entry in locality.lb_endpoints
        ]

    def later(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)
        self.mesh.expire()


def node(advertise: str = "") -> Node:
    metadata = Struct()
    if advertise:
        metadata.update({"ADVERTISE": advertise})
    return Node(metadata=metadata)


GRACE = DEFAULT_GRACE.total_seconds()


# ---- the address


@pytest.mark.parametrize(
    "address", ["10.0.0.9", "db.elsewhere", "0.0.0.0", "224.0.0.1", "::", "fe80::1%eth0", "10.0.0.7 "]
)
def test_an_address_that_its_certificate_does_not_name_ends_the_stream_and_is_no_endpoint(address: str) -> None:
    place = Place()
    client = place.client(place.activate("db", ip="10.0.0.7", dns="db.internal"))
    with pytest.raises(AccessDenied) as caught:
        place.mesh.connected(client, node(address))
    assert (caught.value.status, caught.value.reason) == ("PERMISSION_DENIED", "bad_address")
    place.mesh.ready(client)
    assert place.seen(place.web) == []


@pytest.mark.parametrize(("address", "told"), [("10.0.0.7", "10.0.0.7"), ("DB.Internal", "10.0.0.8")])
def test_an_address_that_it_names_is_one_in_whatever_case(address: str, told: str) -> None:
    place = Place()
    client = place.client(place.activate("db", ip="10.0.0.7", dns="db.internal"))
    place.mesh.connected(client, node(address), None if address == told else told)
    place.mesh.ready(client)
    assert place.seen(place.web) == [(told, HEALTHY)]


@pytest.mark.parametrize("resolved", ["0.0.0.0", "::", "ff02::1", "239.1.1.1", "fe80::1%lo", "no address"])
def test_a_name_that_resolves_to_nowhere_is_no_endpoint_and_spoils_nobody_elses_list(resolved: str) -> None:
    place = Place()
    place.serving("10.0.0.7")
    client = place.client(place.activate("db", dns="db.internal"))
    place.mesh.connected(client, node("db.internal"), resolved)
    place.mesh.ready(client)
    assert place.seen(place.web) == [("10.0.0.7", HEALTHY)]


def test_who_says_nothing_of_an_address_is_no_endpoint() -> None:
    place = Place()
    client = place.client(place.activate("db"))
    place.mesh.connected(client, node())
    place.mesh.ready(client)
    assert place.seen(place.web) == []


# ---- health follows the life of the stream


def test_an_instance_is_healthy_from_its_acknowledged_listeners_to_the_end_of_the_grace_after_its_stream() -> None:
    place = Place()
    first, second = place.serving("10.0.0.1"), place.serving("10.0.0.2")
    both = [("10.0.0.1", HEALTHY), ("10.0.0.2", HEALTHY)]
    assert place.seen(place.web) == both
    place.mesh.disconnected(place.client(first))
    place.later(GRACE - 1)
    assert place.seen(place.web) == both, "a restart of the Coordinator, a cut connection: nobody is taken off"
    place.later(2)
    assert place.seen(place.web) == [("10.0.0.2", HEALTHY)]
    place.mesh.disconnected(place.client(second))
    place.later(GRACE + 1)
    assert place.seen(place.web) == [("10.0.0.2", UNKNOWN)], "the last one stays, as one of whom nothing is known"
    place.mesh.connected(place.client(second), node("10.0.0.2"))
    assert place.seen(place.web) == [("10.0.0.2", HEALTHY)]


def test_an_instance_that_comes_back_within_the_grace_was_never_away() -> None:
    place = Place()
    only = place.serving("10.0.0.1")
    before = place.mesh.view(place.web)[ENDPOINT]
    place.mesh.disconnected(place.client(only))
    place.later(GRACE / 2)
    place.mesh.connected(place.client(only), node("10.0.0.1"))
    place.later(2 * GRACE)
    assert place.mesh.view(place.web)[ENDPOINT] is before


def test_an_instance_that_moves_is_told_of_where_it_is_now() -> None:
    place = Place()
    moved = place.activate("db", ip="10.0.0.1", dns="db.internal")
    place.mesh.connected(place.client(moved), node("10.0.0.1"))
    place.mesh.ready(place.client(moved))
    place.mesh.disconnected(place.client(moved))
    place.mesh.connected(place.client(moved), node("db.internal"), "10.0.0.2")
    assert place.seen(place.web) == [("10.0.0.2", HEALTHY)]


def test_an_instance_that_is_turned_out_is_gone_at_once_for_everybody_even_as_the_last_one() -> None:
    place = Place()
    only = place.serving("10.0.0.1")
    place.mesh.revoke("db", only.uuid)
    assert place.seen(place.web) == place.seen(place.edge) == []


# ---- what a gateway sees


def test_a_gateway_sees_exactly_the_ports_of_the_manifest_and_who_serves_them() -> None:
    place = Place()
    place.serving("10.0.0.1")
    place.activate("quiet")
    view = place.mesh.view(place.edge)
    ports = {"outbound|web|8080", DB, "outbound|db|9090"}
    assert set(view) == {CLUSTER, ENDPOINT}, "neither listeners nor secrets"
    assert set(view[CLUSTER]) == set(view[ENDPOINT]) == ports, "no app, nothing of a type without ports"
    assert place.seen(place.edge) == [("10.0.0.1", HEALTHY)]
    assert place.seen(place.edge, "outbound|web|8080") == []
    assert not {LISTENER, SECRET} & place.edge.entitled


def test_a_gateway_that_the_manifest_does_not_have_any_more_sees_nothing() -> None:
    place = Place()
    place.update(manifest(TLS | {"db": {"Incoming": [{"Port": "5432"}]}}, {"web": ["web"], "db": ["db"]}))
    with pytest.raises(AccessDenied) as caught:
        place.mesh.view(place.edge)
    assert caught.value.reason == "not_in_manifest"


def test_health_is_told_to_gateways_as_to_marbles() -> None:
    place = Place()
    only = place.serving("10.0.0.1")
    place.mesh.disconnected(place.client(only))
    place.later(GRACE + 1)
    assert place.seen(place.edge) == place.seen(place.web) == [("10.0.0.1", UNKNOWN)]
