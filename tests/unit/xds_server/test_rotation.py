# SPDX-License-Identifier: Apache-2.0
"""A mesh goes over to another Marble root: in which order, how long it waits, who is turned out. The clock is ours."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from sds.ca import CertificateAuthority
from sds.material import Identity, MaterialError, TrustBundle, check_identity
from sds.resources import REVOKED_NAME, SECRET, TYPES_NAME, MarbleTypes, RevokedInstances, read_secret
from sds.wire.discovery_pb2 import Node
from tests.kit.xds_mesh import Town, gateway_certificate, manifest
from xds_server.mesh import AccessDenied, ActiveMarble, Client
from xds_server.revocation import MAX_REVOKED_INSTANCES, Revocations
from xds_server.rotation import MAX_ROOTS, Pace, Phase, Rotation
from xds_server.snapshot_tls import SnapshotError

TLS: dict[str, object] = {
    "web": {"Incoming": [{"Port": "8080"}], "Outgoing": [{"Addr": "db", "Port": "5432"}]},
    "db": {"Incoming": [{"Port": "5432", "Peers": ["web"]}]},
}
FIRST = CertificateAuthority.create(["localhost"], [], datetime.now(UTC))
SECOND = timedelta(seconds=1)


def town(**options: object) -> Town:
    place = Town(manifest(TLS, {"web": ["web"], "db": ["db"]}), FIRST, pace=Pace(), **options)  # type: ignore[arg-type]
    place.renew_when_asked()
    return place


def secrets(place: Town, marble: ActiveMarble) -> dict[str, object]:
    view = place.mesh.view(Client("marble", marble.marble_type, marble.uuid))  # type: ignore[arg-type]
    return {name: read_secret(resource.body)[1] for name, resource in view[SECRET].items()}


def roots(place: Town, marble: ActiveMarble) -> tuple[x509.Certificate, ...]:
    bundle = secrets(place, marble)["ROOTCA"]
    assert isinstance(bundle, TrustBundle)
    return bundle.certificates


def issuer(place: Town, marble: ActiveMarble) -> x509.Certificate:
    identity = secrets(place, marble)["default"]
    assert isinstance(identity, Identity)
    return identity.certificates[1]


def go_on(place: Town, *, answered: bool = True) -> Phase:
    """All clients have answered (or not), and the time after that has passed."""
    place.mesh.advance(answered=answered)
    place.time += SECOND
    place.mesh.advance(answered=answered)
    return place.mesh.rotation.phase


def denied(place: Town, identity: Identity) -> AccessDenied:
    with pytest.raises(AccessDenied) as caught:
        place.mesh.authenticate(identity.leaf)
    return caught.value


# ---- the phases


def test_first_both_roots_then_new_identities_then_the_new_root_alone() -> None:
    place = town()
    web = place.activate("web")
    old, told = place.ca, []
    place.mesh.watch(lambda _: told.append(place.mesh.rotation.phase))
    place.update()
    assert place.mesh.rotation.phase is Phase.INTRODUCE
    assert roots(place, web) == (old.marble_root, place.ca.marble_root)
    assert issuer(place, web) == old.intermediate

    assert go_on(place) is Phase.RENEW
    assert roots(place, web) == (old.marble_root, place.ca.marble_root)
    assert issuer(place, web) == place.ca.intermediate

    assert go_on(place) is Phase.RETIRE
    assert roots(place, web) == (place.ca.marble_root,)
    assert go_on(place) is Phase.SETTLED
    assert told, "the streams were told of every change"
    assert place.mesh.rotation.behind == 0


def test_at_every_moment_everybodys_bundle_accepts_everybodys_identity() -> None:
    """Whoever has the newest of what was sent before can talk to whoever has the newest, or still the one before."""
    place = town()
    marbles = [place.activate("web"), place.activate("db")]
    before = [secrets(place, m) for m in marbles]
    place.update()
    for phase in (Phase.RENEW, Phase.RETIRE, Phase.SETTLED):
        now = [secrets(place, m) for m in marbles]
        for held in (before, now):
            for other in (before, now):
                for identity in (h["default"] for h in held):
                    for bundle in (o["ROOTCA"] for o in other):
                        if held is now and other is before and place.mesh.rotation.phase is Phase.INTRODUCE:
                            assert issuer(place, marbles[0]) != place.ca.intermediate
                        assert isinstance(identity, Identity)
                        assert isinstance(bundle, TrustBundle)
                        check_identity(identity, bundle, place.time)
        before = now
        assert go_on(place) is phase


def test_a_phase_waits_for_answers_but_not_for_ever() -> None:
    place = town()
    place.activate("web")
    place.update()
    for _ in range(9):
        assert go_on(place, answered=False) is Phase.INTRODUCE
    assert go_on(place, answered=False) is Phase.RENEW
    assert place.mesh.rotation.behind == 1


def test_a_phase_waits_for_an_instance_that_is_between_two_streams() -> None:
    place = town()
    web = place.activate("web")
    client = place.mesh.authenticate(web.identity.leaf)
    place.mesh.connected(client, Node())
    place.mesh.disconnected(client)
    place.update()
    assert go_on(place) is Phase.INTRODUCE
    place.mesh.connected(client, Node())
    assert go_on(place) is Phase.RENEW


def test_the_old_root_stays_until_every_identity_was_renewed() -> None:
    place = town()
    place.activate("web")
    place.mesh.renew_with(lambda: None)
    place.update()
    assert go_on(place) is Phase.RENEW
    assert go_on(place) is Phase.RENEW
    place.renew()
    assert go_on(place) is Phase.RETIRE


def test_a_renewal_that_was_made_before_the_update_does_not_count() -> None:
    place = town()
    web = place.activate("web")
    late = place.identity("web", web.uuid)
    place.mesh.renew_with(lambda: None)
    place.update()
    go_on(place)
    place.mesh.replace_identities({("web", web.uuid): late})
    assert go_on(place) is Phase.RENEW


def test_patience_counts_from_the_last_renewal() -> None:
    place = town()
    place.activate("web")
    place.update()
    go_on(place)
    for _ in range(30):
        place.renew()
        assert go_on(place, answered=False) is Phase.RENEW


def test_who_is_activated_during_a_rotation_is_of_the_new_root() -> None:
    place = town()
    web = place.activate("web")
    place.update()
    db = place.activate("db")
    assert issuer(place, db) == place.ca.intermediate
    assert roots(place, db) == roots(place, web)
    assert go_on(place) is Phase.RENEW


# ---- one update after the other


def test_an_update_in_between_starts_again_with_one_more_root() -> None:
    place = town()
    web = place.activate("web")
    first = place.ca
    place.update()
    go_on(place)
    second = place.ca
    assert issuer(place, web) == second.intermediate
    place.update()
    assert place.mesh.rotation.phase is Phase.INTRODUCE
    assert roots(place, web) == (first.marble_root, second.marble_root, place.ca.marble_root)
    assert [go_on(place) for _ in range(3)] == [Phase.RENEW, Phase.RETIRE, Phase.SETTLED]
    assert roots(place, web) == (place.ca.marble_root,)
    assert issuer(place, web) == place.ca.intermediate


def test_a_root_that_nobody_has_an_identity_of_is_left_out_again() -> None:
    place = town()
    web = place.activate("web")
    first = place.ca
    for _ in range(20):
        place.update()
        assert roots(place, web) == (first.marble_root, place.ca.marble_root)
    assert [go_on(place) for _ in range(3)] == [Phase.RENEW, Phase.RETIRE, Phase.SETTLED]


def test_the_bundle_is_bounded_however_many_updates_come() -> None:
    place = town()
    web = place.activate("web")
    for _ in range(MAX_ROOTS + 4):
        place.update()
        place.activate("db")
    assert len(roots(place, web)) == MAX_ROOTS
    assert roots(place, web)[-1] == place.ca.marble_root


@given(st.lists(st.sampled_from(["update", "answer", "silence", "issue", "second"]), max_size=40))
def test_whatever_happens_in_whatever_order_the_newest_root_is_trusted_and_the_end_is_reached(steps: list[str]) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    rotation = Rotation()
    certificates = iter(CERTIFICATES * 40)
    rotation.reset(next(certificates))
    for step in steps:
        match step:
            case "update":
                rotation.begin(next(certificates), now)
            case "issue":
                rotation.issued()
            case "second":
                now += SECOND
            case _:
                rotation.advance(now, answered=step == "answer")
        assert rotation.roots[-1] == rotation.newest
        assert len(set(rotation.roots)) == len(rotation.roots) <= MAX_ROOTS
        assert rotation.bundle.certificates == rotation.roots
    for _ in range(3 * 11 + 1):
        now += SECOND
        rotation.advance(now, answered=False)
    assert rotation.phase is Phase.SETTLED
    assert rotation.roots == (rotation.newest,)


CERTIFICATES = [FIRST.rotate(datetime.now(UTC)).marble_root for _ in range(MAX_ROOTS + 2)]


# ---- the xDS port


def test_an_old_certificate_opens_the_xds_port_until_the_grace_is_over() -> None:
    place = town()
    web = place.activate("web")
    place.update()
    for _ in range(3):
        place.mesh.authenticate(web.identity.leaf)
        go_on(place)
    assert place.mesh.rotation.phase is Phase.SETTLED
    assert place.ca.marble_root in roots(place, web)
    place.time += timedelta(minutes=9)
    place.mesh.authenticate(web.identity.leaf)
    place.time += timedelta(minutes=1)
    assert denied(place, web.identity).reason == "untrusted"
    with pytest.raises(MaterialError):
        check_identity(web.identity, place.ca.bundle, place.time)


def test_a_ca_with_another_root_is_no_update() -> None:
    place = town()
    with pytest.raises(ValueError, match="keeps the coordinator's root"):
        place.mesh.update(place.manifest, CertificateAuthority.create([], [], place.time), lambda _: True)


def test_a_manifest_that_cannot_be_served_changes_nothing() -> None:
    place = town()
    web = place.activate("web")
    before = place.mesh.view(place.mesh.authenticate(web.identity.leaf))
    edge, _ = gateway_certificate(x509.DNSName("edge.example"))  # a name that any Marble could have too
    tls: dict[str, object] = {"web": {"Incoming": [{"Port": "8080", "Peers": ["edge"]}]}}
    broken = manifest(tls, {"web": ["web"], "db": []}, {"edge": edge})
    with pytest.raises(SnapshotError):
        place.mesh.update(broken, place.ca.rotate(place.time), lambda _: False)
    assert place.mesh.rotation.phase is Phase.SETTLED
    assert place.mesh.view(place.mesh.authenticate(web.identity.leaf)) == before


# ---- who is turned out


def revoked(place: Town, seen_by: ActiveMarble) -> frozenset[str]:
    found = secrets(place, seen_by)[REVOKED_NAME]
    assert isinstance(found, RevokedInstances)
    return found.names


def test_an_instance_that_is_not_allowed_any_more_is_turned_out_at_once() -> None:
    place = town()
    web, bad = place.activate("web"), place.activate("web")
    client = place.mesh.authenticate(bad.identity.leaf)
    place.mesh.connected(client, Node())
    place.mesh.ready(client)
    assert place.update(allowed=lambda marble: marble.uuid != bad.uuid) == (bad,)
    reason = "revoked: the manifest no longer allows what this marble was attested to be"
    for refused in (denied(place, bad.identity),):
        assert (refused.status, refused.reason, str(refused)) == ("PERMISSION_DENIED", "revoked", reason)
    with pytest.raises(AccessDenied, match=reason):
        place.mesh.view(client)
    assert place.mesh._endpoints.members("web") == ()
    assert revoked(place, web) == {str(bad.identity.spiffe_id)}


def test_an_instance_whose_type_is_gone_is_turned_out_and_its_type_is_none_of_the_mesh() -> None:
    place = town()
    web, db = place.activate("web"), place.activate("db")
    left = manifest({"web": {"Incoming": [{"Port": "8080"}]}}, {"web": ["web"]})
    assert place.update(left) == (db,)
    assert str(denied(place, db.identity)) == "revoked: the manifest has no marble of this type any more"
    types = secrets(place, web)[TYPES_NAME]
    assert isinstance(types, MarbleTypes)
    assert types.names == {"web"}
    assert types.lacks(str(db.identity.spiffe_id))


def test_an_instance_that_is_activated_again_is_taken_off_the_list() -> None:
    place = town()
    web, bad = place.activate("web"), place.activate("db")
    place.update(allowed=lambda marble: marble.marble_type == "web")
    assert revoked(place, web) == {str(bad.identity.spiffe_id)}
    again = place.activate("db", uuid=bad.uuid)
    assert revoked(place, web) == frozenset()
    place.mesh.authenticate(again.identity.leaf)


def test_the_list_is_bounded_and_forgets_the_oldest() -> None:
    revocations = Revocations()
    uuid = "0a1b2c3d-4e5f-4a5b-8c7d-{:012x}".format
    for number in range(MAX_REVOKED_INSTANCES + 2):
        revocations.add(("web", uuid(number)), "x")
    names = list(revocations.names("t.test"))
    assert len(names) == MAX_REVOKED_INSTANCES
    assert names[0].endswith(uuid(MAX_REVOKED_INSTANCES + 1))
    assert revocations.reason(("web", uuid(0))) is None
