# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_proxy.errors import MissingReference, RoutesError
from enclave_proxy.relay_config import DnsTarget, RelayConfig, TcpAddress, TlsOptions, UnixAddress
from enclave_proxy.route_parts import Local, parse_cluster, parse_endpoints, parse_listener
from enclave_proxy.routes import Pushed, build
from sds.material import Identity, TrustBundle
from sds.resources import CLUSTER, ENDPOINT, LISTENER, read_secret
from sds.wire import envoy_pb2 as pb
from tests.fuzz.fuzz_routes import fuzz_one
from tests.kit.manifests import certificate
from tests.kit.pki import marble, now, shared_ca
from tests.kit.pushes import cluster, listener, plain_listener, repack, snapshot
from xds_server.mesh_clients import ActiveMarble
from xds_server.mesh_secrets import MeshSecrets

RUN = Path("/run/m")
LOCAL = Local(RUN)
UUID = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"


def pushed(made: Any, marble_type: str = "web", members: tuple[tuple[str, int], ...] = ()) -> Pushed:
    """Everything that one instance gets, as the Coordinator makes it."""
    routes = made.marble_routes(marble_type, "127.0.0.1")
    identity = marble(shared_ca(), marble_type, uuid=UUID)
    of = MeshSecrets(now).of(ActiveMarble(marble_type, UUID, identity), made)
    secrets = dict(read_secret(r.body) for r in of.values())
    result = Pushed(LOCAL).with_secrets(secrets)
    for kind, resources in (
        (CLUSTER, routes.clusters),
        (ENDPOINT, made.endpoints(routes.endpoints, lambda _: members)),
        (LISTENER, routes.listeners),
    ):
        result = result.with_resources(kind, {name: r.body for name, r in resources.items()}, ())
    return result


def test_what_the_coordinator_pushes_becomes_a_relay() -> None:
    config = build(pushed(snapshot(), members=(("127.0.0.9", 1),)))
    (inbound,), (outbound,) = config.inbound, config.outbound
    assert (inbound.name, inbound.bind) == ("inbound|8080", TcpAddress("127.0.0.1", 8080))
    assert inbound.upstream == UnixAddress("/run/m/8080.sock")
    assert inbound.require_client_certificate
    assert (outbound.listen, outbound.endpoints) == (
        UnixAddress("/run/m/db-5432.sock"),
        (TcpAddress("127.0.0.9", 5432),),
    )
    assert outbound.sni == "db"
    assert outbound.peer.allows(marble(shared_ca(), "db").leaf) is None
    assert outbound.peer.allows(marble(shared_ca(), "web").leaf) is not None
    assert inbound.identity is outbound.identity


def test_peers_and_gateways_become_names_and_a_bundle() -> None:
    tls = {"web": {"Incoming": [{"Port": "8080", "Peers": ["db", "edge"]}]}, "db": {"Incoming": [{"Port": "5432"}]}}
    edge = {"Certificate": certificate(uri="spiffe://edge.test/gateway")}
    made = pushed(snapshot(tls, Gateways={"edge": edge}))
    assert "ROOTCA|8080" in made.wanted_secrets()
    (inbound,) = build(made).inbound
    assert {m.exact for m in inbound.peers.matchers} == {None, "spiffe://edge.test/gateway"}
    assert inbound.bundle is not None
    assert len(inbound.bundle.certificates) == 2


def test_a_peer_that_is_no_marble_type_is_dialled_by_name_or_address() -> None:
    tls = {"web": {"Outgoing": [{"Addr": "db.example", "Port": "1"}, {"Addr": "10.0.0.1", "Port": "2"}]}, "db": {}}
    by_name = {entry.name: entry.endpoints for entry in build(pushed(snapshot(tls))).outbound}
    assert by_name == {
        "outbound|db.example|1": DnsTarget("db.example", 1),
        "outbound|10.0.0.1|2": (TcpAddress("10.0.0.1", 2),),
    }


