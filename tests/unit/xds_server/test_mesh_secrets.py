# SPDX-License-Identifier: Apache-2.0
"""Which secrets a Marble's view holds: only good ones, the last good one in place of a bad one, made once for all."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from sds.discovery_types import NOT_FOUND, PERMISSION_DENIED
from sds.keys import PrivateKey
from sds.material import Identity
from sds.publish_gate import LOOK_AGAIN
from sds.resources import BUNDLE_NAME, SECRET, Resource
from tests.kit.fake_operations import FakeOperations
from tests.kit.pki import HOUR, odd_leaf, other_ca
from tests.kit.xds_mesh import Town, manifest
from tests.kit.xds_port import connected, opened
from xds_server import client_api_xds
from xds_server.http_dispatch import Request
from xds_server.mesh import ActiveMarble, Client

TLS: dict[str, object] = {
    "shop": {"Incoming": [{"Port": "443", "Cert": "front", "DisableClientAuth": True}]},
    "bare": {"Incoming": [{"Port": "8080"}]},
}


@pytest.fixture
def town() -> Town:
    return Town(manifest(TLS, {"shop": ["shop"], "bare": ["bare"]}, secrets=("front",)))


def front(town: Town, **odd: Any) -> Identity:
    """A certificate for the port, as a user might upload it."""
    return odd_leaf(town.ca, uris=(), dns_names=("shop.example",), **odd)


def client_of(town: Town, marble: ActiveMarble) -> Client:
    return town.mesh.authenticate(marble.identity.leaf)


def secrets(town: Town, marble: ActiveMarble) -> dict[str, Resource]:
    return dict(town.mesh.view(client_of(town, marble))[SECRET])


def serve(town: Town, *marbles: ActiveMarble, **served: Identity) -> None:
    town.mesh.replace_served({(m.marble_type, m.uuid): served for m in marbles})


def test_a_bad_certificate_of_the_manifest_never_leaves_and_the_last_good_one_stays(town: Town) -> None:
    shop = town.activate("shop")
    serve(town, shop, front=front(town))
    good = secrets(town, shop)["front"]
    serve(town, shop, front=front(town, not_after=town.time - timedelta(minutes=1)))
    assert secrets(town, shop)["front"] == good
    (withheld,) = town.mesh.published.withheld_from("shop", shop.uuid)
    assert (withheld.name, withheld.part, withheld.kept) == ("front", "chain", True)
    assert "expired" in withheld.reason
    better = front(town)
    serve(town, shop, front=better)
    assert secrets(town, shop)["front"].version != good.version
    assert town.mesh.published.withheld_from("shop", shop.uuid) == ()


def test_without_a_good_one_the_name_does_not_exist_and_everything_else_does(town: Town) -> None:
    shop = town.activate("shop")
    names = set(secrets(town, shop))
    serve(town, shop, front=front(town, not_after=town.time - timedelta(minutes=1)))
    assert set(secrets(town, shop)) == names
    assert [w.kept for w in town.mesh.published.withheld_from("shop", shop.uuid)] == [False]


def test_a_certificate_of_tomorrow_comes_by_itself_when_it_is_valid(town: Town) -> None:
    shop = town.activate("shop")
    serve(town, shop, front=front(town, not_before=town.time + HOUR, not_after=town.time + 2 * HOUR))
    assert "front" not in secrets(town, shop)
    due = town.mesh.expire()
    assert due <= town.time + LOOK_AGAIN
    town.time += HOUR + LOOK_AGAIN
    version = town.mesh.version
    town.mesh.expire()
    assert town.mesh.version > version, "whoever pushes is told"
    assert "front" in secrets(town, shop)


def test_an_identity_of_a_root_that_its_holder_does_not_have_never_leaves(town: Town) -> None:
    """Roots before leaves, whatever goes wrong elsewhere."""
    shop = town.activate("shop")
    before = secrets(town, shop)
    town.mesh.replace_identities({("shop", shop.uuid): odd_leaf(other_ca(), uris=[str(shop.identity.spiffe_id)])})
    assert secrets(town, shop) == before
    reasons = {w.reason for w in town.mesh.published.withheld_from("shop", shop.uuid)}
    assert reasons == {"identity is of a root that is not in the bundle that its holder gets"}


def test_an_identity_of_somebody_else_never_leaves_under_the_name_of_its_holder(town: Town) -> None:
    shop, other = town.activate("shop"), town.activate("shop")
    before = secrets(town, shop)
    town.mesh.replace_identities({("shop", shop.uuid): other.identity})
    assert secrets(town, shop) == before
    assert {w.part for w in town.mesh.published.withheld_from("shop", shop.uuid)} == {"name"}


def test_a_thousand_instances_share_the_check_and_the_bytes_of_one_certificate(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    shops = [town.activate("shop") for _ in range(20)]
    for shop in shops:
        secrets(town, shop)
    checked: list[str] = []
    monkeypatch.setattr("sds.publish_gate.check_secret", lambda resource, _now: checked.append(resource.name))
    new = front(town)
    serve(town, *shops, front=new)
    count = town.mesh.serialised
    bodies = {id(secrets(town, shop)["front"]) for shop in shops}
    assert (len(bodies), town.mesh.serialised - count, checked) == (1, 1, ["front"])
    # Equal content that was read anew for each of them, as after a restart, is the same content.
    for shop in shops:
        serve(town, shop, front=Identity(new.chain, PrivateKey(new.key.pem)))
    assert {id(secrets(town, shop)["front"]) for shop in shops} == bodies
    assert (town.mesh.serialised - count, checked) == (1, ["front"])


def test_another_root_and_another_manifest_serialise_no_identity_anew(town: Town) -> None:
    marbles = [town.activate("bare") for _ in range(20)]
    before = [secrets(town, marble) for marble in marbles]
    town.mesh.expire()
    town.update(manifest(TLS, {"shop": ["shop"], "bare": ["bare"]}, secrets=("front",)))
    count = town.mesh.published.serialised
    after = [secrets(town, marble) for marble in marbles]
    assert town.mesh.published.serialised == count
    for old, new in zip(before, after, strict=True):
        assert old["default"] is new["default"]
        assert old[BUNDLE_NAME].version != new[BUNDLE_NAME].version
    assert len({id(new[BUNDLE_NAME]) for new in after}) == 1


def test_what_is_unchanged_is_the_same_object_so_that_streams_skip_it(town: Town) -> None:
    bare, shop = town.activate("bare"), town.activate("shop")
    client = client_of(town, bare)
    before = town.mesh.secrets(client)
    serve(town, shop, front=front(town))
    town.activate("bare")
    assert town.mesh.secrets(client) is before


def test_an_instance_that_is_gone_leaves_nothing_behind(town: Town) -> None:
    shop = town.activate("shop")
    serve(town, shop, front=front(town, not_after=town.time - timedelta(minutes=1)))
    secrets(town, shop)
    town.mesh.revoke("shop", shop.uuid)
    assert list(town.mesh.published.withheld) == []


async def test_status_and_metric_say_what_is_withheld_and_never_its_content() -> None:
    async with opened() as place:
        web = place.town.activate("web")
        wrong = odd_leaf(other_ca(), uris=[str(web.identity.spiffe_id)])
        place.town.mesh.replace_identities({("web", web.uuid): wrong})
        place.town.mesh.view(place.town.mesh.authenticate(web.identity.leaf))
        route = client_api_xds.routes(FakeOperations(users={b"a"}), place.server)["GET", "/api/v2/xds/status"]
        reply = await route.answer(Request((), b"", (b"a",)))
        rows = json.loads(reply.body)["data"]["withheld"]
        assert [(row["type"], row["secret"], row["lastGoodStays"]) for row in rows] == [
            ("web", "default", False),
            ("web", str(web.identity.spiffe_id), False),
        ]
        assert b"PRIVATE" not in reply.body
        assert place.metric("marblemesh_xds_secrets_withheld", part="chain") == 2


def test_a_log_line_says_it_once_for_all_instances_of_a_type(town: Town) -> None:
    shops = [town.activate("shop") for _ in range(5)]
    serve(town, *shops, front=front(town, not_after=town.time - timedelta(minutes=1)))
    with capture_logs() as lines:
        for shop in shops:
            secrets(town, shop)
    assert [(line["MarbleType"], line["secret"], line["last_good_stays"]) for line in lines] == [
        ("shop", "front", False)
    ]
    assert len(list(town.mesh.published.withheld)) == 5


async def test_secrets_of_other_identities_are_denied_whether_they_exist_or_not_and_the_stream_stays() -> None:
    async with opened() as place:
        web, voting = place.town.activate("web"), place.town.activate("voting")
        domain = web.identity.spiffe_id.trust_domain
        theirs, nobodys = str(voting.identity.spiffe_id), f"spiffe://{domain}/marble/web/{uuid4()}"
        async with connected(place.of(web.identity)) as wire:
            wire.client.subscribe(SECRET, [theirs, nobodys, "no-such-name"])
            update = await wire.hear()
            assert update.resources == ()
            codes = {name: code for name, (code, _) in update.errors.items()}
            assert codes == {theirs: PERMISSION_DENIED, nobodys: PERMISSION_DENIED, "no-such-name": NOT_FOUND}
            wire.client.subscribe(SECRET, [str(web.identity.spiffe_id)])
            (own,) = (await wire.hear()).resources
            assert own.name == str(web.identity.spiffe_id)
