# SPDX-License-Identifier: Apache-2.0
"""Who a client is, what it may see, and what a change costs."""

from __future__ import annotations

import uuid as uuids
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from google.protobuf.struct_pb2 import Struct

from manifests.model import Gateway, Manifest
from sds.ca import CertificateAuthority
from sds.identity import type_prefix
from sds.resources import CLUSTER, ENDPOINT, LISTENER, SECRET, read_secret
from sds.wire import envoy_pb2
from sds.wire.discovery_pb2 import Node
from tests.kit.xds_mesh import Town, gateway_certificate, manifest
from xds_server.mesh import AccessDenied, Client, Role
from xds_server.snapshot_tls import DOWNSTREAM_TLS, SnapshotError

EDGE, EDGE_KEY = gateway_certificate(x509.UniformResourceIdentifier("spiffe://edge.example/gateway"))
TLS: dict[str, object] = {
    "web": {"Incoming": [{"Port": "8080"}], "Outgoing": [{"Addr": "voting", "Port": "8081"}]},
    "voting": {"Incoming": [{"Port": "8081", "Peers": ["web", "edge"]}]},
}
MARBLES = {"web": ["web"], "voting": ["voting"]}


def town() -> Town:
    return Town(manifest(TLS, MARBLES, {"edge": EDGE}))


def node(node_id: str = "", advertise: str = "") -> Node:
    metadata = Struct()
    if advertise:
        metadata.update({"ADVERTISE": advertise})
    return Node(id=node_id, metadata=metadata)


def denied(call: object, *arguments: object) -> AccessDenied:
    assert callable(call)
    with pytest.raises(AccessDenied) as caught:
        call(*arguments)
    return caught.value


# ---- authentication


def test_an_activated_marble_is_known_by_its_certificate() -> None:
    place = town()
    web = place.activate("web")
    assert place.mesh.authenticate(web.identity.leaf) == Client(Role.MARBLE, "web", web.uuid)


def test_a_gateway_is_known_by_exactly_its_certificate() -> None:
    place = town()
    assert place.mesh.authenticate(EDGE) == Client(Role.GATEWAY, "edge")
    other, _ = gateway_certificate(x509.UniformResourceIdentifier("spiffe://edge.example/gateway"))
    assert denied(place.mesh.authenticate, other).status == "UNAUTHENTICATED"


def test_a_certificate_that_was_issued_but_never_activated_here_is_refused() -> None:
    place = town()
    stranger = place.identity("web", str(uuids.uuid4()))
    assert denied(place.mesh.authenticate, stranger.leaf).reason == "not_activated"


def test_a_certificate_of_another_mesh_is_refused() -> None:
    place, other = town(), town()
    assert denied(place.mesh.authenticate, other.activate("web").identity.leaf).reason == "untrusted"