def test_endpoints_that_have_not_come_are_nobody() -> None:
    made = pushed(snapshot())
    assert build(replace(made, endpoints={})).outbound[0].endpoints == ()
    assert made.wanted_endpoints() == {"outbound|db|5432"}


@pytest.mark.parametrize("missing", ["default", "ROOTCA"])
def test_a_missing_secret_is_named(missing: str) -> None:
    made = pushed(snapshot())
    without = replace(made, secrets={k: v for k, v in made.secrets.items() if k != missing})
    with pytest.raises(MissingReference, match=f"no secret '{missing}' yet"):
        build(without)


def test_a_missing_cluster_is_named() -> None:
    with pytest.raises(MissingReference, match=r"inbound\|8080: .*there is no cluster 'app\|8080'"):
        build(pushed(snapshot()).with_resources(CLUSTER, {}, ["app|8080"]))


@pytest.mark.parametrize(("name", "wrong"), [("default", "ROOTCA"), ("ROOTCA", "default")])
def test_a_secret_of_the_wrong_kind_is_named(name: str, wrong: str) -> None:
    made = pushed(snapshot())
    with pytest.raises(RoutesError, match=f"secret '{name}' is not a"):
        build(made.with_secrets({name: made.secrets[wrong]}))


def test_a_removed_secret_stays_in_use_and_removed_listeners_go() -> None:
    made = pushed(snapshot())
    assert isinstance(made.secrets["default"], Identity)
    assert isinstance(made.secrets["ROOTCA"], TrustBundle)
    assert build(made.with_resources(LISTENER, {}, ["inbound|8080", "outbound|db|5432"])) == RelayConfig()


def change_chain(change: Callable[[pb.FilterChain], None]) -> Callable[[pb.Listener], None]:
    return lambda message: change(message.filter_chains[0])


def change_tls(change: Callable[[pb.DownstreamTlsContext], None]) -> Callable[[pb.Listener], None]:
    def apply(message: pb.Listener) -> None:
        packed = message.filter_chains[0].transport_socket.typed_config
        context = pb.DownstreamTlsContext.FromString(packed.value)
        change(context)
        repack(packed, context)

    return apply


def change_proxy(change: Callable[[pb.TcpProxy], None]) -> Callable[[pb.Listener], None]:
    def apply(message: pb.Listener) -> None:
        packed = message.filter_chains[0].filters[0].typed_config
        proxy = pb.TcpProxy.FromString(packed.value)
        change(proxy)
        repack(packed, proxy)

    return apply


def unknown(message: Any) -> None:
    message.MergeFromString(b"\xf8\x7f\x01")  # field 2047


def no_matcher(context: pb.DownstreamTlsContext) -> None:
    for matcher in combined(context).default_validation_context.match_typed_subject_alt_names:
        matcher.matcher.prefix = ""


def combined(context: pb.DownstreamTlsContext) -> pb.CombinedCertificateValidationContext:
    return context.common_tls_context.combined_validation_context


