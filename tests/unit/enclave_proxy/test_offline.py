# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from enclave_proxy.bootstrap import Credentials
from enclave_proxy.errors import ProxyError
from enclave_proxy.offline import FRESH, Keeper, OfflineFile
from enclave_proxy.relay_config import Membership
from enclave_proxy.sealed_state import OfflineState, Unsealable
from sds.material import MaterialError
from sds.resources import LISTENER, OFFLINE_NAME, SECRET, offline_secret, revoked_secret
from tests.kit.pki import marble, now, other_ca
from tests.unit.enclave_proxy.test_sealed_state import KEYS, state
from tests.unit.enclave_proxy.test_session import ROUTES, FakeRelay, Talk

HOUR = timedelta(hours=1)
TURNED_OUT = frozenset({"spiffe://t.test/marble/web/1"})


@dataclass
class Log:
    """What was said, by event."""

    lines: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    def __getattr__(self, _level: str) -> Callable[..., None]:
        return lambda event, **fields: self.lines.append((event, fields))


@dataclass
class Kept:
    """A worker at a time of its own, connected to a Coordinator, and its keeper."""

    file: OfflineFile
    talk: Talk = field(default_factory=Talk)
    at: datetime = field(default_factory=now)
    log: Log = field(default_factory=Log)

    def __post_init__(self) -> None:
        self.keeper = Keeper(
            self.file,
            self.talk.session,
            self.talk.store,
            state().parameters,
            lambda: self.at,
            self.log,  # type: ignore[arg-type]
        )

    async def configure(self) -> None:
        await self.talk.configure()
        await self.talk.push(SECRET, [offline_secret(HOUR), revoked_secret(TURNED_OUT)])
        self.talk.session.status.connected = True

    async def look(self, times: int = 2) -> OfflineState | None:
        for _ in range(times):
            await self.keeper.step()
        return self.file.load(self.at)


@pytest.fixture
def file(tmp_path: Path) -> OfflineFile:
    return OfflineFile(path=tmp_path / "uuid.offline", marble_type="web", uuid="u-u-i-d", pin="", keys=KEYS)


def test_what_was_kept_is_there_for_the_next_start(file: OfflineFile) -> None:
    assert file.load(now()) is None
    kept = state()
    file.write(kept)
    assert file.load(now()) == kept
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.path.parent.iterdir()] == ["uuid.offline"]
    assert (file.remove(), file.remove()) == (True, False)


@pytest.mark.parametrize(
    ("change", "later", "reason"),
    [
        ({"marble_type": "db"}, timedelta(), "that of another Marble"),
        ({"uuid": "other"}, timedelta(), "that of another Marble"),
        ({"pin": "abc"}, timedelta(), "sealed under another pin"),
        ({}, timedelta(minutes=-1), "the clock is behind"),
        ({}, HOUR, "it expired at"),
        ({"allowed_until": now() + 99 * HOUR}, 2 * HOUR, "it expired at"),
        ({"credentials": Credentials(marble(other_ca()), *(state().credentials.bundle,) * 2)}, timedelta(), "identity"),
    ],
)
def test_what_does_not_fit_is_not_used(
    file: OfflineFile, change: dict[str, object], later: timedelta, reason: str
) -> None:
    file.write(replace(state(), **change))  # type: ignore[arg-type]
    with pytest.raises(Unsealable, match=reason):
        file.load(now() + later)


def test_a_file_of_another_kind_is_not_used(file: OfflineFile, tmp_path: Path) -> None:
    file.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unsealable, match="cannot read"):
        file.load(now())
    file.path.unlink()
    file.path.write_bytes(b"")
    with pytest.raises(Unsealable, match="no sealed configuration"):
        file.load(now())


def test_a_failed_writing_leaves_what_was_there(file: OfflineFile, tmp_path: Path) -> None:
    kept = state()
    file.write(kept)
    (tmp_path / ".uuid.offline.new").mkdir()
    with pytest.raises(Unsealable, match="cannot write"):
        file.write(state())
    assert file.load(now()) == kept


