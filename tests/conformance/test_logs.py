# SPDX-License-Identifier: Apache-2.0
"""What a real process tells those who watch it: log lines, `/events`, and what strangers' requests leave in metrics."""

from __future__ import annotations

import asyncio
import base64
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from sds.attestation.simulated import SimulatedEnclave, SimulatedPlatform
from tests.kit.client_api import Answer, curl
from tests.kit.coordinator import APP
from tests.kit.coordinator_process import CoordinatorProcess, coordinator
from tests.kit.marble_client import MarbleCredentials, activate
from tests.kit.outside import UUID, Outside
from tests.kit.parties import raw

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

DEPRECATED = "Usage of deprecated API endpoint. Consider using /api/v2{} instead"


class Watched:
    """The process, its clients, and the quote of the one Marble that was activated."""

    def __init__(self, process: CoordinatorProcess, home: Path) -> None:
        self.process = process
        self.platform = SimulatedPlatform.open(home / "machine", datetime.now(UTC))
        self.outside = Outside(process.port("client"), process.port("mesh"), home, self.platform)
        self.quote = b""

    async def events(self) -> Answer:
        return await curl(f"http://127.0.0.1:{self.process.port('prometheus')}/events")

    async def activate(self) -> None:
        who = MarbleCredentials.make()
        self.quote = who.quote(self.platform.issuer(APP))
        await activate("127.0.0.1", self.process.port("mesh"), who, self.quote, "web", UUID)

    @asynccontextmanager
    async def one_more_line(self, event: str) -> AsyncIterator[None]:
        """What is done in the block is logged once."""
        before = len(self.lines(event))
        yield
        async with asyncio.timeout(10):
            while len(self.lines(event)) == before:
                await asyncio.sleep(0.01)
        assert len(self.lines(event)) == before + 1

    def lines(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.process.lines if line.get("event") == event]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("watched")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(home: Path) -> AsyncIterator[Watched]:
    """One Marble was refused, then one activated; nothing was activated when `/events` was first asked for."""
    async with coordinator(home / "machine", state=home / "state") as process:
        found = Watched(process, home)
        assert (await found.outside.set_manifest(raw("alice"))).status == 200
        await found.outside.refusal(enclave=SimulatedEnclave.default("another"))
        assert (await found.events()).body == b"null\n"
        await found.activate()
        yield found


# --- events


async def test_an_activation_is_an_event_with_type_uuid_and_quote_and_a_refused_one_is_none(watched: Watched) -> None:
    answer = await watched.events()
    assert (answer.status, answer.kind.partition(";")[0]) == (200, "application/json")
    (event,) = answer.json
    assert list(event) == ["time", "activation"]
    assert list(event["activation"]) == ["marbleType", "uuid", "quote"]
    assert (event["activation"]["marbleType"], event["activation"]["uuid"]) == ("web", UUID)
    assert base64.b64decode(event["activation"]["quote"]) == watched.quote
    assert event["time"].endswith("Z")
    assert abs((datetime.now(UTC) - datetime.fromisoformat(event["time"])).days) == 0


async def test_events_are_in_memory_only(watched: Watched, home: Path) -> None:
    """Another process that goes on with the same state."""
    shutil.copytree(home / "state", home / "copy")
    async with coordinator(home / "machine", state=home / "copy") as process:
        again = Watched(process, home)
        assert (await again.outside.status(), (await again.events()).body) == (3, b"null\n")


# --- log lines


async def test_the_log_is_json_with_level_and_time_in_every_line(watched: Watched) -> None:
    assert all({"level", "event", "timestamp"} <= set(line) for line in watched.process.lines)


async def test_it_begins_with_version_commit_and_whether_it_is_distributed(watched: Watched) -> None:
    (line,) = watched.lines("Starting coordinator")
    assert {"version", "commit", "distributed"} <= set(line)


async def test_an_activated_and_a_refused_marble_are_lines_with_type_and_uuid(watched: Watched) -> None:
    for event in ("Successfully activated new Marble", "Marble verification failed"):
        (line,) = watched.lines(event)
        assert (line["MarbleType"], line["UUID"]) == ("web", UUID)


V1 = [
    *(("GET", path) for path in ("/manifest", "/status", "/update", "/quote", "/secrets?s=x")),
    *(("POST", path) for path in ("/manifest", "/update", "/secrets", "/recover")),
]


@pytest.mark.parametrize(("method", "path"), V1)
async def test_each_use_of_version_1_is_a_line_that_names_version_2(watched: Watched, method: str, path: str) -> None:
    async with watched.one_more_line(DEPRECATED.format(path.partition("?")[0])):
        await (watched.outside.get(path) if method == "GET" else watched.outside.post(path, b"{}"))


@pytest.mark.parametrize("path", ["/update-manifest", "/update-cancel"])
async def test_but_for_those_that_have_no_other_form(watched: Watched, path: str) -> None:
    async with watched.one_more_line(DEPRECATED.format("/status")):
        await watched.outside.get(path)
        await watched.outside.post(path, b"{}", "alice")
        await watched.outside.get("/status")
    assert not watched.lines(DEPRECATED.format(path))


# --- what strangers leave


async def test_an_unknown_path_is_a_405_and_counted_as_one_with_metrics_on_too(watched: Watched) -> None:
    """Where MarbleRun drops the connection."""
    assert (await watched.outside.get("/no/such/path")).status == 405
    text = await watched.process.metrics()
    assert 'server_client_api_http_request_total{code="405",method="get",path="unknown"} 1.0' in text