SPOILED_LISTENERS: list[tuple[Callable[[pb.Listener], None], str]] = [
    (unknown, "Listener.2047, which this worker cannot enforce"),
    (lambda m: setattr(m, "name", "other"), "name: is 'other'"),
    (lambda m: m.ClearField("address"), "address: is not set"),
    (lambda m: m.ClearField("filter_chains"), "filter_chains: has 0 entries"),
    (lambda m: m.filter_chains.append(m.filter_chains[0]), "filter_chains: has 2 entries"),
    (lambda m: setattr(m.address.socket_address, "protocol", 1), "protocol: is 1, only TCP"),
    (lambda m: setattr(m.address.socket_address, "port_value", 0), "port_value: is 0"),
    (lambda m: setattr(m.address.socket_address, "address", "localhost"), "'localhost' is not an IP address"),
    (lambda m: setattr(m.address.pipe, "path", "x.sock"), "address: is a UNIX socket"),
    (lambda m: setattr(m.address.pipe, "path", "../x"), "is not a usable socket path"),
    (lambda m: setattr(m.address.pipe, "path", "@abstract"), "is not a usable socket path"),
    (lambda m: setattr(m.address.pipe, "path", "x" * 101), "is longer than 107 bytes: give the worker a shorter"),
    (change_chain(unknown), "FilterChain.2047"),
    (change_chain(lambda m: m.ClearField("filters")), "filters: has 0 entries"),
    (change_chain(lambda m: setattr(m.filters[0].typed_config, "type_url", "x/HttpManager")), "'x/HttpManager' is not"),
    (
        change_chain(lambda m: setattr(m.transport_socket.typed_config, "type_url", "x/Quic")),
        "'x/Quic' is not supported",
    ),
    (change_proxy(unknown), "TcpProxy.2047"),
    (change_proxy(lambda m: m.ClearField("cluster")), "cluster: is empty"),
    (change_proxy(lambda m: setattr(m.idle_timeout, "seconds", 5)), "idle_timeout: is set"),
    (change_tls(unknown), "DownstreamTlsContext.2047"),
    (change_tls(lambda m: unknown(m.common_tls_context.tls_params)), "TlsParameters.2047"),
    (change_tls(lambda m: m.ClearField("require_client_certificate")), "is not set although peers are listed"),
    (
        change_tls(lambda m: m.common_tls_context.ClearField("combined_validation_context")),
        "require_client_certificate: is set without a validation context",
    ),
    (
        change_tls(lambda m: combined(m).ClearField("validation_context_sds_secret_config")),
        "is not set, so there is nothing to trust",
    ),
    (
        change_tls(lambda m: setattr(combined(m).default_validation_context.trusted_ca, "inline_bytes", b"x")),
        "trust comes from SDS alone",
    ),
    (change_tls(no_matcher), "an empty pattern would let everybody in"),
    (
        change_tls(
            lambda m: setattr(combined(m).default_validation_context.match_typed_subject_alt_names[0], "san_type", 1)
        ),
        "san_type: is 1",
    ),
    (
        change_tls(lambda m: m.common_tls_context.ClearField("tls_certificate_sds_secret_configs")),
        "has 0 entries, expected exactly one",
    ),
    (
        change_tls(lambda m: m.common_tls_context.tls_certificate_sds_secret_configs[0].sds_config.ClearField("ads")),
        "is not `ads`",
    ),
    (
        change_tls(lambda m: setattr(m.common_tls_context.tls_params, "tls_maximum_protocol_version", 3)),
        "excludes TLS 1.3",
    ),
    (
        change_tls(lambda m: setattr(m.common_tls_context.tls_params, "tls_minimum_protocol_version", 1)),
        "is below TLS 1.2",
    ),
    (
        change_tls(lambda m: m.common_tls_context.alpn_protocols.append("h2,x")),
        "names of 1 to 255 bytes, without comma",
    ),
    (change_tls(lambda m: m.common_tls_context.alpn_protocols.append("")), "expected at most 16 names of 1 to 255"),
    (
        change_tls(lambda m: m.common_tls_context.alpn_protocols.extend(f"p{n}" for n in range(17))),
        "alpn_protocols: expected at most 16 names",
    ),
]


@pytest.mark.parametrize(("spoil", "complaint"), SPOILED_LISTENERS, ids=[text for _, text in SPOILED_LISTENERS])
def test_a_listener_that_cannot_be_enforced_is_refused(spoil: Callable[[pb.Listener], None], complaint: str) -> None:
    message = listener()
    spoil(message)
    with pytest.raises(RoutesError) as caught:
        parse_listener("inbound|8080", message.SerializeToString(), LOCAL)
    assert str(caught.value).startswith("inbound|8080: ")
    assert complaint in str(caught.value)


