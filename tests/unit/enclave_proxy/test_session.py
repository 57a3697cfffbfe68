# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from enclave_proxy.bootstrap import Credentials
from enclave_proxy.errors import ProxyError
from enclave_proxy.identity_store import IdentityStore
from enclave_proxy.relay_config import Membership, RelayConfig
from enclave_proxy.route_parts import Local
from enclave_proxy.session import Session
from sds.ca import CertificateAuthority
from sds.logs import get_logger
from sds.material import TrustBundle
from sds.resources import (
    CLUSTER,
    ENDPOINT,
    LISTENER,
    SECRET,
    MarbleTypes,
    Resource,
    bundle_secret,
    identity_secret,
    read_secret,
    revoked_secret,
    types_secret,
)
from sds.wire.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node
from tests.kit.manifests import certificate
from tests.kit.pki import marble, now, other_ca, shared_ca
from tests.kit.pushes import snapshot

ROUTES = snapshot().marble_routes("web", "127.0.0.1")
LOG = get_logger("test")


@dataclass
class FakeRelay:
    """Takes configurations; refuses them while `refuse` says why."""

    refuse: str = ""
    applied: list[RelayConfig] = field(default_factory=list)
    membership: Membership | None = None

    def update_membership(self, membership: Membership) -> None:
        self.membership = membership

    async def apply(self, config: RelayConfig) -> None:
        if self.refuse:
            raise ProxyError(self.refuse)
        self.applied.append(config)


@dataclass
class Talk:
    """A session and the Coordinator's side of the conversation."""

    relay: FakeRelay | None = field(default_factory=FakeRelay)
    ca: CertificateAuthority = field(default_factory=shared_ca)
    nonce: int = 0

    def __post_init__(self) -> None:
        root = TrustBundle(self.ca.chain_pem)
        self.store = IdentityStore(Credentials(marble(self.ca), self.ca.bundle, root))
        self.session = Session(Node(id="u"), self.store, self.relay, Local(Path("/run/m")), now, LOG)
        self.session.client.connected()
        self.requests()

    def requests(self) -> list[DeltaDiscoveryRequest]:
        return [DeltaDiscoveryRequest.FromString(r) for r in iter(self.session.client.take, None)]

    async def push(self, type_url: str, resources: Iterable[Resource] = (), removed: Iterable[str] = ()) -> str:
        """Push; gives the reason of the NACK, or nothing."""
        self.nonce += 1
        response = DeltaDiscoveryResponse(type_url=type_url, nonce=str(self.nonce), removed_resources=removed)
        for resource in resources:
            item = response.resources.add(name=resource.name, version=resource.version)
            item.resource.type_url, item.resource.value = type_url, resource.body
        await self.session.handle(self.session.client.receive_bytes(response.SerializeToString()))
        (answer,) = [r for r in self.requests() if r.response_nonce == str(self.nonce)]
        return answer.error_detail.message

    async def configure(self) -> None:
        assert await self.push(CLUSTER, ROUTES.clusters.values()) == ""
        assert await self.push(LISTENER, ROUTES.listeners.values()) == ""


async def test_the_relay_is_told_once_clusters_and_listeners_are_there() -> None:
    talk = Talk()
    assert await talk.push(CLUSTER, ROUTES.clusters.values()) == ""
    assert talk.relay is not None
    assert talk.relay.applied == []
    assert not talk.session.configured
    assert await talk.push(LISTENER, ROUTES.listeners.values()) == ""
    (config,) = talk.relay.applied
    assert [i.name for i in config.inbound] == ["inbound|8080"]
    assert talk.session.configured


async def test_an_empty_mesh_is_a_complete_configuration() -> None:
    talk = Talk()
    await talk.push(CLUSTER)
    await talk.push(LISTENER)
    assert talk.session.configured


async def test_endpoints_are_asked_for_when_a_cluster_wants_them() -> None:
    talk = Talk()
    await talk.configure()
    assert talk.session.client.wanted(ENDPOINT) == {"outbound|db|5432"}
    assert talk.session.client.wanted(SECRET) == {
        *("default", "ROOTCA", "revoked|instances", "marbles|types", "offline|start")
    }


