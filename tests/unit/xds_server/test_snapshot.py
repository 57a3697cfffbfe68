# SPDX-License-Identifier: Apache-2.0
"""Manifest entries as Envoy resources: read back by Envoy's own definitions, and pinned where bytes matter."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from manifests.model import ConnectionOptions, Incoming, Outgoing
from sds.identity import any_marble_prefix, type_prefix
from sds.resources import CLUSTER, ENDPOINT, LISTENER, SECRET
from sds.wire import envoy_pb2
from tests.kit.xds_mesh import Town, manifest
from xds_server.snapshot_routes import ANYWHERE, Place, inbound_listener, outbound_cluster
from xds_server.snapshot_tls import UPSTREAM_TLS, ads

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # generated code, not ours to warn about
    from envoy_data_plane.envoy.config.cluster.v3 import Cluster
    from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment
    from envoy_data_plane.envoy.config.listener.v3 import Listener
    from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import Secret

ENVOYS: dict[str, Any] = {
    LISTENER: Listener,
    CLUSTER: Cluster,
    ENDPOINT: ClusterLoadAssignment,
    SECRET: Secret,
}

TOWN = Town(
    manifest(
        tls={
            "web": {
                "Incoming": [{"Port": "8080", "Upstream": "unix:/run/app.sock"}, {"Port": "8443"}],
                "Outgoing": [
                    {"Addr": "voting", "Port": "8081"},
                    {"Addr": "db.example", "Port": "5432", "Peer": "voting", "Listen": "tcp:127.0.0.1:5432"},
                    {"Addr": "10.1.2.3", "Port": "99"},
                ],
            },
            "voting": {"Incoming": [{"Port": "8081", "Peers": ["web"]}]},
        },
        marbles={"web": ["web"], "voting": ["voting"]},
    )
)
WEB = TOWN.activate("web")
VIEW = TOWN.mesh.view(TOWN.mesh.authenticate(WEB.identity.leaf))
DOMAIN = TOWN.ca.trust_domain


@pytest.mark.parametrize("kind", [LISTENER, CLUSTER, ENDPOINT, SECRET])
def test_envoys_own_definitions_read_every_resource_completely(kind: str) -> None:
    assert VIEW[kind]
    for name, resource in VIEW[kind].items():
        parsed = ENVOYS[kind].parse(resource.body)
        assert name in (getattr(parsed, "name", None), getattr(parsed, "cluster_name", None))
        assert sorted(bytes(parsed)) == sorted(resource.body), "the same bytes, in whatever order of fields"


def cluster(name: str) -> envoy_pb2.Cluster:
    return envoy_pb2.Cluster.FromString(VIEW[CLUSTER][name].body)


def listener(name: str) -> envoy_pb2.Listener:
    return envoy_pb2.Listener.FromString(VIEW[LISTENER][name].body)


def test_addresses_are_the_manifests_or_relative_sockets() -> None:
    assert (
        cluster("app|8080").load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.pipe.path == "/run/app.sock"
    )
    assert cluster("app|8443").load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.pipe.path == "8443.sock"
    pipe = listener("outbound|voting|8081").address.pipe
    assert (pipe.path, pipe.mode) == ("voting-8081.sock", 0o600)
    assert listener("outbound|db.example|5432").address.socket_address.port_value == 5432


def upstream(name: str) -> envoy_pb2.UpstreamTlsContext:
    socket = cluster(name).transport_socket.typed_config
    assert socket.type_url == UPSTREAM_TLS
    return envoy_pb2.UpstreamTlsContext.FromString(socket.value)


@pytest.mark.parametrize(
    ("name", "kind", "sni", "peer"),
    [
        ("outbound|voting|8081", 3, "voting", type_prefix(DOMAIN, "voting")),
        ("outbound|db.example|5432", 1, "db.example", type_prefix(DOMAIN, "voting")),
        ("outbound|10.1.2.3|99", 0, "", any_marble_prefix(DOMAIN)),
    ],
    ids=["marble type", "host name", "address"],
)
def test_who_must_answer_and_how_it_is_found(name: str, kind: int, sni: str, peer: str) -> None:
    context = upstream(name)
    combined = context.common_tls_context.combined_validation_context
    matchers = combined.default_validation_context.match_typed_subject_alt_names
    assert (cluster(name).type, context.sni) == (kind, sni)
    assert [(m.san_type, m.matcher.prefix) for m in matchers] == [(3, peer)]


def test_tls_1_3_only_and_a_bundle_everywhere() -> None:
    """A validation context without a CA would let everybody in."""
    for name in ("outbound|voting|8081", "outbound|db.example|5432", "outbound|10.1.2.3|99"):
        common = upstream(name).common_tls_context
        assert common.tls_params.tls_minimum_protocol_version == common.tls_params.tls_maximum_protocol_version == 4
        assert common.combined_validation_context.validation_context_sds_secret_config.name == "ROOTCA"
        assert [c.name for c in common.tls_certificate_sds_secret_configs] == ["default"]


def test_versions_and_protocols_are_the_manifest_s() -> None:
    options = ConnectionOptions(min_tls="1.2", alpn=("h2", "http/1.1"))
    place = Place(manifest({}, {"web": []}), DOMAIN)
    served = inbound_listener(Incoming(port="1", tls=options), place, ANYWHERE).filter_chains[0].transport_socket
    public = Incoming(port="1", cert="site", disable_client_auth=True, tls=options)
    shown = inbound_listener(public, place, ANYWHERE).filter_chains[0].transport_socket
    dialled = outbound_cluster(Outgoing(addr="web", port="1", tls=options), place).transport_socket
    for socket in (served, shown, dialled):
        kind = envoy_pb2.UpstreamTlsContext if socket is dialled else envoy_pb2.DownstreamTlsContext
        common = kind.FromString(socket.typed_config.value).common_tls_context
        assert common.alpn_protocols == ["h2", "http/1.1"]
        assert common.tls_params.tls_minimum_protocol_version == 3
        assert common.tls_params.tls_maximum_protocol_version == 4


def test_the_bytes_of_the_config_source_never_change() -> None:
    """Envoy takes other bytes for another source and drops its certificates until the new one answers."""
    assert ads().SerializeToString(deterministic=True).hex() == "1a002202080f3002"


def test_a_type_name_that_is_no_host_name_is_not_sent_as_sni() -> None:
    strange = Town(manifest({}, {"a type!": []}))
    made = outbound_cluster(Outgoing(addr="a type!", port="1"), Place(strange.manifest, DOMAIN))
    assert envoy_pb2.UpstreamTlsContext.FromString(made.transport_socket.typed_config.value).sni == ""