SPOILED_CLUSTERS: list[tuple[Callable[[pb.Cluster], None], str]] = [
    (unknown, "Cluster.2047"),
    (lambda m: setattr(m, "type", 4), "type: is 4"),
    (lambda m: setattr(m, "type", 0), "has 0 endpoints, expected exactly one"),
    (lambda m: setattr(m, "lb_policy", 5), "lb_policy: is 5"),
    (lambda m: m.eds_cluster_config.eds_config.ClearField("ads"), "is not `ads`"),
    (lambda m: m.load_assignment.SetInParent(), "although endpoints come by EDS"),
    (lambda m: setattr(m.transport_socket.typed_config, "type_url", "x/Raw"), "'x/Raw' is not supported"),
]


@pytest.mark.parametrize(("spoil", "complaint"), SPOILED_CLUSTERS, ids=[text for _, text in SPOILED_CLUSTERS])
def test_a_cluster_that_cannot_be_enforced_is_refused(spoil: Callable[[pb.Cluster], None], complaint: str) -> None:
    message = cluster()
    spoil(message)
    with pytest.raises(RoutesError) as caught:
        parse_cluster("outbound|db|5432", message.SerializeToString(), LOCAL)
    assert complaint in str(caught.value)


def test_any_server_would_be_believed_without_a_validation_context() -> None:
    message = cluster()
    context = pb.UpstreamTlsContext.FromString(message.transport_socket.typed_config.value)
    context.common_tls_context.ClearField("combined_validation_context")
    repack(message.transport_socket.typed_config, context)
    with pytest.raises(RoutesError, match="any server would be believed"):
        parse_cluster("outbound|db|5432", message.SerializeToString(), LOCAL)


def test_no_listener_carries_plaintext_to_the_network() -> None:
    message = cluster()
    message.ClearField("transport_socket")
    made = pushed(snapshot()).with_resources(CLUSTER, {"outbound|db|5432": message.SerializeToString()}, ())
    with pytest.raises(RoutesError, match="the app's bytes would go out in clear"):
        build(made)


def test_an_inbound_listener_leads_to_the_app_alone() -> None:
    made = pushed(snapshot())
    crossed = replace(
        made, listeners={"inbound|8080": replace(made.listeners["inbound|8080"], cluster="outbound|db|5432")}
    )
    with pytest.raises(RoutesError, match="not the app"):
        build(crossed)


def test_two_listeners_cannot_have_one_address() -> None:
    made = pushed(snapshot())
    twice = {**made.listeners, "x": replace(made.listeners["inbound|8080"], name="x")}
    with pytest.raises(RoutesError, match=r"x: address: 127.0.0.1:8080 is already that of 'inbound\|8080'"):
        build(replace(made, listeners=twice))


def test_under_sgx_no_plaintext_hop_is_tcp() -> None:
    sgx = Local(RUN, refuse_plain_tcp=True)
    app = cluster("app|8080")
    parse_cluster("app|8080", app.SerializeToString(), sgx)
    tcp = app.load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address
    tcp.address, tcp.port_value = "127.0.0.1", 80
    parse_cluster("app|8080", app.SerializeToString(), LOCAL)
    with pytest.raises(RoutesError, match="under SGX the host reads loopback"):
        parse_cluster("app|8080", app.SerializeToString(), sgx)
    outbound = plain_listener()
    outbound.address.socket_address.address, outbound.address.socket_address.port_value = "127.0.0.1", 5432
    with pytest.raises(RoutesError, match="under SGX the host reads loopback"):
        parse_listener("outbound|db|5432", outbound.SerializeToString(), sgx)