def test_a_gateway_cannot_make_itself_a_marble() -> None:
    """TLS trusts its certificate; what it signed is still nobody, whatever name stands in it."""
    place = town()
    web = place.activate("web")
    name = x509.UniformResourceIdentifier(str(web.identity.spiffe_id))
    key = load_pem_private_key(EDGE_KEY, None)
    assert isinstance(key, EllipticCurvePrivateKey)
    forged = (
        x509.CertificateBuilder(EDGE.subject, EDGE.subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(place.time - timedelta(minutes=1))
        .not_valid_after(place.time + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([name]), critical=False)
        .sign(key, SHA256())
    )
    assert denied(place.mesh.authenticate, forged).reason == "untrusted"


def test_a_certificate_is_what_it_says_only_if_every_byte_of_it_is() -> None:
    """The one that an instance was given last is known by its bytes; any other must bear a good signature."""
    place = town()
    web = place.activate("web")
    der = web.identity.leaf.public_bytes(Encoding.DER)
    assert place.mesh.authenticate(x509.load_der_x509_certificate(der)).uuid == web.uuid
    forged = x509.load_der_x509_certificate(der[:-1] + bytes([der[-1] ^ 1]))  # the last byte of the signature
    assert denied(place.mesh.authenticate, forged).reason == "untrusted"
    place.mesh.replace_identities({("web", web.uuid): place.identity("web", web.uuid)})
    assert place.mesh.authenticate(web.identity.leaf).uuid == web.uuid, "its earlier one is still good"
    assert denied(place.mesh.authenticate, forged).reason == "untrusted"


def test_the_mesh_ca_itself_and_the_coordinator_are_no_clients() -> None:
    place = town()
    for certificate in (place.ca.marble_root, place.ca.issue_coordinator(place.time).leaf):
        assert denied(place.mesh.authenticate, certificate).reason == "untrusted"


def test_an_expired_certificate_is_refused() -> None:
    place = town()
    web = place.activate("web")
    place.time += timedelta(hours=25)
    assert denied(place.mesh.authenticate, web.identity.leaf).reason == "expired"


def test_a_revoked_marble_is_nobody() -> None:
    place = town()
    web = place.activate("web")
    client = place.mesh.authenticate(web.identity.leaf)
    place.mesh.revoke("web", web.uuid)
    assert denied(place.mesh.authenticate, web.identity.leaf).status == "PERMISSION_DENIED"
    assert denied(place.mesh.view, client).status == "PERMISSION_DENIED"


# ---- the node is not believed


@pytest.mark.parametrize("name", ["", "sidecar~10.0.0.1", "anything/else"])
def test_a_node_may_be_called_anything(name: str) -> None:
    place = town()
    client = place.mesh.authenticate(place.activate("web").identity.leaf)
    place.mesh.connected(client, node(name))


@pytest.mark.parametrize("kind", ["web", "voting"])
def test_a_node_must_not_be_called_like_another_marble(kind: str) -> None:
    place = town()
    web, other = place.activate("web"), place.activate(kind)
    client = place.mesh.authenticate(web.identity.leaf)
    for name in (f"{kind}/{other.uuid}", str(other.identity.spiffe_id)):
        assert denied(place.mesh.connected, client, node(name)).reason == "node_mismatch"
    for name in (f"web/{web.uuid}", str(web.identity.spiffe_id)):
        place.mesh.connected(client, node(name))


@pytest.mark.parametrize("address", ["10.0.0.9", "other.example", "0.0.0.0", "::"])
def test_an_address_outside_the_certificate_is_refused(address: str) -> None:
    place = town()
    client = place.mesh.authenticate(place.activate("web", ip="10.0.0.1").identity.leaf)
    assert denied(place.mesh.connected, client, node(advertise=address)).reason == "bad_address"


# ---- what is seen


def test_a_marble_sees_its_own_listeners_clusters_endpoints_and_secrets() -> None:
    place = town()
    web = place.activate("web")
    view = place.mesh.view(place.mesh.authenticate(web.identity.leaf))
    domain = f"spiffe://{place.ca.trust_domain}"
    assert {kind: sorted(found) for kind, found in view.items()} == {
        LISTENER: ["inbound|8080", "outbound|voting|8081"],
        CLUSTER: ["app|8080", "outbound|voting|8081"],
        ENDPOINT: ["outbound|voting|8081"],
        SECRET: sorted(
            ["default", "ROOTCA", str(web.identity.spiffe_id), domain, "revoked|instances", "marbles|types"]
        ),
    }


def test_a_gateway_sees_every_port_without_tls_and_never_a_secret() -> None:
    place = town()
    client = place.mesh.authenticate(EDGE)
    view = place.mesh.view(client)
    assert {kind: sorted(found) for kind, found in view.items()} == {
        CLUSTER: ["outbound|voting|8081", "outbound|web|8080"],
        ENDPOINT: ["outbound|voting|8081", "outbound|web|8080"],
    }
    assert SECRET not in client.entitled
    cluster = envoy_pb2.Cluster.FromString(view[CLUSTER]["outbound|web|8080"].body)
    assert not cluster.HasField("transport_socket")


def test_endpoints_appear_with_the_acknowledged_listeners_of_a_marble() -> None:
    place = town()
    web = place.mesh.authenticate(place.activate("web").identity.leaf)
    voting = place.mesh.authenticate(place.activate("voting", ip="10.0.0.7").identity.leaf)
    place.mesh.connected(voting, node(advertise="10.0.0.7"))
    assert addresses(place, web) == []
    place.mesh.ready(voting)
    assert addresses(place, web) == [("10.0.0.7", 8081, 1)]


def test_an_advertised_name_becomes_the_address_that_it_was_resolved_to() -> None:
    place = town()
    web = place.mesh.authenticate(place.activate("web").identity.leaf)
    voting = place.mesh.authenticate(place.activate("voting", dns="voting.internal").identity.leaf)
    place.mesh.connected(voting, node(advertise="voting.internal"), "10.0.0.8")
    place.mesh.ready(voting)
    assert addresses(place, web) == [("10.0.0.8", 8081, 1)]


def addresses(place: Town, client: Client) -> list[tuple[str, int, int]]:
    body = place.mesh.view(client)[ENDPOINT]["outbound|voting|8081"].body
    (locality,) = envoy_pb2.ClusterLoadAssignment.FromString(body).endpoints
    return [
        (e.endpoint.address.socket_address.address, e.endpoint.address.socket_address.port_value, e.health_status)
        for e in locality.lb_endpoints
    ]


@pytest.mark.parametrize(
    ("advertised", "bound"),
    [("127.0.0.5", "127.0.0.5"), ("10.0.0.1", "0.0.0.0"), ("fd00::1", "::"), ("::1", "::1"), ("", "0.0.0.0")],
)
def test_inbound_listeners_bind_to_loopback_only_for_a_marble_that_advertises_it(advertised: str, bound: str) -> None:
    place = town()
    web = place.mesh.authenticate(place.activate("web", ip=advertised or "127.0.0.1").identity.leaf)
    place.mesh.connected(web, node(advertise=advertised))
    listener = envoy_pb2.Listener.FromString(place.mesh.view(web)[LISTENER]["inbound|8080"].body)
    assert listener.address.socket_address.address == bound


# ---- what changes cost


def test_a_renewed_identity_serialises_that_identity_and_leaves_everything_else_the_same_object() -> None:
    place = town()
    web, voting = place.activate("web"), place.activate("voting")
    clients = [place.mesh.authenticate(marble.identity.leaf) for marble in (web, voting)]
    before = [place.mesh.view(client) for client in clients]
    count = place.mesh.serialised
    place.mesh.replace_identities({("web", web.uuid): place.identity("web", web.uuid)})
    after = [place.mesh.view(client) for client in clients]
    assert place.mesh.serialised - count == 1, "`default`; as a SPIFFE ID it has the same content"
    assert after[1] == before[1]
    assert all(after[1][kind] is before[1][kind] for kind in before[1])
    assert after[0][LISTENER] is before[0][LISTENER]
    assert after[0][SECRET]["ROOTCA"] is before[0][SECRET]["ROOTCA"]
    assert after[0][SECRET]["default"].version != before[0][SECRET]["default"].version


def test_a_hundred_marbles_of_a_type_share_their_listeners_and_clusters() -> None:
    place = town()
    first = place.mesh.authenticate(place.activate("web").identity.leaf)
    shared = place.mesh.view(first)
    count = place.mesh.serialised
    client = Client(Role.MARBLE, "web", place.activate("web").uuid)
    view = place.mesh.view(client)
    assert place.mesh.serialised - count == 1, "its identity"
    assert view[LISTENER] is shared[LISTENER]
    assert view[ENDPOINT] is shared[ENDPOINT]


def test_a_new_endpoint_serialises_one_list_for_all_who_use_it() -> None:
    place = town()
    clients = [place.mesh.authenticate(place.activate("web").identity.leaf) for _ in range(5)]
    voting = place.mesh.authenticate(place.activate("voting").identity.leaf)
    place.mesh.connected(voting, node(advertise="127.0.0.1"))
    for client in clients:
        place.mesh.view(client)
    count = place.mesh.serialised
    place.mesh.ready(voting)
    for client in clients:
        place.mesh.view(client)
    assert place.mesh.serialised - count == 1


def test_watchers_hear_of_every_change() -> None:
    place = town()
    heard: list[int] = []
    stop = place.mesh.watch(lambda _: heard.append(place.mesh.version))
    place.activate("web")
    assert len(heard) == 1
    stop()
    place.activate("web")
    assert len(heard) == 1


# ---- gateways as peers


def test_a_port_that_lists_a_gateway_trusts_exactly_its_certificate_besides_the_mesh() -> None:
    place = town()
    voting = place.activate("voting")
    view = place.mesh.view(place.mesh.authenticate(voting.identity.leaf))
    _, bundle = read_secret(view[SECRET]["ROOTCA|8081"].body)
    assert list(getattr(bundle, "certificates", ())) == [place.ca.marble_root, EDGE]
    listener = envoy_pb2.Listener.FromString(view[LISTENER]["inbound|8081"].body)
    socket = listener.filter_chains[0].transport_socket.typed_config
    assert socket.type_url == DOWNSTREAM_TLS
    context = envoy_pb2.DownstreamTlsContext.FromString(socket.value)
    combined = context.common_tls_context.combined_validation_context
    names = [
        (m.matcher.prefix, m.matcher.exact) for m in combined.default_validation_context.match_typed_subject_alt_names
    ]
    assert names == [(type_prefix(place.ca.trust_domain, "web"), ""), ("", "spiffe://edge.example/gateway")]
    assert combined.validation_context_sds_secret_config.name == "ROOTCA|8081"
    assert context.require_client_certificate.value


def with_gateway(certificate: x509.Certificate) -> Manifest:
    """A manifest with this gateway, whatever the parser would say."""
    good = manifest(TLS, MARBLES, {"edge": EDGE})
    return replace(good, mesh=replace(good.mesh, gateways={"edge": Gateway(certificate=certificate)}))


@pytest.mark.parametrize(
    "names",
    [(), (x509.DNSName("edge.example"),)],
    ids=["no name", "a name that a Marble may ask for"],
)
def test_a_gateway_among_peers_needs_a_name_that_no_marble_can_have(names: tuple[x509.GeneralName, ...]) -> None:
    certificate, _ = gateway_certificate(*names)
    with pytest.raises(SnapshotError, match="no URI name"):
        Town(with_gateway(certificate))


def test_a_gateway_cannot_have_a_name_of_this_mesh() -> None:
    ca = CertificateAuthority.create(["localhost"], [], town().time)
    certificate, _ = gateway_certificate(
        x509.UniformResourceIdentifier(f"{type_prefix(ca.trust_domain, 'web')}{uuids.uuid4()}")
    )
    with pytest.raises(SnapshotError, match="name of this mesh"):
        Town(with_gateway(certificate), ca)


def test_a_gateway_s_spiffe_id_is_its_only_uri_name() -> None:
    names = ("spiffe://edge.example/gateway", "https://edge.example/")
    certificate, _ = gateway_certificate(*map(x509.UniformResourceIdentifier, names))
    with pytest.raises(SnapshotError, match="a SPIFFE ID among 2 URI names"):
        Town(with_gateway(certificate))


def test_a_manifest_that_cannot_be_served_changes_nothing() -> None:
    place = town()
    web = place.mesh.authenticate(place.activate("web").identity.leaf)
    before = place.mesh.view(web)
    ca_gateway, _ = gateway_certificate(x509.UniformResourceIdentifier("spiffe://x.example/y"), ca=True)
    with pytest.raises(SnapshotError, match="a CA certificate cannot be a gateway"):
        place.mesh.configure(with_gateway(ca_gateway), place.ca)
    assert place.mesh.view(web) == before


def test_an_update_is_no_news_to_those_whose_part_of_the_manifest_is_as_it_was() -> None:
    place = town()
    web = place.mesh.authenticate(place.activate("web").identity.leaf)
    before = place.mesh.view(web)
    place.update()
    after = place.mesh.view(web)
    assert all(after[kind] is before[kind] for kind in (LISTENER, CLUSTER, ENDPOINT))
    assert after[SECRET] is not before[SECRET]
