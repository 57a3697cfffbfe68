# SPDX-License-Identifier: Apache-2.0
"""What an operator sees of running workers: the metrics that docs/metrics.md names, all of them and nothing else, one
word for a refusal everywhere, the access log, `proxy status`."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from enclave_proxy.config import DEFAULT_ADMIN
from marblemesh.cli.proxy_verbs import DEFAULT_ADDRESS
from tests.kit.dead_ports import refusing
from tests.kit.mesh import ECHO, Json, MeshHarness, RunningWorker, ask, free_port

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

GUIDE = Path(__file__).parents[2] / "docs/metrics.md"
ROW = re.compile(r"^\| `([a-z_]+)` \| (counter|gauge|histogram) \| ([^|]*) \| [^|]+ \|$", re.MULTILINE)


@dataclass(frozen=True)
class Family:
    """A metric by the name that a query uses: with `_total` for counters, without `_bucket` and its like."""

    name: str
    kind: str
    labels: frozenset[str]


def documented(section: str) -> set[Family]:
    """The table below a heading of the guide."""
    _, _, rest = GUIDE.read_text().partition(f"\n## {section}\n")
    text = rest.partition("\n## ")[0]
    return {
        Family(name, kind, frozenset(re.findall(r"`([a-z_]+)`", labels))) for name, kind, labels in ROW.findall(text)
    }


def exported(page: str) -> tuple[set[Family], set[str]]:
    """What a process shows: families with samples, and the names of those that have none yet."""
    found, empty = set(), set()
    for family in text_string_to_metric_families(page):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        if not family.samples:
            empty.add(name)
            continue
        labels = frozenset(label for sample in family.samples for label in sample.labels) - {"le"}
        found.add(Family(name, family.type, labels))
    return found, empty


def compare(section: str, page: str) -> None:
    rows = documented(section)
    found, empty = exported(page)
    assert found <= rows, f"not documented so: {sorted(map(str, found - rows))}"
    assert {row.name for row in rows} - {family.name for family in found} == empty, "documented, and not exported"


@dataclass
class Scene:
    """`db` lets `web` in and nobody else; each of them keeps an access log, `db` with two processes."""

    mesh: MeshHarness
    port: int
    prometheus: str
    web: RunningWorker
    db: RunningWorker
    other: RunningWorker

    def lines(self, who: RunningWorker) -> list[Json]:
        return [json.loads(line) for line in (who.run_dir.parent / "access.log").read_text().splitlines()]

    async def logged(self, who: RunningWorker, wanted: Callable[[list[Json]], bool]) -> list[Json]:
        async with asyncio.timeout(30):
            while not wanted(found := self.lines(who)):
                await asyncio.sleep(0.05)
        return found

    def out(self, who: RunningWorker) -> Path:
        return who.run_dir / f"db-{self.port}.sock"

    async def plaintext(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"GET /a-secret-path HTTP/1.1\r\n\r\n")
        with suppress(ConnectionError):
            await reader.read()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def status(self, who: RunningWorker, *flags: str) -> tuple[int, str, str]:
        address = (await who.logged("admin listening"))["address"]
        return await status("--admin-addr", address, *flags)


async def status(*flags: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "marblemesh", "proxy", "status", *flags),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene() -> AsyncIterator[Scene]:
    with TemporaryDirectory(prefix="mm-") as directory:
        async with MeshHarness(Path(directory)) as mesh:
            port, prometheus = free_port(), f"127.0.0.1:{free_port()}"
            outgoing = {"Outgoing": [{"Addr": "db", "Port": str(port)}]}
            incoming = {"Incoming": [{"Port": str(port), "Peers": ["web"]}]}
            await mesh.start_coordinator("--prometheus-addr", prometheus)
            await mesh.set_manifest(
                mesh.manifest({"web": {}, "db": {}, "other": {}}, {"web": outgoing, "db": incoming, "other": outgoing})
            )
            log = ("--access-log", "access.log")
            web = await mesh.start_worker("web", "sleep", "60", flags=log)
            db = await mesh.start_worker("db", *ECHO, "db", f"{port}.sock", "9", flags=(*log, "--concurrency", "2"))
            other = await mesh.start_worker("other", "sleep", "60", flags=log)
            await db.logged("app listening")
            await web.ready()
            await other.ready()
            yield Scene(mesh, port, prometheus, web, db, other)


async def test_each_connection_is_one_line_and_a_refusal_is_the_same_word_everywhere(scene: Scene) -> None:
    for _ in range(8):
        await ask(scene.out(scene.web), b"hello", b"db:hello")
    await ask(scene.out(scene.other), b"hello", b"")
    await scene.plaintext()

    def all_there(found: list[Json]) -> bool:
        reasons = Counter(line["reason"] for line in found)
        return reasons[None] == 8 and reasons["peer_not_allowed"] > 0 and reasons["plaintext"] == 1

    found = await scene.logged(scene.db, all_there)
    served = [line for line in found if line["reason"] is None]
    name = f"inbound|{scene.port}"
    for line in served:
        assert (line["listener"], line["direction"], line["received"], line["sent"]) == (name, "inbound", 5, 8)
        assert "/marble/web/" in line["peer"]
        assert line["address"].startswith("127.0.0.1:")
        assert line["upstream"] == f"unix:{scene.db.run_dir}/{scene.port}.sock"
        assert (line["tls"], line["cipher"][:4], line["resumed"]) == ("TLSv1.3", "TLS_", False)
        assert 0 < line["handshake_ms"] / 1000 <= line["seconds"]
    (plain,) = [line for line in found if line["reason"] == "plaintext"]
    assert (plain["peer"], plain["tls"], plain["handshake_ms"], plain["received"]) == (None, None, None, 0)
    refused = next(line for line in found if line["reason"] == "peer_not_allowed")
    assert "/marble/other/" in refused["peer"]  # verified, and not let in
    assert "a-secret-path" not in json.dumps(found)

    outbound = (await scene.logged(scene.web, lambda lines: len(lines) == 8))[0]
    assert (outbound["direction"], outbound["upstream"]) == ("outbound", f"127.0.0.1:{scene.port}")
    assert ("/marble/db/" in outbound["peer"], outbound["address"]) == (True, None)
    (rejected,) = await scene.logged(scene.other, lambda lines: len(lines) == 1)
    assert rejected["reason"] == "refused_by_peer"

    for reason in ("plaintext", "peer_not_allowed"):
        label = f'connections_refused_total{{listener="{name}",reason="{reason}"}}'
        await scene.db.admin_says("/metrics", lambda text, label=label: label in text)  # type: ignore[misc]
        await scene.db.logged("connection refused", listener=name, reason=reason)
    metrics = await scene.db.admin_says("/metrics", lambda text: f"access_log_lines_total {len(found)}.0" in text)
    assert f'peer_connections_total{{listener="{name}",peer="web"}} 8.0' in metrics
    assert f'handshake_duration_seconds_count{{listener="{name}"}} 8.0' in metrics


async def test_status_shows_a_worker_in_one_screen_and_says_by_its_exit_status_whether_it_is_ready(
    scene: Scene,
) -> None:
    await ask(scene.out(scene.web), b"hello", b"db:hello")
    await ask(scene.out(scene.other), b"hello", b"")
    await scene.plaintext()
    await scene.db.admin_says("/metrics", lambda text: 'reason="plaintext"' in text and 'peer="web"' in text)

    code, text, err = await scene.status(scene.db)
    assert (code, err) == (0, "")
    for word in ("db ", "(simulation)", "Ready:", "yes", "connected, ", "2 of 2 relay", "identity"):
        assert word in text
    assert f"inbound|{scene.port}" in text
    assert re.search(r"web \d+ .*plaintext \d+", text)
    assert len(text.splitlines()) < 30

    code, text, _ = await scene.status(scene.web, "-o", "json")
    report = json.loads(text)
    assert (code, report["ready"], report["coordinator"]["connected"]) == (0, True, True)
    assert report["marble"]["type"] == "web"
    (listener,) = report["listeners"]
    assert listener["received"] == 5 * listener["established"] > 0
    assert listener["peers"] == {"db": listener["established"]}
    (cluster,) = report["clusters"]
    assert cluster["endpoints"][0]["address"] == f"127.0.0.1:{scene.port}"
    assert {entry["name"] for entry in report["certificates"]} == {"identity", "bundle"}
    assert all(entry["seconds_left"] > 0 for entry in report["certificates"])

    nobody = {"EDG_MARBLE_COORDINATOR_ADDR": "127.0.0.1:1"}
    starting = await scene.mesh.start_worker("db", "true", name="late", env=nobody)
    code, text, _ = await scene.status(starting)
    assert code == 1
    assert "NO: no identity yet: waiting for the coordinator" in text


async def test_the_guide_names_every_metric_of_coordinator_and_worker_with_its_labels(scene: Scene) -> None:
    await ask(scene.out(scene.web), b"hello", b"db:hello")
    await scene.plaintext()
    client = await scene.web.admin_says("/metrics", lambda text: "peer_connections_total{" in text)
    server = await scene.db.admin_says("/metrics", lambda text: 'reason="plaintext"' in text and 'peer="web"' in text)
    async with aiohttp.ClientSession() as session, session.get(f"http://{scene.prometheus}/metrics") as reply:
        coordinator = await reply.text()
    compare("Worker", client)
    compare("Worker", server)
    compare("Coordinator", coordinator)


async def test_where_no_worker_answers_is_said_with_the_way_out() -> None:
    with refusing() as address:
        code, out, err = await status("--admin-addr", str(address))
    assert (code, out) == (2, "")
    assert f"no worker at {address}: connection refused; give its --admin-addr" in err
    assert str(DEFAULT_ADMIN) == DEFAULT_ADDRESS  # where it looks is where a worker listens, if nobody says otherwise
