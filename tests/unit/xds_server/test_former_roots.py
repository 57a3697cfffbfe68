# SPDX-License-Identifier: Apache-2.0
"""What a Coordinator that starts knows of Marble roots before the newest, and how the mesh goes on from there."""

from __future__ import annotations

import functools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from sds.ca import CertificateAuthority
from sds.material import Identity, TrustBundle
from sds.resources import REVOKED_NAME, SECRET, RevokedInstances, read_secret
from tests.kit.coordinator import Bench
from tests.kit.deployment import whole
from tests.kit.users import user
from xds_server.former_roots import FormerRoots
from xds_server.mesh import AccessDenied, ActiveMarble, Client, Mesh
from xds_server.mesh_clients import Role
from xds_server.rotation import MAX_ROOTS, Pace, Phase
from xds_server.store_errors import CommitFailed

NOW = datetime(2026, 6, 1, tzinfo=UTC)
PACE = Pace()


@functools.cache
def generations(count: int = MAX_ROOTS + 2) -> tuple[CertificateAuthority, ...]:
    found = [CertificateAuthority.create(["localhost"], [], NOW)]
    while len(found) < count:
        found.append(found[-1].rotate(NOW))
    return tuple(found)


@pytest.fixture
async def bench(tmp_path: Path) -> Bench:
    made = Bench.make(tmp_path)
    await made.coordinator.set_manifest(whole(Config={"UpdateThreshold": 1}))
    return made


async def update(bench: Bench, **members: object) -> None:
    """A full update by alice alone."""
    raw = whole(Config={"UpdateThreshold": 1}, **members)
    await bench.coordinator.update_apply(raw, [user("alice").der])
    await bench.coordinator.close()


def restarted(bench: Bench, directory: Path) -> Bench:
    """The next process, not before the time that it is for the first one."""
    again = bench.restarted(directory)
    again.clock.time = max(again.clock.time, bench.clock.time)
    return again


def secrets(mesh: Mesh, marble: ActiveMarble) -> dict[str, object]:
    view = mesh.view(Client(Role.MARBLE, marble.marble_type, marble.uuid))
    return {name: read_secret(resource.body)[1] for name, resource in view[SECRET].items()}


def roots(mesh: Mesh, marble: ActiveMarble) -> tuple[x509.Certificate, ...]:
    bundle = secrets(mesh, marble)["ROOTCA"]
    assert isinstance(bundle, TrustBundle)
    return bundle.certificates


def revoked(mesh: Mesh, seen_by: ActiveMarble) -> frozenset[str]:
    found = secrets(mesh, seen_by)[REVOKED_NAME]
    assert isinstance(found, RevokedInstances)
    return found.names


def issuer(mesh: Mesh, marble: ActiveMarble) -> x509.Certificate:
    identity = secrets(mesh, marble)["default"]
    assert isinstance(identity, Identity)
    return identity.certificates[1]


async def go_on(bench: Bench, seconds: float = 1.0) -> Phase:
    """Everybody has answered, and time has passed."""
    bench.mesh.advance(answered=True)
    bench.clock.forward(timedelta(seconds=seconds))
    bench.mesh.advance(answered=True)
    await bench.coordinator.renewer.step()
    await bench.coordinator.close()
    return bench.mesh.rotation.phase


# ---- a start in the middle of a rotation


async def test_who_has_an_old_identity_comes_back_and_is_given_one_that_its_peers_know(
    bench: Bench, tmp_path: Path
) -> None:
    """Its peers may not have the new root yet: that one comes only when the rotation has gone on."""
    await bench.activate()
    (web,) = bench.mesh.marbles
    old = bench.coordinator.ca
    await update(bench)
    again = restarted(bench, tmp_path)
    new = again.coordinator.ca
    again.mesh.authenticate(web.identity.leaf)
    assert roots(again.mesh, web) == (old.marble_root, new.marble_root)
    assert issuer(again.mesh, web) == old.intermediate

    assert await go_on(again, 29) is Phase.INTRODUCE
    assert await go_on(again) is Phase.RENEW
    assert issuer(again.mesh, web) == new.intermediate
    assert await go_on(again) is Phase.RETIRE
    assert roots(again.mesh, web) == (new.marble_root,)
    assert await go_on(again) is Phase.SETTLED


async def test_who_has_a_new_identity_already_keeps_to_the_new_root(bench: Bench, tmp_path: Path) -> None:
    await bench.activate()
    await update(bench)
    await go_on(bench)
    (web,) = bench.mesh.marbles
    again = restarted(bench, tmp_path)
    again.mesh.authenticate(web.identity.leaf)
    assert issuer(again.mesh, web) == again.coordinator.ca.intermediate


async def test_after_several_updates_each_generation_comes_back_as_what_it_is(bench: Bench, tmp_path: Path) -> None:
    """Nobody has followed: three roots are in use."""
    known = []
    for revision in range(3):
        await bench.activate()
        known.append((bench.mesh.marbles[-1], bench.coordinator.ca))
        if revision < 2:
            await update(bench, Marbles={"web": {"Package": "app", "Parameters": {"Argv": [str(revision)]}}})
    again = restarted(bench, tmp_path)
    for web, ca in known:
        again.mesh.authenticate(web.identity.leaf)
        assert issuer(again.mesh, web) == ca.intermediate
        assert roots(again.mesh, web) == tuple(ca.marble_root for _, ca in known)
    assert [await go_on(again, 31), await go_on(again), await go_on(again)] == [
        Phase.RENEW,
        Phase.RETIRE,
        Phase.SETTLED,
    ]