def test_endpoints_out_of_order_are_left_out() -> None:
    entries = [
        pb.LbEndpoint(
            endpoint=pb.Endpoint(address=pb.Address(socket_address=pb.SocketAddress(address=ip, port_value=1))),
            health_status=health,
        )
        for ip, health in (("10.0.0.1", 0), ("10.0.0.2", 1), ("10.0.0.3", 2), ("10.0.0.4", 3))
    ]
    message = pb.ClusterLoadAssignment(cluster_name="c", endpoints=[pb.LocalityLbEndpoints(lb_endpoints=entries)])
    assert [a.host for a in parse_endpoints("c", message.SerializeToString(), LOCAL)] == ["10.0.0.1", "10.0.0.2"]
    entries[0].endpoint.address.socket_address.address = "a.name"
    message = pb.ClusterLoadAssignment(cluster_name="c", endpoints=[pb.LocalityLbEndpoints(lb_endpoints=entries)])
    with pytest.raises(RoutesError, match=r"'a\.name' is not an IP address"):
        parse_endpoints("c", message.SerializeToString(), LOCAL)


def weighted(*localities: tuple[int, ...]) -> bytes:
    def entry(number: int, weight: int) -> pb.LbEndpoint:
        where = pb.Address(socket_address=pb.SocketAddress(address=f"10.0.0.{number}", port_value=1))
        made = pb.LbEndpoint(endpoint=pb.Endpoint(address=where))
        made.load_balancing_weight.value = weight
        return made

    parts = [pb.LocalityLbEndpoints(lb_endpoints=[entry(n, w) for n, w in enumerate(part)]) for part in localities]
    return pb.ClusterLoadAssignment(cluster_name="c", endpoints=parts).SerializeToString()


def test_weights_that_are_all_alike_say_nothing_and_others_are_refused_by_name() -> None:
    assert len(parse_endpoints("c", weighted((3, 3), (3,)), LOCAL)) == 3
    with pytest.raises(RoutesError, match=r"load_balancing_weight of lb_endpoints is \[1, 3\]"):
        parse_endpoints("c", weighted((3,), (1,)), LOCAL)


def test_weights_of_localities_and_priorities_are_refused_by_name() -> None:
    message = pb.ClusterLoadAssignment.FromString(weighted((1,), (1,)))
    message.endpoints[1].priority = 1
    with pytest.raises(RoutesError, match="priority is set"):
        parse_endpoints("c", message.SerializeToString(), LOCAL)
    message.endpoints[1].priority = 0
    message.endpoints[1].load_balancing_weight.value = 2
    with pytest.raises(RoutesError, match=r"load_balancing_weight of localities is \[1, 2\]"):
        parse_endpoints("c", message.SerializeToString(), LOCAL)


def test_versions_and_protocols_of_the_manifest_reach_the_relay() -> None:
    options = {"MinTLSVersion": "1.2", "ALPN": ["h2", "http/1.1"]}
    tls = {
        "web": {"Incoming": [{"Port": "8080", **options}], "Outgoing": [{"Addr": "db", "Port": "1", **options}]},
        "db": {"Incoming": [{"Port": "1"}]},
    }
    config = build(pushed(snapshot(tls)))
    assert [route.tls for route in (*config.inbound, *config.outbound)] == [TlsOptions("1.2", ("h2", "http/1.1"))] * 2
    config = build(pushed(snapshot()))
    assert [route.tls for route in (*config.inbound, *config.outbound)] == [TlsOptions("1.3", ())] * 2


def test_a_resource_of_another_type_is_refused() -> None:
    with pytest.raises(RoutesError, match="resources of this type are not used here"):
        Pushed(LOCAL).with_resources("type.googleapis.com/Runtime", {}, ())


SEEDS = [m.SerializeToString() for m in (listener(), plain_listener(), cluster(), cluster("app|8080"))]


@given(st.sampled_from(SEEDS), st.integers(0, 600), st.integers(0, 8), st.binary(max_size=8))
def test_spoiled_bytes_are_understood_or_refused_by_name(seed: bytes, place: int, cut: int, insert: bytes) -> None:
    fuzz_one(seed[:place] + insert + seed[place + cut :])


@given(st.binary(max_size=200))
def test_random_bytes_are_understood_or_refused_by_name(data: bytes) -> None:
    fuzz_one(data)
