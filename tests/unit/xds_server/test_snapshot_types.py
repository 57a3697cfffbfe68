# SPDX-License-Identifier: Apache-2.0
"""Many Marble types: what they cost together, and what becomes of a port that names nobody when one of them goes."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from enclave_proxy.route_parts import Local, parse_listener
from manifests.model import Manifest
from manifests.parse import parse
from sds.resources import CLUSTER, LISTENER, MAX_MATCHERS, SECRET, TYPES_NAME
from sds.wire import envoy_pb2
from tests.kit.pki import make_ca, shared_ca
from tests.kit.xds_mesh import Town, gateway_certificate, manifest
from xds_server.former_roots import FormerRoots
from xds_server.mesh import Client, Role
from xds_server.rotation import Phase
from xds_server.snapshot import Snapshot
from xds_server.snapshot_check import MAX_GATEWAY_PORTS, MAX_PORT_GATEWAYS, MAX_TYPES
from xds_server.snapshot_tls import SnapshotError

TLS: dict[str, Any] = {
    "open": {"Incoming": [{"Port": "8080"}]},
    "named": {"Incoming": [{"Port": "8443", "Peers": ["t0"]}], "Outgoing": [{"Addr": "t0", "Port": "8080"}]},
}


def many(count: int, *tags: str) -> Manifest:
    return manifest(TLS, {f"t{number}": list(tags) for number in range(count)})


def view_size(count: int) -> int:
    """Bytes of the listeners, clusters and endpoints that one client is shown."""
    town = Town(many(count, "open", "named"), shared_ca())
    view = town.mesh.view(Client(Role.MARBLE, "t1", town.activate("t1").uuid))
    return sum(len(r.body) for kind, found in view.items() if kind != SECRET for r in found.values())


def test_what_a_client_is_shown_does_not_grow_with_the_types() -> None:
    assert view_size(2) == view_size(200)


def test_types_with_the_same_tags_share_their_listeners_and_the_list_of_types() -> None:
    town = Town(many(100, "open", "named"), shared_ca())
    views = [town.mesh.view(Client(Role.MARBLE, name, town.activate(name).uuid)) for name in ("t1", "t2")]
    assert views[0][LISTENER] is views[1][LISTENER]
    assert views[0][CLUSTER] is views[1][CLUSTER]
    assert views[0][SECRET][TYPES_NAME] is views[1][SECRET][TYPES_NAME]


def test_types_with_one_tag_in_common_share_what_stands_in_it() -> None:
    snapshot = Snapshot(manifest(TLS, {"t0": ["open"], "t1": ["open", "named"]}), shared_ca())
    one, two = (snapshot.marble_routes(name, "127.0.0.1").listeners for name in ("t0", "t1"))
    assert one["inbound|8080"] is two["inbound|8080"]


def test_nothing_is_serialised_before_somebody_asks() -> None:
    snapshot = Snapshot(many(1000, "open", "named"), shared_ca())
    assert snapshot.serialised == 0
    snapshot.marble_routes("t7", "127.0.0.1")
    assert snapshot.serialised == 6


# ---- a type goes


def marks(town: Town, uuid: str) -> dict[str, str]:
    """The name of the filter chain of each listener."""
    view = town.mesh.view(Client(Role.MARBLE, "t0", uuid))
    listeners = (envoy_pb2.Listener.FromString(resource.body) for resource in view[LISTENER].values())
    return {listener.name: listener.filter_chains[0].name for listener in listeners}


def go_on(town: Town) -> Phase:
    town.mesh.advance(answered=True)
    return town.mesh.rotation.phase


def test_a_port_that_names_nobody_is_marked_anew_when_no_certificate_of_a_gone_type_is_good_any_more() -> None:
    """Not before: what such a Marble opened after the mark had changed would not be drained."""
    town = Town(many(3, "open", "named"), shared_ca())
    town.renew_when_asked()
    uuid = town.activate("t0").uuid
    before = marks(town, uuid)
    assert before["inbound|8443"] == before["outbound|t0|8080"] == ""
    town.update(many(2, "open", "named"))
    for phase in (Phase.RENEW, Phase.RETIRE):
        assert marks(town, uuid) == before
        assert go_on(town) is phase
    told: list[str] = []
    town.mesh.watch(lambda _: told.append("changed"))
    assert go_on(town) is Phase.SETTLED
    after = marks(town, uuid)
    assert told
    assert {name for name in before if before[name] != after[name]} == {"inbound|8080"}


def test_the_mark_is_the_same_after_a_restart_and_after_an_update_of_something_else() -> None:
    town = Town(many(3, "open"), shared_ca())
    town.renew_when_asked()
    uuid = town.activate("t0").uuid
    before = marks(town, uuid)
    town.update(many(3, "open"))
    assert [go_on(town) for _ in range(3)][-1] is Phase.SETTLED
    assert marks(town, uuid) == before
    again = Town(many(3, "open"), shared_ca())
    assert marks(again, again.activate("t0").uuid) == before


def test_an_update_during_another_one_keeps_the_mark_until_the_end_of_both() -> None:
    town = Town(many(3, "open"), shared_ca())
    town.renew_when_asked()
    uuid = town.activate("t0").uuid
    before = marks(town, uuid)
    town.update(many(2, "open"))
    go_on(town)
    town.update(many(1, "open"))
    for phase in (Phase.RENEW, Phase.RETIRE, Phase.SETTLED):
        assert marks(town, uuid) == before
        assert go_on(town) is phase
    assert marks(town, uuid) != before


def test_a_restart_in_the_middle_of_an_update_drains_rather_once_too_often_than_never() -> None:
    """Which mark Envoys had is not known any more, and a type that is gone may have connected meanwhile."""
    town = Town(many(2, "open"), shared_ca())
    settled = marks(town, town.activate("t0").uuid)
    again = Town(many(2, "open"), shared_ca())
    former = FormerRoots().replaced(make_ca(), (), again.time)
    again.renew_when_asked()
    again.mesh.resume(again.manifest, again.ca, former, None)
    uuid = again.activate("t0").uuid
    assert again.mesh.rotation.phase is Phase.INTRODUCE
    again.time += timedelta(minutes=1)  # everybody has had the time to come back
    for phase in (Phase.RENEW, Phase.RETIRE, Phase.SETTLED):
        assert marks(again, uuid) != settled
        assert go_on(again) is phase
    assert marks(again, uuid) == settled


# ---- limits


def test_ten_thousand_types_are_served_and_one_more_is_refused() -> None:
    def of(count: int) -> Manifest:
        marbles = {f"t{number}": {"Package": "app", "TLS": ["t"]} for number in range(count)}
        tls = {"t": {"Incoming": [{"Port": "1"}]}}
        document = {"Packages": {"app": {"TDX": {"MRTD": "11" * 48}}}, "Marbles": marbles, "TLS": tls}
        return parse(json.dumps(document).encode())

    assert Snapshot(of(MAX_TYPES), shared_ca()).marble_routes("t9999", "::").listeners
    with pytest.raises(SnapshotError, match=r"^Marbles: 10001 types, at most 10000 can be served$"):
        Snapshot(of(MAX_TYPES + 1), shared_ca())


def test_names_of_types_that_cannot_be_told_to_marbles_are_refused() -> None:
    with pytest.raises(SnapshotError, match=r"^Marbles: names of .* bytes in all"):
        Snapshot(manifest({}, {f"{number:05}".rjust(128, "~"): [] for number in range(3000)}), shared_ca())


@pytest.mark.parametrize(("count", "length"), [(MAX_MATCHERS + 1, 5), (2500, 128)], ids=["names", "bytes"])
def test_peers_that_no_worker_would_take_are_refused_with_the_manifest(count: int, length: int) -> None:
    names = [f"{number:05}".rjust(length, "~") for number in range(count)]

    def of(peers: list[str]) -> Snapshot:
        return Snapshot(manifest({"t": {"Incoming": [{"Port": "1", "Peers": peers}]}}, {names[0]: ["t"], **rest}), ca)

    rest: dict[str, list[str]] = {name: [] for name in names[1:]}
    ca = shared_ca()
    name, body = "inbound|1", of(names[: count // 2]).marble_routes(names[0], "::").listeners["inbound|1"].body
    assert len(parse_listener(name, body, Local(Path("/run"))).tls.matchers) == count // 2
    with pytest.raises(SnapshotError, match=rf"^port 1: {count} Peers are more than a worker takes"):
        of(names)


def test_a_gateway_is_shown_a_bounded_number_of_ports() -> None:
    edge, _ = gateway_certificate(x509.UniformResourceIdentifier("spiffe://edge.example/gateway"))
    ports = 300
    tls: dict[str, object] = {"t": {"Incoming": [{"Port": str(port + 1)} for port in range(ports)]}}
    enough = MAX_GATEWAY_PORTS // ports
    for count in (enough, enough + 1):
        marbles = {f"t{number}": ["t"] for number in range(count)}
        Snapshot(manifest(tls, marbles), shared_ca())
        if count == enough:
            assert len(Snapshot(manifest(tls, marbles, {"edge": edge}), shared_ca()).gateway_routes().clusters) > 19_000
            continue
        with pytest.raises(SnapshotError, match=r"^Mesh\.Gateways: 20100 ports, at most 20000 can be shown"):
            Snapshot(manifest(tls, marbles, {"edge": edge}), shared_ca())


def test_gateways_of_one_port_leave_room_for_every_root_of_a_rotation() -> None:
    names = [f"g{number}" for number in range(MAX_PORT_GATEWAYS + 1)]
    gateways = {n: gateway_certificate(x509.UniformResourceIdentifier(f"spiffe://edge.example/{n}"))[0] for n in names}
    for count in (MAX_PORT_GATEWAYS, MAX_PORT_GATEWAYS + 1):
        tls: dict[str, object] = {"t": {"Incoming": [{"Port": "1", "Peers": names[:count]}]}}
        made = manifest(tls, {"web": ["t"]}, gateways)
        if count > MAX_PORT_GATEWAYS:
            with pytest.raises(SnapshotError, match=r"^trust bundle of port 1: 57 gateways, at most 56 are accepted"):
                Snapshot(made, shared_ca())
            continue
        town = Town(made, shared_ca())
        for _ in range(9):
            town.update()
            town.activate("web")
        uuid = town.activate("web").uuid
        assert "ROOTCA|1" in town.mesh.view(Client(Role.MARBLE, "web", uuid))[SECRET]
