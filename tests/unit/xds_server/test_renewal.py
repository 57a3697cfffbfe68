# SPDX-License-Identifier: Apache-2.0
"""Mesh identities are renewed in time, each at a point of its own, and all at once when asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sds.ca import LeafTemplate
from sds.identity import marble_identity
from sds.material import Identity
from tests.kit.coordinator import Bench, Clock, manifest
from tests.kit.pki import request, shared_ca
from xds_server.renewal import Identities, Instance, Renewer, renew_at

START = datetime(2026, 1, 1, tzinfo=UTC)
UUIDS = [f"0a1b2c3d-4e5f-4a5b-8c7d-8e9fa0b1c2{n:02x}" for n in range(4)]
DAY = timedelta(days=1)


@given(st.floats(0, 1))
def test_renewal_leaves_three_tenths_of_the_life(jitter: float) -> None:
    at = renew_at(START, START + 10 * DAY, jitter)
    assert START + 6 * DAY <= at <= START + 7 * DAY


def template(uuid: str) -> LeafTemplate:
    return LeafTemplate("web", uuid, request(), None, DAY)


def filled(clock: Clock, jitters: list[float], limit: int = 100) -> Identities:
    points = iter([*jitters, *([0.5] * 100)])
    identities = Identities(shared_ca(), lambda: next(points), limit)
    for uuid, _ in zip(UUIDS, jitters, strict=False):
        identities.issue(template(uuid), clock())
    return identities


def test_nobody_is_due_at_first_and_everybody_in_the_end() -> None:
    clock = Clock()
    identities = filled(clock, [0.0, 1.0])
    assert identities.due(clock()) == []
    clock.forward(DAY * 0.65)
    assert identities.due(clock()) == [("web", UUIDS[0])]
    clock.forward(DAY * 0.1)
    assert identities.due(clock()) == [("web", UUIDS[0]), ("web", UUIDS[1])]


def test_a_renewed_identity_says_the_same_with_another_key() -> None:
    clock = Clock()
    identities = Identities(shared_ca(), lambda: 0.5)
    first = identities.issue(template(UUIDS[0]), clock())
    clock.forward(DAY * 0.65)
    second = identities.renew(("web", UUIDS[0]), clock())
    assert second is not None
    assert second.spiffe_id == first.spiffe_id
    assert second.key != first.key
    assert second.not_after > first.not_after
    assert identities.due(clock()) == []


def test_beyond_the_limit_the_oldest_activation_is_let_go() -> None:
    clock = Clock()
    identities = filled(clock, [0.5, 0.5, 0.5], limit=2)
    assert identities.everybody() == [("web", UUIDS[1]), ("web", UUIDS[2])]
    assert identities.renew(("web", UUIDS[0]), clock()) is None


class Workers:
    """Collects what is handed over."""

    def __init__(self) -> None:
        self.got: list[Mapping[Instance, Identity]] = []
        self.called = asyncio.Event()

    def __call__(self, renewed: Mapping[Instance, Identity]) -> None:
        self.got.append(renewed)
        self.called.set()


async def test_the_task_renews_who_is_due_and_on_request_everybody() -> None:
    clock, workers = Clock(), Workers()
    identities = filled(clock, [0.0, 1.0])
    renewer = Renewer(identities, clock, workers)
    assert await renewer.step() == 0
    clock.forward(DAY * 0.65)
    assert await renewer.step() == 1
    renewer.rotate_all()
    assert await renewer.step() == 2
    assert await renewer.step() == 0
    assert [len(batch) for batch in workers.got] == [1, 2]


async def test_the_task_wakes_up_for_a_rotation() -> None:
    clock, workers = Clock(), Workers()
    renewer = Renewer(filled(clock, [0.5]), clock, workers)
    task = asyncio.get_running_loop().create_task(renewer.run())
    renewer.rotate_all()
    await workers.called.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_nobody_is_renewed_while_it_is_held_up_and_everybody_afterwards() -> None:
    clock, workers, held = Clock(), Workers(), True
    renewer = Renewer(filled(clock, [0.0, 1.0]), clock, workers, held=lambda: held)
    clock.forward(DAY * 0.65)
    renewer.rotate_all()
    assert await renewer.step() == 0
    held = False
    assert await renewer.step() == 2


async def test_a_renewal_stops_where_another_root_comes_in_between() -> None:
    clock, workers = Clock(), Workers()
    asked = iter([False, False, True])
    renewer = Renewer(filled(clock, [0.5, 0.5, 0.5]), clock, workers, held=lambda: next(asked, True))
    renewer.rotate_all()
    assert await renewer.step() == 1


def test_another_manifest_is_what_renewed_identities_speak_of() -> None:
    clock = Clock()
    identities = Identities(shared_ca(), lambda: 0.5)
    identities.issue(replace(template(UUIDS[0]), claims={"tee": "sgx", "manifest": "aa"}), clock())
    identities.issue(template(UUIDS[1]), clock())
    identities.adopt("bb", timedelta(hours=2))
    first, second = (identities.renew(("web", uuid), clock()) for uuid in UUIDS[:2])
    assert first is not None
    assert second is not None
    assert marble_identity(first.leaf).claims == {"v": 1, "tee": "sgx", "manifest": "bb"}
    assert marble_identity(second.leaf).claims is None
    assert first.not_after - clock() <= timedelta(hours=2)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench.make(tmp_path)
    yield made
    made.own_quote.stop()


async def test_the_mesh_gets_the_new_identity(bench: Bench) -> None:
    await bench.coordinator.set_manifest(manifest(Mesh={"CertificateLifetime": "1h"}))
    await bench.activate(uuid=UUIDS[0])
    before = bench.mesh._marbles["web", UUIDS[0]].identity
    assert before.not_after - bench.clock() <= timedelta(hours=1)
    bench.clock.forward(timedelta(minutes=45))
    assert await bench.coordinator.renewer.step() == 1
    after = bench.mesh._marbles["web", UUIDS[0]].identity
    assert after.not_after > before.not_after
    assert bench.metric("marblemesh_identity_renewals_total") == 1
