# SPDX-License-Identifier: Apache-2.0
"""The update log: one JSON object per entry, its texts, its members and their order; public, and part of the state."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import datetime
from typing import Any

import pytest
import pytest_asyncio

from tests.conformance.updates.conftest import Serve
from tests.kit.deployment import b64
from tests.kit.parties import raising, raw
from tests.kit.site import site

SECRETS = {"mine": {"Type": "plain", "UserDefined": True}}
PARTIES = ("alice", "bob", "carol")
FIRST = raw(*PARTIES, Secrets=SECRETS)
CANCELLED, BROKEN = raw("bob", TLS={}), raw(
    *PARTIES, Marbles={"web": {"Package": "app", "Parameters": {"Env": {"A": "{{ hex .Secrets.x }}"}}}}
)  # fmt: skip
AGREED, ALONE = raw("alice"), raw("alice", Marbles={"api": {"Package": "app"}})


def fingerprint(manifest: bytes) -> str:
    return hashlib.sha256(manifest).hexdigest()


def waits(who: str, count: int, missing: list[str], manifest: bytes, text: str) -> dict[str, object]:
    return {
        "update": f"Complete Manifest update {text}",
        "user": who,
        "missingAcknowledgments": count,
        "missingUsers": missing,
        "manifestFingerprint": fingerprint(manifest),
    }


INITIATED = "initiated by user. Waiting for acknowledgments to apply the update"
ACKNOWLEDGED = "acknowledged by user"
EXPECTED: list[dict[str, Any]] = [
    {"update": "Initial manifest set"},
    {"update": "SecurityVersion increased", "user": "dave", "package": "app", "new version": 3},
    {"update": "Secret set", "user": "alice", "secret": "mine", "type": "plain"},
    waits("alice", 2, ["bob", "carol"], CANCELLED, INITIATED),
    {
        "update": "Complete Manifest update cancelled by user",
        "user": "bob",
        "manifestFingerprint": fingerprint(CANCELLED),
    },
    waits("carol", 2, ["alice", "bob"], BROKEN, INITIATED),
    waits("bob", 1, ["alice"], BROKEN, ACKNOWLEDGED),
    {
        "update": "Complete Manifest update cancelled due to error during apply",
        "manifestFingerprint": fingerprint(BROKEN),
    },
    waits("bob", 2, ["alice", "carol"], AGREED, INITIATED),
    waits("carol", 1, ["alice"], AGREED, ACKNOWLEDGED),
    waits("alice", 0, [], AGREED, ACKNOWLEDGED),
    {"update": "Complete Manifest updated", "manifestFingerprint": fingerprint(AGREED)},
    {
        "update": "Complete Manifest update initiated by user. No further acknowledgements required",
        "user": "alice",
        "manifestFingerprint": fingerprint(ALONE),
    },
    {"update": "Complete Manifest updated", "manifestFingerprint": fingerprint(ALONE)},
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def entries(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of a deployment in which everything has happened that is logged; read by a stranger after a restart."""
    async with site(tmp_path_factory.mktemp("log"), FIRST) as running:
        outside = running.outside
        await outside.update(raising(app=3), "dave")
        await outside.post("/api/v2/secrets", {"secrets": {"mine": {"Key": b64(b"value")}}}, "alice")
        await outside.update(CANCELLED)
        await outside.cancel("bob")
        await outside.update(BROKEN, "carol")
        await outside.acknowledge(BROKEN, "bob")
        assert (await outside.acknowledge(BROKEN, "alice")).status == 500
        await outside.update(AGREED, "bob")
        await outside.acknowledge(AGREED, "carol")
        await outside.acknowledge(AGREED, "alice")
        await outside.update(ALONE)
        outside = await running.restart()
        found: list[str] = (await outside.get("/api/v2/update")).data["updateLog"]
        return found


@pytest.mark.asyncio(loop_scope="module")
async def test_there_is_an_entry_for_everything_in_order_and_none_for_anything_else(entries: list[str]) -> None:
    assert [json.loads(entry)["update"] for entry in entries] == [entry["update"] for entry in EXPECTED]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("number", range(len(EXPECTED)), ids=[str(entry["update"])[:60] for entry in EXPECTED])
async def test_an_entry_has_exactly_these_members_in_this_order_after_the_time(entries: list[str], number: int) -> None:
    members = json.loads(entries[number])
    assert list(members) == ["time", *EXPECTED[number]]
    del members["time"]
    assert members == EXPECTED[number]


@pytest.mark.asyncio(loop_scope="module")
async def test_the_time_is_iso_8601_with_milliseconds_and_the_entries_follow_each_other(entries: list[str]) -> None:
    times = [json.loads(entry)["time"] for entry in entries]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time) for time in times)
    assert times == sorted(times, key=datetime.fromisoformat)


@pytest.mark.asyncio(loop_scope="module")
async def test_an_entry_is_one_line_without_blanks_around_its_members(entries: list[str]) -> None:
    for entry in entries:
        assert entry == json.dumps(json.loads(entry), separators=(",", ":"), ensure_ascii=False)
        assert "\n" not in entry


async def test_version_1_gives_the_lines_each_with_its_newline(serve: Serve) -> None:
    outside = (await serve(FIRST)).outside
    await outside.update(raising(app=3), "dave")
    v2 = (await outside.get("/api/v2/update")).data["updateLog"]
    assert len(v2) == 2
    assert (await outside.get("/update")).data == "".join(f"{entry}\n" for entry in v2)


async def test_what_changes_nothing_is_not_logged(serve: Serve) -> None:
    outside = (await serve(FIRST)).outside
    await outside.activate()
    await outside.secrets("mine")
    await outside.update(raising(app=1), "dave")
    await outside.update(CANCELLED, "dave")
    await outside.update(CANCELLED)
    await outside.acknowledge(CANCELLED, "alice")
    await outside.acknowledge(AGREED, "bob")
    assert [entry["update"] for entry in await outside.log()] == [EXPECTED[0]["update"], EXPECTED[3]["update"]]