async def test_who_is_in_the_mesh_counts_whatever_else_is_missing() -> None:
    talk = Talk()
    names = frozenset({"spiffe://t.test/marble/web/1"})
    known = MarbleTypes("spiffe://t.test/marble/", frozenset({"web", "a_20b"}))
    assert await talk.push(SECRET, [revoked_secret(names)]) == ""
    assert talk.relay is not None
    assert talk.relay.membership == Membership(revoked=names)
    assert await talk.push(SECRET, [types_secret("t.test", ["web", "a b"])]) == ""
    assert talk.relay.membership == Membership(revoked=names, types=known)
    assert await talk.push(SECRET, [revoked_secret([])]) == ""
    assert talk.relay.membership == Membership(types=known)
    assert talk.relay.applied == []


async def test_a_new_root_is_followed_bundle_first_and_never_identity_first() -> None:
    """What our peers do not know yet we do not show; what they may show already we know."""
    talk = Talk()
    old = talk.ca
    new = old.rotate(now())
    both = TrustBundle(old.bundle.pem + new.bundle.pem)
    renewed = marble(new)
    assert "does not end in the trust bundle" in await talk.push(SECRET, [identity_secret("default", renewed)])
    assert await talk.push(SECRET, [bundle_secret("ROOTCA", both)]) == ""
    assert await talk.push(SECRET, [identity_secret("default", marble(old))]) == ""
    assert await talk.push(SECRET, [identity_secret("default", renewed)]) == ""
    assert await talk.push(SECRET, [bundle_secret("ROOTCA", new.bundle)]) == ""
    assert "does not end in the trust bundle" in await talk.push(SECRET, [identity_secret("default", marble(old))])
    assert (talk.store.credentials.identity, talk.store.credentials.bundle) == (renewed, new.bundle)


async def test_a_renewed_identity_is_offered_to_local_clients_at_once_and_nothing_after_a_withdrawal() -> None:
    talk = Talk()
    renewed = marble(talk.ca)
    await talk.push(SECRET, [identity_secret("default", renewed)])
    offered = talk.store.view.value[SECRET]
    assert read_secret(offered["default"].body) == ("default", renewed)
    assert read_secret(offered[str(renewed.spiffe_id)].body)[1] == renewed
    assert talk.store.shared.value == talk.store.credentials
    await talk.store.withdraw()
    assert talk.store.view.value == {SECRET: {}}
    assert talk.store.shared.value is None


async def test_a_certificate_of_the_manifest_is_offered_by_its_name_until_it_is_taken_away() -> None:
    talk = Talk(relay=None)
    assert talk.session.client.wanted(SECRET) == {"default", "ROOTCA", "*"}
    own, other = marble(other_ca()), marble(talk.ca)
    pushed = [identity_secret("shop", own), identity_secret(str(other.spiffe_id), other)]
    assert await talk.push(SECRET, [*pushed, bundle_secret("ROOTCA|8080", talk.ca.bundle)]) == ""
    offered = talk.store.view.value[SECRET]
    assert read_secret(offered["shop"].body)[1] == own
    assert {str(other.spiffe_id), "ROOTCA|8080"}.isdisjoint(offered)
    await talk.push(SECRET, removed=["shop", "ROOTCA"])
    assert "shop" not in talk.store.view.value[SECRET]
    assert "ROOTCA" in talk.store.view.value[SECRET]


async def test_a_push_that_cannot_be_enforced_changes_nothing() -> None:
    talk = Talk()
    await talk.configure()
    assert talk.relay is not None
    bad = Resource(LISTENER, "inbound|8080", "v2", b"\xff")
    good = ROUTES.listeners["outbound|db|5432"]
    assert "inbound|8080: not a valid Listener" in await talk.push(LISTENER, [good, bad])
    assert len(talk.relay.applied) == 1
    assert set(talk.session.pushed.listeners) == {"inbound|8080", "outbound|db|5432"}
    assert talk.session.status.nacks == {"Listener": 1}


async def test_a_listener_without_its_cluster_is_refused() -> None:
    talk = Talk()
    await talk.push(CLUSTER)
    assert "there is no cluster" in await talk.push(LISTENER, ROUTES.listeners.values())


async def test_a_cluster_may_go_before_its_listener() -> None:
    talk = Talk()
    await talk.configure()
    assert await talk.push(CLUSTER, removed=["app|8080"]) == ""
    assert talk.relay is not None
    assert len(talk.relay.applied) == 1
    assert await talk.push(LISTENER, removed=["inbound|8080"]) == ""
    assert talk.relay.applied[-1].inbound == ()


async def test_a_port_that_is_taken_is_a_refusal_of_the_listener() -> None:
    talk = Talk(FakeRelay(refuse="cannot bind 127.0.0.1:8080: address in use"))
    await talk.push(CLUSTER, ROUTES.clusters.values())
    assert "address in use" in await talk.push(LISTENER, ROUTES.listeners.values())
    assert not talk.session.configured