async def test_an_update_right_after_a_start_waits_for_those_who_are_not_back_yet(bench: Bench, tmp_path: Path) -> None:
    await bench.activate()
    (web,) = bench.mesh.marbles
    old = bench.coordinator.ca
    again = restarted(bench, tmp_path)
    assert again.mesh.rotation.phase is Phase.SETTLED
    await update(again)
    assert await go_on(again, 29) is Phase.INTRODUCE
    again.mesh.authenticate(web.identity.leaf)
    assert roots(again.mesh, web) == (old.marble_root, again.coordinator.ca.marble_root)
    assert issuer(again.mesh, web) == old.intermediate
    assert await go_on(again) is Phase.RENEW


# ---- afterwards


async def test_a_root_that_has_left_the_bundles_does_not_come_back_with_a_start_but_opens_the_xds_port_to_its_time(
    bench: Bench, tmp_path: Path
) -> None:
    await bench.activate()
    (web,) = bench.mesh.marbles
    await update(bench)
    assert [await go_on(bench), await go_on(bench)] == [Phase.RENEW, Phase.RETIRE]
    left = bench.clock.time
    former = bench.store.committed[-1].former
    assert (former.issuers, len(former.departed)) == ((), 1)

    again = restarted(bench, tmp_path)
    assert again.mesh.rotation.phase is Phase.SETTLED
    again.clock.time = left + PACE.grace - timedelta(seconds=1)
    again.mesh.authenticate(web.identity.leaf)
    assert roots(again.mesh, web) == (again.coordinator.ca.marble_root,)
    assert issuer(again.mesh, web) == again.coordinator.ca.intermediate
    again.clock.forward(timedelta(seconds=1))
    with pytest.raises(AccessDenied, match="not an identity of this mesh"):
        again.mesh.authenticate(web.identity.leaf)


async def test_a_disk_that_is_full_when_the_old_root_goes_only_makes_the_next_start_introduce_again(
    bench: Bench, tmp_path: Path
) -> None:
    await bench.activate()
    (web,) = bench.mesh.marbles
    await update(bench)
    await go_on(bench)
    bench.store.failing = True
    assert await go_on(bench) is Phase.RETIRE
    with pytest.raises(CommitFailed):
        bench.store.commit(bench.store.committed[-1])
    again = restarted(bench, tmp_path)
    again.mesh.authenticate(web.identity.leaf)
    assert len(roots(again.mesh, web)) == 2


async def test_without_an_update_nothing_is_kept(bench: Bench, tmp_path: Path) -> None:
    await bench.activate()
    assert bench.store.committed[-1].former == FormerRoots()
    again = restarted(bench, tmp_path)
    (web,) = bench.mesh.marbles
    again.mesh.authenticate(web.identity.leaf)
    assert roots(again.mesh, web) == (again.coordinator.ca.marble_root,)


# ---- who was turned out


async def test_who_was_turned_out_stays_out_over_a_start_as_long_as_its_root_is_trusted(
    bench: Bench, tmp_path: Path
) -> None:
    await bench.activate()
    await bench.activate()
    bad, good = bench.mesh.marbles
    weak = replace(bad, claims=None)  # what it was attested to be is not known, so no manifest allows it
    bench.mesh.activated(weak)
    await update(bench)
    assert bench.store.committed[-1].former.revoked == (("web", bad.uuid),)
    again = restarted(bench, tmp_path)
    again.mesh.authenticate(good.identity.leaf)
    with pytest.raises(AccessDenied, match="revoked: the manifest no longer allows this marble"):
        again.mesh.authenticate(bad.identity.leaf)
    assert revoked(again.mesh, good) == {str(bad.identity.spiffe_id)}
    assert [await go_on(again, 31), await go_on(again)] == [Phase.RENEW, Phase.RETIRE]
    assert again.store.committed[-1].former.revoked == ()


async def test_who_was_turned_out_and_activated_again_is_welcome_after_a_start(bench: Bench, tmp_path: Path) -> None:
    await bench.activate()
    (bad,) = bench.mesh.marbles
    bench.mesh.activated(replace(bad, claims=None))
    await update(bench)
    await bench.activate(uuid=bad.uuid)
    (better,) = bench.mesh.marbles
    again = restarted(bench, tmp_path)
    again.mesh.authenticate(better.identity.leaf)
    assert revoked(again.mesh, better) == frozenset()


# ---- the rules


def test_the_issuers_are_bounded_and_the_oldest_only_opens_the_xds_port() -> None:
    former = FormerRoots()
    for ca in generations():
        former = former.replaced(ca, (), NOW)
    kept = generations()[-(MAX_ROOTS - 1) :]
    assert former.issuers == kept
    assert [root for root, _ in former.departed] == [ca.marble_root for ca in generations()[: -(MAX_ROOTS - 1)]]
    assert {until for _, until in former.departed} == {NOW + PACE.grace}


def test_what_has_departed_is_forgotten_in_its_time() -> None:
    one, other = generations()[:2]
    former = FormerRoots(departed=((one.marble_root, NOW), (other.marble_root, NOW + timedelta(seconds=1))))
    assert former.replaced(generations()[2], (), NOW).departed == former.departed[1:]


def test_an_issuer_is_known_by_its_signature() -> None:
    one, other, third = generations()[:3]
    former = FormerRoots(issuers=(one, other))
    assert former.issuer_of(other.intermediate) is None
    assert former.issuer_of(third.marble_root) is None
    assert former.issuer_of(one.marble_root) is one
    assert former.issuer_of(other.marble_root) is other


def test_no_key_is_in_the_text() -> None:
    text = repr(FormerRoots(issuers=generations()[:1]))
    assert "PRIVATE KEY" not in text
    assert "intermediate_key" not in text
