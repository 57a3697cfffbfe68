# SPDX-License-Identifier: Apache-2.0
"""Updates of a real process that is killed in between: what was answered is there, what waits still waits."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sds.attestation.simulated import SimulatedPlatform
from tests.kit.coordinator_process import CoordinatorProcess, coordinator
from tests.kit.deployment import b64
from tests.kit.outside import Outside
from tests.kit.parties import raising, raw

pytestmark = pytest.mark.e2e

KEY = {"Secrets": {"own": {"Type": "symmetric-key", "Size": 128}}}
FIRST = raw("alice", "bob", "carol", **KEY)
NEW = raw("alice", "bob", TLS={}, Config={"RotateRootSecret": True}, **KEY)


def outside(process: CoordinatorProcess, platform: Path, directory: Path) -> Outside:
    machine = SimulatedPlatform.open(platform, datetime.now(UTC))
    return Outside(process.port("client"), process.port("mesh"), directory, machine)


def texts(log: list[dict[str, Any]]) -> list[str]:
    return [entry["update"] for entry in log]


async def test_a_pending_update_waits_on_after_kill_9_and_the_last_acknowledgement_applies_it(tmp_path: Path) -> None:
    platform, state = tmp_path / "platform", tmp_path / "state"
    async with coordinator(platform, state=state) as first:
        clients = outside(first, platform, tmp_path)
        assert (await clients.set_manifest(FIRST)).status == 200
        assert (await clients.update(raising(app=3), "dave")).status == 200
        before, root = await clients.activate(), (await clients.ca())[0]
        assert (await clients.update(NEW)).data == {"missingAcknowledgments": 2, "missingUsers": ["bob", "carol"]}
        assert (await clients.acknowledge(NEW, "carol")).data["missingAcknowledgments"] == 1
        log = await clients.log()
        await first.stop(signal.SIGKILL)
    async with coordinator(platform, state=state) as second:
        clients = outside(second, platform, tmp_path)
        assert (await clients.pending()).data["manifest"] == b64(NEW)
        assert (await clients.pending()).data["missingUsers"] == ["bob"]
        assert await clients.log() == log
        blocked = await clients.update(json.dumps({"Packages": {"app": {"SecurityVersion": 4}}}).encode(), "dave")
        assert blocked.message.startswith("update already in progress")
        assert (await clients.acknowledge(NEW, "carol")).data["missingAcknowledgments"] == 1
        assert (await clients.acknowledge(NEW, "bob")).data["missingAcknowledgments"] == 0
        log, ca, after = await clients.log(), await clients.ca(), await clients.activate()
        assert (ca[0], after["previous_own"], after["own"] == before["own"]) == (root, before["own"], False)
        await second.stop(signal.SIGKILL)
    async with coordinator(platform, state=state) as third:
        clients = outside(third, platform, tmp_path)
        assert (await clients.pending()).status == 404
        assert (await clients.get("/api/v2/manifest")).data["manifest"] == b64(NEW)
        assert (await clients.log(), await clients.ca()) == (log, ca)
        assert texts(log)[-1] == "Complete Manifest updated"
        again = await clients.activate()
        assert (again["own"], again["previous_own"]) == (after["own"], after["previous_own"])
        assert (await clients.update(NEW, "carol")).status == 401, "no user of the new manifest"