async def test_a_neighbours_fault_is_no_reason_to_refuse_a_secret_and_is_tried_again() -> None:
    talk = Talk()
    await talk.configure()
    assert talk.relay is not None
    talk.relay.refuse = "no file descriptors left"
    renewed = marble(talk.ca)
    assert await talk.push(SECRET, [identity_secret("default", renewed)]) == ""
    assert talk.store.credentials.identity == renewed
    talk.relay.refuse = ""
    await talk.session.retry()
    assert talk.relay.applied[-1].inbound[0].identity == renewed
    await talk.session.retry()
    assert len(talk.relay.applied) == 2


async def test_a_new_identity_reaches_relay_store_and_local_socket() -> None:
    talk = Talk()
    await talk.configure()
    renewed = marble(talk.ca)
    assert await talk.push(SECRET, [identity_secret("default", renewed)]) == ""
    assert talk.relay is not None
    assert talk.relay.applied[-1].outbound[0].identity == renewed
    assert talk.store.view.value[SECRET]["default"] == identity_secret("default", renewed)


@pytest.mark.parametrize("kind", ["foreign", "expired", "future"])
async def test_an_identity_that_peers_would_refuse_is_refused(kind: str) -> None:
    talk = Talk()
    before = talk.store.credentials
    hour = timedelta(hours=1)
    odd = {
        "foreign": lambda: marble(other_ca()),
        "expired": lambda: marble(talk.ca, lifetime=hour / 2, at=now() - hour),
        "future": lambda: marble(talk.ca, at=now() + 2 * hour),
    }[kind]()
    reason = await talk.push(SECRET, [identity_secret("default", odd)])
    assert {"foreign": "trust bundle", "expired": "expired", "future": "not valid before"}[kind] in reason
    assert talk.store.credentials is before


async def test_new_roots_come_before_new_identities() -> None:
    talk = Talk()
    both = TrustBundle(talk.ca.bundle.pem + other_ca().bundle.pem)
    moved = identity_secret("default", marble(other_ca()))
    assert await talk.push(SECRET, [moved]) != ""
    assert await talk.push(SECRET, [bundle_secret("ROOTCA", both)]) == ""
    assert await talk.push(SECRET, [moved]) == ""


@pytest.mark.parametrize(
    ("resource", "complaint"),
    [
        (Resource(SECRET, "ROOTCA", "1", b""), "no name"),
        (Resource(SECRET, "ROOTCA", "1", b"\xff"), "not a valid protobuf message"),
        (bundle_secret("default", shared_ca().bundle), "is a TrustBundle, expected a Identity"),
        (bundle_secret("ROOTCA", TrustBundle(certificate().encode())), "certificate"),
        (Resource(SECRET, "x", "1", bundle_secret("ROOTCA", shared_ca().bundle).body), "calls itself 'ROOTCA'"),
    ],
)
async def test_an_unusable_secret_is_refused(resource: Resource, complaint: str) -> None:
    talk = Talk()
    before = talk.store.credentials
    talk.session.client.subscribe(SECRET, [resource.name])
    talk.requests()
    assert complaint in await talk.push(SECRET, [resource])
    assert talk.store.credentials is before


async def test_no_refusal_quotes_a_key() -> None:
    talk = Talk()
    key = marble(talk.ca).key.pem
    body = identity_secret("default", marble(talk.ca)).body.replace(b"BEGIN CERTIFICATE", b"BEGIN CERTIFICATA")
    reason = await talk.push(SECRET, [Resource(SECRET, "default", "1", body + key)])
    assert reason
    assert "PRIVATE" not in reason
    assert key.split()[4].decode() not in reason


async def test_without_a_relay_only_secrets_are_asked_for() -> None:
    talk = Talk(relay=None)
    assert talk.session.client.wanted(LISTENER) == frozenset()
    assert not talk.session.configured
    assert await talk.push(SECRET, [bundle_secret("ROOTCA", talk.ca.bundle)]) == ""
    assert talk.session.configured


async def test_adopted_credentials_are_used_at_once() -> None:
    talk = Talk()
    await talk.configure()
    new = Credentials(marble(other_ca()), other_ca().bundle, TrustBundle(other_ca().chain_pem))
    await talk.session.adopt(new)
    assert talk.relay is not None
    assert talk.relay.applied[-1].inbound[0].bundle == other_ca().bundle
    assert talk.store.credentials is new