async def test_the_coordinators_word_is_kept_only_where_it_allows_it(file: OfflineFile) -> None:
    kept = Kept(file)
    await kept.talk.configure()
    kept.talk.session.status.connected = True
    assert await kept.look() is None
    await kept.talk.push(SECRET, [offline_secret(HOUR)])
    assert (found := await kept.look()) is not None
    assert found.allowed_until == kept.at + HOUR
    assert found.credentials == kept.talk.store.credentials


async def test_a_permission_that_is_taken_away_removes_what_was_kept(file: OfflineFile) -> None:
    kept = Kept(file)
    await kept.configure()
    assert await kept.look() is not None
    await kept.talk.push(SECRET, removed=[OFFLINE_NAME])
    assert await kept.look() is None
    assert kept.log.lines[-1][0].startswith("no start without the coordinator is allowed any more")


async def test_every_change_is_kept_and_time_alone_is_noted_now_and_then(file: OfflineFile) -> None:
    kept = Kept(file)
    await kept.configure()
    assert (first := await kept.look()) is not None
    kept.at += HOUR / FRESH / 2
    assert (await kept.look()) == first
    kept.at += HOUR / FRESH / 2
    assert (second := await kept.look()) is not None
    assert second.heard == kept.at
    await kept.talk.push(SECRET, [revoked_secret([])])
    assert (third := await kept.look()) is not None
    assert third.resources != second.resources


async def test_without_the_coordinator_nothing_is_prolonged(file: OfflineFile) -> None:
    kept = Kept(file)
    await kept.configure()
    first = await kept.look()
    kept.talk.session.status.connected = False
    kept.at += HOUR / 2
    assert await kept.look() == first
    kept.talk.session.status.connected = True
    assert await kept.look(1) == first  # a stream that has just come up may still have to take it away


async def test_a_tee_without_sealing_keys_keeps_nothing_and_says_so_once(file: OfflineFile) -> None:
    kept = Kept(replace(file, keys=None))
    await kept.configure()
    assert await kept.look(5) is None
    said = [fields for event, fields in kept.log.lines if event.startswith("nothing can be kept")]
    assert said == [{"reason": "this platform has no sealing keys"}]


async def test_a_disk_that_cannot_be_written_is_told_once_and_stops_nothing(file: OfflineFile, tmp_path: Path) -> None:
    kept = Kept(replace(file, path=tmp_path / "no" / "such"))
    await kept.configure()
    assert await kept.look(5) is None
    assert len([event for event, _ in kept.log.lines if event.startswith("nothing can be kept")]) == 1


async def test_a_restored_worker_is_configured_as_before_and_refuses_whom_it_refused(file: OfflineFile) -> None:
    kept = Kept(file)
    await kept.configure()
    found = await kept.look()
    assert found is not None
    again = Talk()
    await again.session.restore(found.resources)
    assert again.session.configured
    assert isinstance(again.relay, FakeRelay)
    assert again.relay.membership == Membership(revoked=TURNED_OUT)
    assert [route.name for route in again.relay.applied[-1].inbound] == ["inbound|8080"]
    assert again.session.offline_start == HOUR


async def test_a_restored_worker_tells_the_coordinator_what_it_holds(file: OfflineFile) -> None:
    """So that what has gone meanwhile is taken from it, and not only what is new given to it."""
    kept = Kept(file)
    await kept.configure()
    found = await kept.look()
    assert found is not None
    again = Talk()
    await again.session.restore(found.resources)
    again.session.client.connected()
    said = {request.type_url: dict(request.initial_resource_versions) for request in again.requests()}
    assert said[LISTENER] == {name: resource.version for name, resource in ROUTES.listeners.items()}
    assert set(said[SECRET]) == {OFFLINE_NAME, "revoked|instances"}


async def test_an_incomplete_configuration_starts_nothing() -> None:
    with pytest.raises(ProxyError, match="there is no cluster"):
        await Talk().session.restore(ROUTES.listeners.values())


async def test_a_restored_secret_is_checked_like_a_pushed_one() -> None:
    spoiled = replace(offline_secret(HOUR), name="elsewhere")
    with pytest.raises(MaterialError, match="calls itself"):
        await Talk().session.restore([spoiled])
